//! An evaluation as one page: no script, and nothing that is fetched.

use std::fmt::{self, Write as _};

use crate::diagnostics::Diagnostics;
use crate::estimate::Value;
use crate::evaluation::Evaluation;
use crate::page::{self, Text, begin_drawing};
use crate::verdict::{Verdict, Word};

const WIDTH: f64 = 640.0;
/// Room for labels left of what is drawn, and right of it.
const LEFT: f64 = 130.0;
const RIGHT: f64 = 20.0;

/// The page: verdict, forest plot of the estimators, histogram of the weights, effective sample size over the
/// steps of a window, propensities against what was drawn, and what the log holds. It renders with scripts off.
#[must_use]
pub fn html(evaluation: &Evaluation, verdict: &Verdict) -> String {
    let mut page = String::new();
    // Writing to memory does not fail.
    let _ = write_page(&mut page, evaluation, verdict);
    page
}

fn write_page(page: &mut String, evaluation: &Evaluation, verdict: &Verdict) -> fmt::Result {
    let class = match verdict.word {
        Word::Better => "better",
        Word::Worse => "worse",
        Word::CannotTell => "cannot-tell",
    };
    let title = format!("{}: {}", evaluation.policy.name, verdict.word.text());
    page::begin(page, &title, "")?;
    write!(
        page,
        "<h1>{}</h1>\n<p class=\"verdict {class}\">{}</p>\n",
        Text(&title),
        Text(&verdict.text)
    )?;
    if !verdict.reasons.is_empty() {
        page.push_str("<ul>");
        for reason in &verdict.reasons {
            write!(page, "<li>{}</li>", Text(&reason.text))?;
        }
        page.push_str("</ul>\n");
    }
    estimates(page, evaluation)?;
    forest(page, evaluation)?;
    weights(page, &evaluation.policy.name, &evaluation.diagnostics)?;
    if let (Some(against), Some(diagnostics)) =
        (&evaluation.against, &evaluation.against_diagnostics)
    {
        weights(page, &against.name, diagnostics)?;
    }
    calibration(page, evaluation)?;
    log(page, evaluation)?;
    page::end(page)
}

/// What an estimator or an added model says.
struct Line<'a> {
    name: &'a str,
    value: &'a Option<Value>,
    baseline: &'a Option<Value>,
    difference: &'a Option<Value>,
    undefined: Option<&'a str>,
}

fn lines(evaluation: &Evaluation) -> Vec<Line<'_>> {
    let estimates = evaluation.estimates.iter().map(|estimate| Line {
        name: estimate.estimator.name(),
        value: &estimate.value,
        baseline: &estimate.baseline,
        difference: &estimate.difference,
        undefined: estimate.undefined.as_deref(),
    });
    let models = evaluation.models.iter().map(|model| Line {
        name: &model.name,
        value: &model.value,
        baseline: &model.baseline,
        difference: &model.difference,
        undefined: model.undefined.as_deref(),
    });
    estimates.chain(models).collect()
}

fn estimates(page: &mut String, evaluation: &Evaluation) -> fmt::Result {
    let cell = |value: &Option<Value>| {
        value.map_or("–".to_owned(), |value| {
            format!(
                "{:.5} [{:.5}, {:.5}]",
                value.estimate, value.interval[0], value.interval[1]
            )
        })
    };
    page.push_str("<h2>Estimates</h2>\n<table><tr><th>Estimator</th><th>Policy</th><th>Baseline</th><th>Difference</th></tr>");
    for line in lines(evaluation) {
        let why = line.undefined.unwrap_or_default();
        write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{} {}</td></tr>",
            Text(line.name),
            cell(line.value),
            cell(line.baseline),
            cell(line.difference),
            Text(why)
        )?;
    }
    writeln!(
        page,
        "</table>\n<p>Estimated: {}. Intervals of {} %, of {} blocks resampled.</p>",
        Text(&evaluation.estimand),
        100.0 * evaluation.options.confidence,
        evaluation.windows.blocks
    )
}

