//! Large buffers in dedicated memory pages.
//!
//! Large buffers that live for seconds fragment an allocator that also serves the many short-lived tensors of a step,
//! and the process then grows although its live data does not. Pages mapped for one buffer are returned as a whole.
//! They are huge pages if the system supports them: attention reads all of a cache in every step, and small pages cause
//! waits for the page tables.

use std::mem::MaybeUninit;

use burn::backend::Flex;
use burn::tensor::{Bytes, DType, Device, Shape, Tensor, TensorData};
use burn_flex::FlexTensor;
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty};
use memmap2::MmapMut;

use super::on_cpu;

/// The size of a huge page, and of the smallest buffer that gets dedicated pages.
const HUGE_PAGE: usize = 2 << 20;

/// Zeros (f32) for a large buffer that lives long; on other devices than the CPU a tensor like any other.
pub fn mapped_zeros<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let bytes = shape.iter().product::<usize>() * size_of::<f32>();
    let usual = |shape: [usize; D]| Tensor::zeros(shape, device);
    if bytes < HUGE_PAGE || on_cpu(&Tensor::<1>::zeros([1], device)).is_none() {
        return usual(shape);
    }
    // The allocator's own way out of too little memory is no worse.
    let Some(pages) = Pages::new(bytes) else { return usual(shape) };
    // SAFETY: the system hands out zeros, so all of these bytes are initialised, and they are as many.
    let bytes = unsafe { Bytes::from_controller(Box::new(pages), bytes) };
    let data = TensorData::from_bytes(bytes, Shape::from(shape), DType::F32);
    Tensor::from_primitive::<Flex>(FlexTensor::from_data(data))
}

/// Anonymous memory that begins with a huge page.
struct Pages {
    map: MmapMut,
    /// Offset of the first huge page in the map.
    first: usize,
    length: usize,
}

impl Pages {
    fn new(length: usize) -> Option<Self> {
        let map = MmapMut::map_anon(length.next_multiple_of(HUGE_PAGE) + HUGE_PAGE).ok()?;
        let first = map.as_ptr().align_offset(HUGE_PAGE);
        // Without huge pages it is as right, and slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        (first <= HUGE_PAGE).then_some(Self { map, first, length })
    }
}

impl AllocationController for Pages {
    /// Returns the alignment of a copy of the buffer: that of a number.
    fn alloc_align(&self) -> usize {
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self, _: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let bytes = &mut self.map[self.first..self.first + self.length];
        // SAFETY: the layout is the same, and the caller writes nothing uninitialised.
        Ok(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) })
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let bytes = &self.map[self.first..self.first + self.length];
        // SAFETY: the layout is the same, and what is initialised may be read as what may not be.
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::s;

    use super::*;

    #[test]
    fn a_buffer_of_its_own_is_a_tensor_like_any_other() {
        for (rows, own) in [(HUGE_PAGE / 16 - 1, false), (HUGE_PAGE / 16, true), (HUGE_PAGE / 16 + 1, true)] {
            let mut x_rd = mapped_zeros([rows, 4], &Device::flex());
            let address = |x_rd: &Tensor<2>| on_cpu(x_rd).unwrap().as_slice::<f32>().unwrap().as_ptr() as usize;
            let before = address(&x_rd);
            assert_eq!(before.is_multiple_of(HUGE_PAGE), own);
            for row in [0, rows - 1] {
                let ones = Tensor::<2>::ones([1, 4], &Device::flex());
                x_rd.inplace(|x_rd| x_rd.slice_assign(s![row..row + 1, ..], ones));
            }
            // Written where it lies, and nowhere else.
            assert_eq!(address(&x_rd), before);
            let copy_rd = x_rd.clone();
            x_rd.inplace(|x_rd| x_rd.slice_fill(s![0..1, ..], 2.0));
            assert_eq!(copy_rd.sum().into_scalar::<f32>(), 8.0);
            assert_eq!(x_rd.sum().into_scalar::<f32>(), 12.0);
        }
    }

    #[test]
    fn other_devices_have_their_own_memory() {
        let x_rd = mapped_zeros([HUGE_PAGE, 1], &Device::flex().autodiff());
        assert!(x_rd.is_autodiff());
        assert_eq!(x_rd.dims(), [HUGE_PAGE, 1]);
    }
}
