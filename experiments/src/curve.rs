//! The learning curve as a picture.

use std::path::Path;

use plotters::prelude::*;

/// One update: host-steps played so far and the mean return of the episodes that ended in it.
pub type Point = (u64, f64);

/// Updates over which the bold line averages.
const WINDOW: usize = 20;

/// Writes `points` to an SVG file: each update faint, their moving average bold. Without points
/// nothing is written.
///
/// # Errors
/// In words, if the file cannot be written.
pub fn write(file: &Path, title: &str, points: &[Point]) -> Result<(), String> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Ok(());
    };
    draw(file, title, points, first.0..last.0.max(first.0 + 1)).map_err(|error| error.to_string())
}

fn draw(
    file: &Path,
    title: &str,
    points: &[Point],
    steps: std::ops::Range<u64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let (low, high) = bounds(points);
    let root = SVGBackend::new(file, (860, 440)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(steps, low..high)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.08))
        .x_desc("environment steps")
        .y_desc("episodic return")
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), BLUE.mix(0.25)))?;
    chart.draw_series(LineSeries::new(smooth(points), BLUE.stroke_width(2)))?;
    root.present()?;
    Ok(())
}

fn bounds(points: &[Point]) -> (f64, f64) {
    let values = points.iter().map(|(_, value)| *value);
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    let margin = 0.05 * (high - low) + 1e-9;
    (low - margin, high + margin)
}

/// Each point with the mean of the last [`WINDOW`] values, itself included.
pub(crate) fn smooth(points: &[Point]) -> Vec<Point> {
    let average = |end: usize| {
        let window = &points[(end + 1).saturating_sub(WINDOW)..=end];
        window.iter().map(|(_, value)| value).sum::<f64>() / window.len() as f64
    };
    (0..points.len())
        .map(|i| (points[i].0, average(i)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bold_line_averages_what_came_before() {
        let points = [(10, 1.0), (20, 3.0), (30, 5.0)];
        assert_eq!(smooth(&points), [(10, 1.0), (20, 2.0), (30, 3.0)]);
    }

    #[test]
    fn a_curve_of_one_point_can_be_drawn_and_none_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("none.svg"), "t", &[]).unwrap();
        assert!(!dir.path().join("none.svg").exists());
        let file = dir.path().join("one.svg");
        write(&file, "a title", &[(64, 2.0)]).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.starts_with("<svg") && text.contains("a title"));
    }
}
