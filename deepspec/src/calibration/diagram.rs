//! The reliability diagram: predicted against observed acceptance.

use std::path::Path;

use dspark_runtime::checkpoint::CheckpointError;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::element::{Circle, PathElement};
use plotters::series::LineSeries;
use plotters::style::{BLACK, Color, WHITE};

use super::measures::Measures;
use super::report::{CalibrationReport, PositionReport};
use dspark_runtime::plot::{COLOURS, Canvas, DrawError, FONT, write_svg};

/// Number of panels per row, and the side of one in pixels.
const COLUMNS: usize = 4;
const PANEL: u32 = 260;

/// Writes one panel per position, before and after calibration; the size of a dot shows its number of rounds.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn write_diagram(report: &CalibrationReport, path: &Path) -> Result<(), CheckpointError> {
    let columns = report.positions.len().min(COLUMNS);
    let rows = report.positions.len().div_ceil(COLUMNS);
    write_svg(path, (columns as u32 * PANEL, rows as u32 * PANEL), |canvas| {
        for (panel, position) in canvas.split_evenly((rows, columns)).iter().zip(&report.positions) {
            draw(panel, position)?;
        }
        Ok(())
    })
}

fn draw(canvas: &Canvas<'_>, position: &PositionReport) -> Result<(), DrawError> {
    let few = if position.enough { "" } else { " (too few)" };
    let mut chart = ChartBuilder::on(canvas)
        .caption(format!("position {}{few}", position.position), (FONT, 14))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(42)
        .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("predicted survival").y_desc("accepted").x_labels(5).y_labels(5);
    mesh.light_line_style(WHITE).label_style((FONT, 11)).draw()?;
    chart.draw_series(LineSeries::new([(0.0, 0.0), (1.0, 1.0)], BLACK.mix(0.4)))?;
    let most = |measures: &Measures| measures.bins.iter().map(|bin| bin.count).max().unwrap_or(1) as f64;
    for (measures, name, colour) in [(&position.before, "before", COLOURS[1]), (&position.after, "after", COLOURS[0])]
    {
        let points: Vec<(f64, f64)> = measures.bins.iter().map(|bin| (bin.predicted, bin.observed)).collect();
        let ece = measures.ece.map_or("-".to_owned(), |ece| format!("{:.1} %", 100.0 * ece));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(format!("{name}, ECE {ece}"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 12, y)], colour.stroke_width(2)));
        let most = most(measures);
        chart.draw_series(measures.bins.iter().map(|bin| {
            let radius = 1.0 + 5.0 * (bin.count as f64 / most).sqrt();
            Circle::new((bin.predicted, bin.observed), radius.round() as i32, colour.mix(0.6).filled())
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font((FONT, 11))
        .draw()
}
