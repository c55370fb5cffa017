//! `dspark device`

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::output::print;
use crate::device::{
    Check, DeviceChoice, DeviceError, DeviceInfo, Product, Verdict, checks, number_types, time_product,
};

/// Time that a size is multiplied for.
const TIMED: Duration = Duration::from_millis(500);

/// Arguments of `dspark device`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Device to compute on: cpu, cuda or cuda:INDEX
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// Time matrix products in f32 and, if the device supports it, bf16
    #[arg(long)]
    products: bool,
    /// Sizes of the products, MxKxN for [M, K] x [K, N], separated by commas (default: 4096x4096x4096 and
    /// 3584x2560x151936 on a GPU, 512x512x512 and 256x512x8192 on the CPU)
    #[arg(long, value_name = "MxKxN", value_delimiter = ',', requires = "products")]
    sizes: Vec<Size>,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

/// The size of a product of `[m, k]` and `[k, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size([usize; 3]);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<usize>> = text.split('x').map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[m, k, n]) if m.min(k).min(n) > 0 => Ok(Self([m, k, n])),
            _ => Err("expected MxKxN, three whole numbers >= 1, for example 4096x4096x4096".into()),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [m, k, n] = self.0;
        write!(f, "{m}x{k}x{n}")
    }
}

impl Size {
    /// Returns the sizes that are timed by default.
    fn usual(device: DeviceChoice) -> Vec<Self> {
        match device {
            DeviceChoice::Cuda(_) => vec![Self([4096; 3]), Self([3584, 2560, 151_936])],
            DeviceChoice::Cpu | DeviceChoice::CubeCpu => vec![Self([512; 3]), Self([256, 512, 8192])],
        }
    }

    /// Floating-point operations of a product.
    fn operations(self) -> f64 {
        2.0 * self.0.iter().map(|&side| side as f64).product::<f64>()
    }

    /// Bytes of both factors and the result in numbers of `width` bytes, and of a factor in f32 while it is laid out.
    fn bytes(self, width: usize) -> f64 {
        let [m, k, n] = self.0.map(|side| side as f64);
        (m * k + k * n + m * n) * width as f64 + 4.0 * k * n.max(m)
    }
}

/// Opens the device, compares a few results with the host's, and times products.
pub fn run(arguments: &Arguments) -> Result<()> {
    let device = arguments.device.open()?;
    let info = arguments.device.info();
    if !arguments.json {
        print_info(arguments.device, &info)?;
    }
    let checks = checks(&device)?;
    if !arguments.json {
        print_checks(&checks)?;
    }
    let mut products = Vec::new();
    if arguments.products {
        let sizes = &arguments.sizes;
        let sizes = if sizes.is_empty() { Size::usual(arguments.device) } else { sizes.clone() };
        if !arguments.json {
            print("\nproduct               type   ms        TFLOP/s  difference")?;
        }
        for size in sizes {
            for (name, dtype) in number_types(&device) {
                let timed =
                    fits(size, dtype.size(), &info).and_then(|()| time_product(&device, size.0, dtype, TIMED));
                if !arguments.json {
                    print_product(size, name, &timed)?;
                }
                products.push(product_to_json(size, name, timed));
            }
        }
    }
    if arguments.json {
        print(serde_json::to_string_pretty(&json!({
            "device": arguments.device.to_string(),
            "name": info.name,
            "driver": info.driver,
            "threads": rayon::current_num_threads(),
            "memory": info.memory,
            "free_memory": info.free_memory,
            "checks": checks.iter().map(check_to_json).collect::<Vec<_>>(),
            "products": products,
        }))?)?;
    }
    if let Some(wrong) = checks.iter().find(|check| check.verdict() == Verdict::Wrong) {
        let reason = format!("{} differs from the CPU's result by {:.1e}", wrong.name, wrong.difference);
        bail!(DeviceError::Failed { reason });
    }
    Ok(())
}