/// From numbers in `[least, most]` to places along the drawing.
struct Axis {
    least: f64,
    most: f64,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            least = least.min(value);
            most = most.max(value);
        }
        if least > most {
            (least, most) = (0.0, 1.0);
        }
        let room = 0.05 * (most - least).max(1e-12);
        Self {
            least: least - room,
            most: most + room,
        }
    }

    fn x(&self, value: f64) -> f64 {
        let share = (value - self.least) / (self.most - self.least);
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn ticks(&self, page: &mut String, y: f64) -> fmt::Result {
        for i in 0..=4 {
            let value = self.least + f64::from(i) / 4.0 * (self.most - self.least);
            write!(
                page,
                "<text x=\"{:.1}\" y=\"{y}\" text-anchor=\"middle\">{value:.3}</text>",
                self.x(value)
            )?;
        }
        Ok(())
    }
}

fn forest(page: &mut String, evaluation: &Evaluation) -> fmt::Result {
    let mut lines: Vec<(String, Value)> = vec![];
    for line in self::lines(evaluation) {
        if let Some(difference) = line.difference {
            lines.push((line.name.to_owned(), *difference));
        }
    }
    page.push_str("<h2>Difference to the baseline, per step</h2>\n");
    if lines.is_empty() {
        page.push_str("<p>No estimator gives one.</p>\n");
        return Ok(());
    }
    let ends = lines.iter().flat_map(|(_, value)| value.interval);
    let axis = Axis::of(ends.chain([0.0]));
    let height = 30.0 * lines.len() as f64 + 40.0;
    begin_drawing(
        page,
        (WIDTH, height),
        "forest plot of the estimators' differences",
    )?;
    write!(
        page,
        "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"5\" y2=\"{1}\" stroke=\"var(--dim)\" stroke-dasharray=\"4 3\"/>",
        axis.x(0.0),
        height - 25.0
    )?;
    for (i, (name, value)) in lines.iter().enumerate() {
        let y = 22.0 + 30.0 * i as f64;
        let [lower, upper] = value.interval.map(|end| axis.x(end));
        write!(
            page,
            "<text x=\"0\" y=\"{:.1}\">{}</text><line x1=\"{lower:.1}\" x2=\"{upper:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"var(--s0)\" stroke-width=\"2\"/><circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"var(--s0)\"/>",
            y + 4.0,
            Text(name),
            axis.x(value.estimate)
        )?;
    }
    axis.ticks(page, height - 8.0)?;
    page.push_str("</svg>\n");
    Ok(())
}

/// Bars with a label on the left each.
fn bars(page: &mut String, label: &str, bars: &[(String, f64, String)]) -> fmt::Result {
    let most = bars.iter().map(|(_, value, _)| *value).fold(0.0, f64::max);
    begin_drawing(page, (WIDTH, 16.0 * bars.len() as f64 + 8.0), label)?;
    for (i, (name, value, text)) in bars.iter().enumerate() {
        let y = 4.0 + 16.0 * i as f64;
        let width = value / most.max(1e-300) * (WIDTH - LEFT - 130.0);
        write!(
            page,
            "<text x=\"0\" y=\"{:.1}\">{}</text><rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"12\" fill=\"var(--s0)\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            y + 10.0,
            Text(name),
            LEFT + width + 6.0,
            y + 10.0,
            Text(text)
        )?;
    }
    page.push_str("</svg>\n");
    Ok(())
}

fn weights(page: &mut String, name: &str, found: &Diagnostics) -> fmt::Result {
    writeln!(page, "<h2>Weights of {}</h2>", Text(name))?;
    let optional =
        |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.2}"));
    writeln!(
        page,
        "<p>Effective sample size {:.1} of {} windows, in {:.1} effective blocks; largest share {:.1} %; mean {:.3}, {} standard errors from 1; Pareto k {}; {:.1} % unsupported.</p>",
        found.ess,
        found.windows,
        found.ess_blocks,
        100.0 * found.max_share,
        found.mean,
        optional(found.mean_z),
        optional(found.pareto_k),
        100.0 * found.unsupported
    )?;
    let histogram = &found.histogram;
    let counts = histogram.counts.iter();
    let first = counts.clone().position(|count| *count > 0).unwrap_or(0);
    let last = counts.clone().rposition(|count| *count > 0).unwrap_or(0);
    let zeros = (
        "0".to_owned(),
        histogram.zeros as f64,
        histogram.zeros.to_string(),
    );
    let mut of_size = if histogram.zeros > 0 {
        vec![zeros]
    } else {
        vec![]
    };
    for bin in first..=last {
        let count = histogram.counts[bin];
        let ends = [bin, bin + 1].map(|edge| libm::pow(10.0, histogram.edges[edge]));
        let size = format!("{:.3} to {:.3}", ends[0], ends[1]);
        of_size.push((size, count as f64, count.to_string()));
    }
    page.push_str("<h3>Windows by weight</h3>\n");
    bars(page, "histogram of the weights of windows", &of_size)?;
    page.push_str("<h3>Effective sample size after each step of a window</h3>\n");
    let steps = found.ess_per_step.iter().zip(&found.windows_per_step);
    let steps: Vec<_> = steps
        .take(60)
        .enumerate()
        .map(|(t, (ess, windows))| {
            (
                format!("step {}", t + 1),
                *ess,
                format!("{ess:.1} of {windows}"),
            )
        })
        .collect();
    bars(page, "effective sample size over steps", &steps)
}

