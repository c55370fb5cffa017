//! Pictures as SVG.

use std::path::Path;

use crate::checkpoint::{CheckpointError, write_file};
use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{Circle, PathElement};
use plotters::series::LineSeries;
use plotters::style::{BLACK, Color, RGBColor, WHITE};

/// The area that a plot is drawn on.
pub type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Reasons that drawing failed.
pub type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// The font of all text.
pub const FONT: &str = "sans-serif";

/// Colours that colour-blind readers can distinguish (Okabe and Ito).
pub const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

/// A chart of lines.
#[derive(Clone, Debug)]
pub struct Chart<'a> {
    /// Above the chart.
    pub title: &'a str,
    /// Below it.
    pub x_label: &'a str,
    /// Beside it.
    pub y_label: &'a str,
    /// True if the x axis is logarithmic, with ticks at powers of two. All x must then be above 0.
    pub x_in_octaves: bool,
    /// Name and points of each line.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}

impl Chart<'_> {
    /// Writes the chart, whole or not at all.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        write_svg(path, (720, 480), |canvas| self.draw(canvas))
    }

    fn draw(&self, canvas: &Canvas<'_>) -> Result<(), DrawError> {
        let x = |x: f64| if self.x_in_octaves { x.log2() } else { x };
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let right = largest(&mut points().map(|point| x(point.0))).max(f64::MIN_POSITIVE);
        let top = largest(&mut points().map(|point| point.1)).max(f64::MIN_POSITIVE);
        // Room above the lines for their names, a line of text each.
        let names = (0.06 + 0.045 * self.lines.len() as f64).min(0.6);
        let top = top / (1.0 - names);
        let mut chart = ChartBuilder::on(canvas)
            .caption(self.title, (FONT, 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..right * 1.02, 0.0..top)?;
        let octave = |x: &f64| format!("{:.0}", x.exp2());
        let whole = |x: &f64| format!("{x:.0}");
        let few_whole_numbers = right < 16.0 && points().all(|point| point.0.fract() == 0.0);
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(self.x_label).y_desc(self.y_label).light_line_style(WHITE).label_style((FONT, 13));
        if self.x_in_octaves {
            mesh.x_labels(right.ceil() as usize + 1).x_label_formatter(&octave);
        } else if few_whole_numbers {
            mesh.x_labels(right as usize + 1).x_label_formatter(&whole);
        }
        mesh.draw()?;
        for ((name, points), colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let points: Vec<(f64, f64)> = points.iter().map(|point| (x(point.0), point.1)).collect();
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
            chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .label_font((FONT, 13))
            .draw()
    }
}

/// Draws a plot of the given size in pixels on a white background and writes it atomically.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn write_svg(
    path: &Path,
    size: (u32, u32),
    draw: impl FnOnce(&Canvas<'_>) -> Result<(), DrawError>,
) -> Result<(), CheckpointError> {
    let mut text = String::new();
    let drawn = {
        let canvas = SVGBackend::with_string(&mut text, size).into_drawing_area();
        canvas.fill(&WHITE).and_then(|()| draw(&canvas)).and_then(|()| canvas.present())
    };
    drawn.map_err(|error| CheckpointError::Invalid {
        path: path.to_owned(),
        reason: format!("cannot draw the plot: {error}"),
    })?;
    write_file(path, text.as_bytes())
}