fn fits(size: Size, width: usize, info: &DeviceInfo) -> Result<(), DeviceError> {
    let bytes = size.bytes(width);
    match info.free_memory {
        Some(free) if bytes > free as f64 => {
            let reason = format!("{size} needs {}, but only {} are free", gibibytes(bytes), gibibytes(free as f64));
            Err(DeviceError::Failed { reason })
        }
        _ => Ok(()),
    }
}

fn check_to_json(check: &Check) -> Value {
    let Check { name, difference, allowed } = check;
    json!({"name": name, "difference": difference, "allowed": allowed, "passed": check.verdict() == Verdict::Right})
}

fn product_to_json(size: Size, dtype: &str, timed: Result<Product, DeviceError>) -> Value {
    match timed {
        Ok(Product { seconds, difference }) => json!({
            "size": size.to_string(), "type": dtype, "seconds": seconds,
            "teraflops": size.operations() / seconds / 1e12, "difference": difference,
        }),
        Err(error) => json!({"size": size.to_string(), "type": dtype, "error": error.to_string()}),
    }
}

fn print_info(device: DeviceChoice, info: &DeviceInfo) -> Result<()> {
    let name = info.name.as_deref().unwrap_or("name unknown");
    let more = match &info.driver {
        Some(driver) => format!("driver {driver}"),
        None => format!("{} threads", rayon::current_num_threads()),
    };
    print(format_args!("device   {device}: {name}, {more}"))?;
    if let (Some(memory), Some(free)) = (info.memory, info.free_memory) {
        print(format_args!("memory   {}, {} free", gibibytes(memory as f64), gibibytes(free as f64)))?;
    }
    Ok(())
}

fn print_checks(checks: &[Check]) -> Result<()> {
    print("\nagainst the CPU    largest difference  allowed")?;
    for check in checks {
        let Check { name, difference, allowed } = check;
        let verdict = match check.verdict() {
            Verdict::Right => "right",
            Verdict::Inexact => "inexact: this device rounds f32 products (TF32)",
            Verdict::Wrong => "WRONG",
        };
        print(format_args!("{name:<17}  {difference:>18.1e}  {allowed:>7.0e}  {verdict}"))?;
    }
    Ok(())
}

fn print_product(size: Size, dtype: &str, timed: &Result<Product, DeviceError>) -> Result<()> {
    let size_name = size.to_string();
    Ok(match timed {
        Ok(Product { seconds, difference }) => print(format_args!(
            "{size_name:<20}  {dtype:<4}  {:>9.3}  {:>7.2}  {difference:>10.1e}",
            seconds * 1e3,
            size.operations() / seconds / 1e12
        )),
        Err(error) => print(format_args!("{size_name:<20}  {dtype:<4}  {error}")),
    }?)
}

fn gibibytes(bytes: f64) -> String {
    format!("{:.1} GiB", bytes / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_and_printed_alike() {
        for text in ["1x2x3", "3584x2560x151936"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["", "4096", "1x2", "1x2x3x4", "0x2x3", "1x-2x3", "axbxc", "1 x 2 x 3", "1*2*3"] {
            assert!(text.parse::<Size>().unwrap_err().contains("MxKxN"), "{text}");
        }
        assert_eq!(Size([2, 3, 5]).operations(), 60.0);
    }

    #[test]
    fn what_does_not_fit_is_not_tried() {
        let info = DeviceInfo { free_memory: Some(1 << 20), ..DeviceInfo::default() };
        assert!(fits(Size([64; 3]), 4, &info).is_ok());
        let error = fits(Size([4096; 3]), 4, &info).unwrap_err().to_string();
        assert!(error.contains("4096x4096x4096 needs 0.2 GiB, but only 0.0 GiB are free"), "{error}");
        assert!(fits(Size([4096; 3]), 4, &DeviceInfo::default()).is_ok());
    }
}
