//! Predicted against measured, as a picture.

use std::path::Path;

use plotters::prelude::*;

use super::report::{Figures, Report, Row};

/// Half the width of the band around equality: 20 %.
const BAND: f64 = 0.2;
const SIZE: (u32, u32) = (960, 500);

/// Writes an SVG with a panel for IOPS and one for mean latency: settings that were fitted to as
/// hollow circles, the same settings held out as filled ones, what the mean of the others says as
/// crosses, the line of equality, and the band of ±20 % around it.
///
/// # Errors
/// In words, if the file cannot be written.
pub fn write(file: &Path, report: &Report) -> Result<(), String> {
    draw(file, report).map_err(|error| error.to_string())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

struct Panel<'a> {
    title: &'a str,
    of: fn(&Figures) -> f64,
}

fn draw(file: &Path, report: &Report) -> Drawn {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(SIZE.0 / 2);
    let iops = Panel {
        title: "IOPS",
        of: |f| f.iops,
    };
    let latency = Panel {
        title: "mean latency, µs",
        of: |f| f.latency_us,
    };
    panel(&left, &report.rows, &iops)?;
    panel(&right, &report.rows, &latency)?;
    root.present()?;
    Ok(())
}

fn panel(area: &Area<'_>, rows: &[Row], panel: &Panel<'_>) -> Drawn {
    let points = |f: fn(&Row) -> Option<Figures>| -> Vec<(f64, f64)> {
        let point = |row: &Row| Some(((panel.of)(&row.measured), (panel.of)(&f(row)?)));
        rows.iter().filter_map(point).collect()
    };
    let (fitted, held_out) = (points(|r| r.fitted), points(|r| r.held_out));
    let naive = points(|r| r.naive);
    let (low, high) = bounds(&[&fitted, &held_out, &naive]);
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d((low..high).log_scale(), (low..high).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.08))
        .x_desc("measured")
        .y_desc("predicted")
        .draw()?;
    for (factor, style) in [
        (1.0, BLACK.stroke_width(1)),
        (1.0 + BAND, BLACK.mix(0.25).stroke_width(1)),
        (1.0 - BAND, BLACK.mix(0.25).stroke_width(1)),
    ] {
        // Where y = factor · x enters and leaves the square.
        let line = [
            (low.max(low / factor), low.max(low * factor)),
            (high.min(high / factor), high.min(high * factor)),
        ];
        chart.draw_series(LineSeries::new(line, style))?;
    }
    let cross = |p: &(f64, f64)| Cross::new(*p, 3, BLACK.mix(0.35));
    chart
        .draw_series(naive.iter().map(cross))?
        .label("mean of the other settings")
        .legend(|(x, y)| Cross::new((x + 8, y), 3, BLACK.mix(0.35)));
    let hollow = |p: &(f64, f64)| Circle::new(*p, 5, BLUE.stroke_width(1));
    chart
        .draw_series(fitted.iter().map(hollow))?
        .label("fitted")
        .legend(|(x, y)| Circle::new((x + 8, y), 5, BLUE.stroke_width(1)));
    let filled = |p: &(f64, f64)| Circle::new(*p, 3, RED.filled());
    chart
        .draw_series(held_out.iter().map(filled))?
        .label("held out")
        .legend(|(x, y)| Circle::new((x + 8, y), 3, RED.filled()));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .draw()?;
    Ok(())
}

fn bounds(series: &[&Vec<(f64, f64)>]) -> (f64, f64) {
    let values = series
        .iter()
        .flat_map(|s| s.iter().flat_map(|p| [p.0, p.1]));
    let (low, high) = values
        .filter(|v| *v > 0.0)
        .fold((f64::MAX, f64::MIN), |(low, high), v| {
            (low.min(v), high.max(v))
        });
    if low > high {
        return (0.5, 2.0);
    }
    (low / 1.5, high * 1.5)
}