fn calibration(page: &mut String, evaluation: &Evaluation) -> fmt::Result {
    page.push_str("<h2>Propensities against what was drawn</h2>\n<table><tr><th>Head</th><th>Choices</th><th>Coverage</th><th>Explored</th><th>Epsilon</th></tr>");
    for head in &evaluation.calibration {
        write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{:.3} ± {:.3}</td><td>{:.4}</td><td>{:.4}</td></tr>",
            Text(&head.head),
            head.choices,
            head.coverage,
            head.coverage_std_err,
            head.explored,
            head.epsilon
        )?;
    }
    page.push_str("</table>\n<p>Coverage is the mean of 1/(levels × propensity): 1 where all that is allowed can be drawn, never more.</p>\n");
    let points: Vec<_> = evaluation
        .calibration
        .iter()
        .flat_map(|head| head.bins.iter().map(|bin| (head.head.as_str(), bin)))
        .collect();
    if points.is_empty() {
        return Ok(());
    }
    const SIDE: f64 = 260.0;
    page.push_str("<h3>Of heads with two levels: share drawn, by propensity</h3>\n");
    begin_drawing(page, (SIDE, SIDE), "share drawn by propensity")?;
    page.push_str("<rect x=\"30\" y=\"10\" width=\"220\" height=\"220\" fill=\"none\" stroke=\"var(--dim)\"/><line x1=\"30\" y1=\"230\" x2=\"250\" y2=\"10\" stroke=\"var(--dim)\" stroke-dasharray=\"4 3\"/>\
<text x=\"30\" y=\"246\">0</text><text x=\"243\" y=\"246\">1</text><text x=\"16\" y=\"18\">1</text>");
    for (head, bin) in points {
        write!(
            page,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"var(--s0)\"><title>{}: propensity {:.3}, share {:.3} of {} draws</title></circle>",
            30.0 + 220.0 * bin.propensity,
            230.0 - 220.0 * bin.share,
            Text(head),
            bin.propensity,
            bin.share,
            bin.draws
        )?;
    }
    page.push_str("</svg>\n");
    Ok(())
}

fn log(page: &mut String, evaluation: &Evaluation) -> fmt::Result {
    let (log, windows) = (&evaluation.log, &evaluation.windows);
    page.push_str("<h2>The log</h2>\n<table>");
    let missing: u64 = log.rows_without_outcome.values().sum();
    let rows: [(&str, u64); 13] = [
        ("rows", log.rows),
        ("joint decisions", log.steps),
        ("hosts", log.hosts),
        ("episodes", log.episodes),
        ("windows", windows.begun),
        ("whole windows", windows.whole),
        ("shadows and proposals, left out", log.not_applied()),
        (
            "interventions, part of the environment",
            log.interventions(),
        ),
        ("heads forced", log.forced),
        ("heads altered after the draw", log.altered.count),
        ("rows without an outcome", missing),
        (
            "joint decisions without reward",
            log.steps_without_reward.count,
        ),
        ("gaps", log.gaps.count),
    ];
    for (name, count) in rows {
        write!(page, "<tr><td>{name}</td><td>{count}</td></tr>")?;
    }
    page.push_str("</table>\n");
    for behaviour in &log.behaviours {
        writeln!(
            page,
            "<p>Behaviour: {} {}, {} rows, epsilon {} to {}.</p>",
            Text(&behaviour.policy),
            Text(&behaviour.version),
            behaviour.rows,
            behaviour.epsilon.0,
            behaviour.epsilon.1
        )?;
    }
    for note in &evaluation.notes {
        writeln!(page, "<p>Note: {}.</p>", Text(note))?;
    }
    writeln!(page, "<p>Exposure: {}.</p>", Text(&evaluation.exposure))
}
