//! Learning curves, drawn into the page.

use plotters::prelude::*;

use super::Section;
use crate::curve::{Point, smooth};
use crate::statistics::quantile;

/// Twice the size shown: plotters places things at whole units.
const SIZE: (u32, u32) = (1720, 840);
/// Configurations in one drawing; more could not be told apart.
pub(super) const MOST_CURVES: usize = 8;
/// Places along the axis at which runs are compared.
const PLACES: u64 = 240;

/// Stand for colours of the page, which follow the reader's system; plotters knows only numbers.
const INK: RGBColor = RGBColor(1, 1, 1);
const LINE: RGBColor = RGBColor(1, 1, 2);

fn series(number: usize) -> RGBColor {
    RGBColor(1, 2, number as u8)
}

/// A curve over runs: host-steps, and of the runs at that place the median, first and third quartile.
type Band = Vec<(f64, f64, f64, f64)>;

/// An SVG of the median return while learning, with the quartiles as a band, by configuration; `None` if no run has
/// ended an episode.
pub(super) fn curves(sections: &[Section]) -> Option<String> {
    let bands: Vec<Band> = sections
        .iter()
        .take(MOST_CURVES)
        .map(|section| {
            let runs = section.group.runs.iter();
            band(&runs.map(|run| smooth(&run.points)).collect::<Vec<_>>())
        })
        .collect();
    let all = || bands.iter().flatten();
    let most_steps = all().map(|place| place.0).fold(0.0, f64::max);
    let (low, high) = all().fold((f64::MAX, f64::MIN), |(low, high), place| {
        (low.min(place.2), high.max(place.3))
    });
    if low > high {
        return None;
    }
    let room = 0.05 * (high - low) + 1e-9;
    let mut svg = String::new();
    // Drawing into memory does not fail.
    draw(&mut svg, &bands, most_steps, (low - room, high + room)).ok()?;
    Some(themed(&svg))
}

/// Runs are compared where at least half of them (and of two, both) are that far.
fn band(runs: &[Vec<Point>]) -> Band {
    let last = runs
        .iter()
        .filter_map(|own| own.last())
        .map(|point| point.0)
        .max();
    let Some(last) = last else {
        return vec![];
    };
    let mut band = vec![];
    for place in 0..=PLACES {
        let steps = last * place / PLACES;
        let values: Vec<f64> = runs.iter().filter_map(|own| at(own, steps)).collect();
        if 2 * values.len() > runs.len() {
            let of = |share| quantile(&values, share).unwrap_or(f64::NAN);
            band.push((steps as f64, of(0.5), of(0.25), of(0.75)));
        }
    }
    band
}

/// Between the points before and after, in a run that is that far.
fn at(points: &[Point], steps: u64) -> Option<f64> {
    let after = points.partition_point(|point| point.0 < steps);
    let (next, next_value) = *points.get(after)?;
    if next == steps {
        return Some(next_value);
    }
    let (before, value) = points[after.checked_sub(1)?];
    let share = (steps - before) as f64 / (next - before) as f64;
    Some(value + share * (next_value - value))
}

fn draw(
    svg: &mut String,
    bands: &[Band],
    most_steps: f64,
    (low, high): (f64, f64),
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .margin_right(48)
        .x_label_area_size(90)
        .y_label_area_size(140)
        .build_cartesian_2d(0.0..most_steps.max(1.0), low..high)?;
    let text = |size| ("sans-serif", size).into_font().color(&INK);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(LINE.stroke_width(2))
        .axis_style(LINE.stroke_width(2))
        .x_labels(8)
        .y_labels(7)
        .x_desc("environment steps")
        .y_desc("episodic return")
        .label_style(text(24))
        .axis_desc_style(text(26))
        .x_label_formatter(&|steps| steps_text(*steps))
        .draw()?;
    for (number, band) in bands.iter().enumerate() {
        let upper = band.iter().map(|place| (place.0, place.3));
        let lower = band.iter().rev().map(|place| (place.0, place.2));
        let outline: Vec<(f64, f64)> = upper.chain(lower).collect();
        let fill = series(number).mix(0.16);
        chart.draw_series(std::iter::once(Polygon::new(outline, fill.filled())))?;
    }
    for (number, band) in bands.iter().enumerate() {
        let line = band.iter().map(|place| (place.0, place.1));
        chart.draw_series(LineSeries::new(line, series(number).stroke_width(4)))?;
    }
    root.present()?;
    drop(chart);
    drop(root);
    Ok(())
}

fn steps_text(steps: f64) -> String {
    if steps >= 1e6 {
        format!("{} M", steps / 1e6)
    } else if steps >= 1e3 {
        format!("{} k", steps / 1e3)
    } else {
        format!("{steps}")
    }
}

/// With colours of the page, and the page's own size.
fn themed(svg: &str) -> String {
    let (width, height) = SIZE;
    let fixed = format!("width=\"{width}\" height=\"{height}\" viewBox");
    let mut svg = svg.replacen(
        &fixed,
        "role=\"img\" aria-label=\"learning curves\" class=\"wide\" viewBox",
        1,
    );
    for number in 0..MOST_CURVES {
        svg = svg.replace(
            &format!("\"#01020{number}\""),
            &format!("\"var(--s{number})\""),
        );
    }
    svg.replace("\"#010101\"", "\"currentColor\"")
        .replace("\"#010102\"", "\"var(--line)\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_band_is_of_the_runs_that_are_that_far() {
        let long: Vec<Point> = (1..=10).map(|i| (10 * i, i as f64)).collect();
        let short: Vec<Point> = long[..5]
            .iter()
            .map(|(steps, value)| (*steps, value + 2.0))
            .collect();
        let band = band(&[long.clone(), short, long]);
        let of = |steps: f64| *band.iter().find(|place| place.0 >= steps).unwrap();
        assert_eq!(of(50.0), (50.0, 5.0, 5.0, 6.0));
        assert_eq!(of(55.0), (55.0, 5.5, 5.5, 5.5));
        assert_eq!(of(100.0), (100.0, 10.0, 10.0, 10.0));
        // Before the first episode has ended there is nothing.
        assert_eq!(band[0].0, 10.0);
    }
}
