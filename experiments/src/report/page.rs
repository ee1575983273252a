//! The page.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use blkpilot_evaluate::page::{self, Text, begin_drawing};

use super::Section;
use super::behaviour::{Bin, HeadBehaviour};
use super::figures::{Figure, GroupFigures, PolicyRow};
use super::gap::Gap;
use super::plots::{MOST_CURVES, curves};
use crate::compare::TRAINED;
use crate::version::CODE;

const STYLE: &str = "body{max-width:62rem}figure{margin:1rem 0}figcaption,.note{color:var(--dim);font-size:.88rem}\
.key{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin:0 .35rem 0 1rem;vertical-align:-1px}\
.key:first-child{margin-left:0}svg.wide{width:100%}.scroll{overflow-x:auto}td.text,th.text{text-align:left}\
pre{background:var(--soft);padding:.7rem 1rem;overflow-x:auto;font-size:.85rem}code{font-size:.9em}\
.warning{border-left:.4rem solid var(--bad);background:var(--soft);padding:.5rem 1rem}\
details>summary{cursor:pointer}td small{color:var(--dim)}";

/// Width of the drawings within the page.
const WIDTH: f64 = 900.0;

pub(super) fn page(dirs: &[PathBuf], sections: &[Section]) -> String {
    let mut page = String::new();
    // Writing to memory does not fail.
    let _ = write_page(&mut page, dirs, sections);
    page
}

fn write_page(page: &mut String, dirs: &[PathBuf], sections: &[Section]) -> fmt::Result {
    let title = match sections {
        [only] => only.group.label.clone(),
        several => format!("{} configurations", several.len()),
    };
    let title = format!("Training report: {title}");
    page::begin(page, &title, STYLE)?;
    write!(page, "<h1>{}</h1>\n<p>", Text(&title))?;
    let runs: Vec<_> = sections.iter().flat_map(|own| &own.group.runs).collect();
    let done = sections
        .iter()
        .map(|own| own.group.done().count())
        .sum::<usize>();
    let names: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let runs_text = if runs.len() == 1 { "run" } else { "runs" };
    writeln!(
        page,
        "{} {runs_text} in {}, {done} of them trained to the end and compared. Code: {}.</p>",
        runs.len(),
        Text(&names.join(", ")),
        Text(&versions(sections))
    )?;
    deviations(page, sections)?;
    learning(page, sections)?;
    if sections.len() > 1 {
        ranking(page, sections)?;
    }
    for section in sections {
        configuration(page, section, sections.len() > 1)?;
    }
    reproduction(page, sections)?;
    page::end(page)
}

fn versions(sections: &[Section]) -> String {
    let runs = sections.iter().flat_map(|own| &own.group.runs);
    let versions: BTreeSet<&str> = runs
        .flat_map(|run| run.code_versions.iter().map(String::as_str))
        .collect();
    let versions: Vec<&str> = versions.into_iter().collect();
    match versions[..] {
        [] => "not known".to_owned(),
        _ => versions.join(", "),
    }
}

/// Where this build plays a policy otherwise than the one that trained it.
fn deviations(page: &mut String, sections: &[Section]) -> fmt::Result {
    for section in sections {
        for (seed, said, found) in section.figures.iter().flat_map(|own| &own.deviations) {
            writeln!(
                page,
                "<p class=\"warning\">{}, seed {seed}: its summary says a mean reward of {said:.6}, and playing its episodes \
again gives {found:.6}. The episodes were played with {}; the build that trained the run plays them otherwise.</p>",
                Text(&section.group.label),
                Text(CODE)
            )?;
        }
    }
    Ok(())
}

fn learning(page: &mut String, sections: &[Section]) -> fmt::Result {
    let Some(svg) = curves(sections) else {
        return Ok(());
    };
    page.push_str("<h2>Learning curves</h2>\n<figure>");
    page.push_str(&svg);
    page.push_str("<figcaption>");
    for (number, section) in sections.iter().take(MOST_CURVES).enumerate() {
        key(page, number, &section.group.label)?;
    }
    page.push_str("<br>Return of the episodes of an update, as a moving average over 20 updates: median over runs, band \
from the first to the third quartile.");
    if sections.len() > MOST_CURVES {
        write!(
            page,
            " Only the best {MOST_CURVES} configurations are drawn."
        )?;
    }
    page.push_str("</figcaption></figure>\n");
    Ok(())
}

fn key(page: &mut String, number: usize, label: &str) -> fmt::Result {
    write!(
        page,
        "<span class=\"key\" style=\"background:var(--s{number})\"></span>{}",
        Text(label)
    )
}

fn ranking(page: &mut String, sections: &[Section]) -> fmt::Result {
    page.push_str("<h2>Configurations, best median first</h2>\n<div class=\"scroll\"><table><tr><th>Configuration</th><th>Runs</th>\
<th>Median</th><th>Mean</th><th>Interquartile mean</th><th>Worst</th><th>Best</th><th>Difference to the first</th></tr>");
    let first = sections.first().and_then(|own| own.figures.as_ref());
    for (place, section) in sections.iter().enumerate() {
        write!(
            page,
            "<tr><td>{}</td><td>{}/{}</td>",
            Text(&section.group.label),
            section.group.done().count(),
            section.group.runs.len()
        )?;
        let Some(figures) = &section.figures else {
            page.push_str("<td colspan=\"6\">not compared</td></tr>");
            continue;
        };
        let extremes = figures
            .scores
            .iter()
            .fold((f64::MAX, f64::MIN), |(low, high), own| {
                (low.min(*own), high.max(*own))
            });
        let trained = &figures.policies[0];
        let difference = first
            .filter(|_| place > 0)
            .and_then(|first| figures.minus(first));
        write!(
            page,
            "<td>{:.4}</td><td>{}</td><td>{}</td><td>{:.4}</td><td>{:.4}</td><td>{}</td></tr>",
            figures.median,
            cell(Some(trained.mean)),
            cell(trained.interquartile_mean),
            extremes.0,
            extremes.1,
            signed(difference)
        )?;
    }
    page.push_str("</table></div>\n<p class=\"note\">Each run counts by the mean reward of its policy over the evaluation episodes; \
[…] are 95 % intervals. Differences are paired by evaluation episode, with runs and episodes resampled, and given from three \
runs on. The first is the best of those shown, and would look a little worse on new seeds.</p>\n");
    Ok(())
}

fn configuration(page: &mut String, section: &Section, is_named: bool) -> fmt::Result {
    if is_named {
        writeln!(page, "<h2>{}</h2>", Text(&section.group.label))?;
    }
    let Some(figures) = &section.figures else {
        let nothing_counted =
            "On every evaluation seed there was a policy for which nothing counted.";
        let why = section.group.nothing_to_play().unwrap_or(nothing_counted);
        return writeln!(page, "<p>{why}</p>");
    };
    let level = if is_named { "h3" } else { "h2" };
    writeln!(
        page,
        "<{level}>Policies on the evaluation episodes</{level}>"
    )?;
    policies(page, section, figures)?;
    intervals(page, &figures.policies)?;
    runs(page, section)?;
    if let Some(behaviour) = &section.behaviour {
        writeln!(
            page,
            "<{level}>What the trained policy does where</{level}>"
        )?;
        for head in behaviour {
            head_shares(page, head)?;
        }
        page.push_str("<p class=\"note\">Choices of the trained policies of all runs, as they are compared, on the evaluation episodes, where there \
was a choice. Thirds are of what the feature was at these choices.</p>\n");
    }
    writeln!(page, "<{level}>What is lost against an oracle</{level}>")?;
    gap(page, section)
}

fn policies(page: &mut String, section: &Section, figures: &GroupFigures) -> fmt::Result {
    page.push_str("<div class=\"scroll\"><table><tr><th>Policy</th><th>Mean reward</th><th>Interquartile mean</th><th>Loss</th>\
<th>Trained − it</th></tr>");
    for row in &figures.policies {
        write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            Text(&row.name),
            cell(Some(row.mean)),
            cell(row.interquartile_mean),
            row.loss.map_or_else(dash, |loss| format!("{loss:.4}")),
            signed(row.difference)
        )?;
    }
    let config = &section.group.config;
    let left_out = match figures.left_out {
        0 => String::new(),
        seeds => format!(", {seeds} more left out, on which nothing counted for one of them"),
    };
    writeln!(
        page,
        "</table></div>\n<p class=\"note\">{} runs; {}, over {} episodes from evaluation seed {} on{left_out}. […] are 95 % bootstrap \
intervals: of the trained policy over {}, of the others over episodes, of differences (paired by episode) over {}. \
The interquartile mean is over runs and takes three of them.</p>",
        figures.scores.len(),
        crate::compare::measure_of(config),
        figures.episodes,
        config.evaluation.first_seed,
        figures.policies[0].resampled.text(),
        figures.resampled.text()
    )
}

/// Means with their intervals, as a picture.
fn intervals(page: &mut String, rows: &[PolicyRow]) -> fmt::Result {
    const LEFT: f64 = 120.0;
    const RIGHT: f64 = 30.0;
    let ends = rows.iter().flat_map(|row| row.mean.ci95);
    let (low, high) = ends.fold((f64::MAX, f64::MIN), |(low, high), end| {
        (low.min(end), high.max(end))
    });
    let room = 0.04 * (high - low) + 1e-12;
    let (low, high) = (low - room, high + room);
    let x = |value: f64| LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT);
    let height = 26.0 * rows.len() as f64 + 34.0;
    page.push_str("<figure>");
    begin_drawing(
        page,
        (WIDTH, height),
        "mean reward by policy, with 95 % intervals",
    )?;
    for (value, text) in ticks(low, high) {
        write!(
            page,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"6\" y2=\"{1:.1}\" stroke=\"var(--line)\"/>\
<text x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"middle\" fill=\"var(--dim)\">{text}</text>",
            x(value),
            height - 26.0,
            height - 8.0
        )?;
    }
    for (number, row) in rows.iter().enumerate() {
        let y = 20.0 + 26.0 * number as f64;
        let (colour, weight) = if row.name == TRAINED {
            ("var(--s0)", " font-weight=\"600\"")
        } else {
            ("var(--dim)", "")
        };
        write!(
            page,
            "<text x=\"0\" y=\"{:.1}\"{weight}>{}</text><line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" \
stroke=\"{colour}\" stroke-width=\"3\" stroke-linecap=\"round\"/><circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\"/>",
            y + 4.0,
            Text(&row.name),
            x(row.mean.ci95[0]),
            x(row.mean.ci95[1]),
            x(row.mean.value)
        )?;
    }
    page.push_str("</svg></figure>\n");
    Ok(())
}

/// Round numbers between two others: multiples of 1, 2 or 5 times a power of ten, at most eight of them.
fn ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let least = (high - low) / 8.0;
    let power = libm::pow(10.0, libm::floor(libm::log10(least)));
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = step
        .into_iter()
        .find(|step| *step >= least)
        .unwrap_or(10.0 * power);
    let digits = (-libm::floor(libm::log10(step) + 1e-9)).max(0.0) as usize;
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last)
        .map(|number| number as f64 * step)
        .map(|value| (value, format!("{value:.digits$}")))
        .collect()
}

/// The figures of each run, as its own summary has them.
fn runs(page: &mut String, section: &Section) -> fmt::Result {
    page.push_str("<details><summary>Runs, as their summaries have them</summary><div class=\"scroll\"><table><tr><th>Seed</th>\
<th>Steps</th><th>Reward</th><th>95 % interval</th><th>Return while learning</th><th>Steps/s</th><th>Policy</th></tr>");
    for run in &section.group.runs {
        let summary = run.summary.clone().unwrap_or_default();
        let trained = &summary["policies"][TRAINED];
        let number = |value: &serde_json::Value, digits: usize| {
            value
                .as_f64()
                .map_or_else(dash, |value| format!("{value:.digits$}"))
        };
        let end = |number: usize| trained["reward_ci95"][number].as_f64();
        let interval = end(0).zip(end(1));
        let hash = &run.checkpoint.manifest.tensors_sha256;
        write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td><code>{}</code></td></tr>",
            run.seed,
            run.checkpoint.manifest.env_steps,
            number(&trained["reward_mean"], 6),
            interval.map_or_else(dash, |(low, high)| format!("{low:.4} to {high:.4}")),
            number(&summary["episodic_return"], 3),
            number(&summary["steps_per_s"], 0),
            Text(hash.get(..12).unwrap_or(hash))
        )?;
    }
    page.push_str("</table></div></details>\n");
    Ok(())
}

/// Bars of shares: all choices first, then by feature.
fn head_shares(page: &mut String, head: &HeadBehaviour) -> fmt::Result {
    const LEFT: f64 = 250.0;
    const RIGHT: f64 = 70.0;
    const ROW: f64 = 20.0;
    let rows: usize = head.features.iter().map(|own| own.bins.len()).sum();
    let height = ROW * (rows + 1) as f64 + 12.0 * head.features.len() as f64 + 8.0;
    write!(page, "<figure><figcaption><b>{}</b>: ", Text(&head.head))?;
    for (number, level) in head.levels.iter().enumerate() {
        key(page, number % MOST_CURVES, level)?;
    }
    page.push_str("</figcaption>");
    let label = format!("share of each level of {} by features", head.head);
    begin_drawing(page, (WIDTH, height), &label)?;
    let mut y = 4.0;
    let bar = |page: &mut String, y: f64, name: &str, choices: usize, shares: &[f64]| {
        write!(
            page,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 13.0,
            Text(name)
        )?;
        let mut x = LEFT;
        for (number, share) in shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
            let width = share * (WIDTH - LEFT - RIGHT);
            write!(
                page,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"var(--s{})\"><title>{}: {:.1} %</title></rect>",
                ROW - 4.0,
                number % MOST_CURVES,
                Text(&head.levels[number]),
                100.0 * share
            )?;
            if width > 34.0 {
                write!(
                    page,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"11\" fill=\"var(--paper)\">{:.0} %</text>",
                    x + width / 2.0,
                    y + 12.0,
                    100.0 * share
                )?;
            }
            x += width;
        }
        write!(
            page,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"var(--dim)\" font-size=\"11\">{choices}</text>",
            WIDTH - RIGHT + 6.0,
            y + 12.0
        )
    };
    bar(page, y, "all choices", head.choices, &head.shares)?;
    for feature in &head.features {
        y += 12.0;
        for bin in &feature.bins {
            y += ROW;
            let name = format!("{} {}", feature.feature, range_text(bin));
            bar(page, y, &name, bin.choices, &bin.shares)?;
        }
    }
    page.push_str("</svg></figure>\n");
    Ok(())
}

fn range_text(bin: &Bin) -> String {
    let [low, high] = bin.range.map(short);
    if low == high {
        format!("= {low}")
    } else {
        format!("{low} to {high}")
    }
}

/// Two or three digits are enough to tell where.
fn short(value: f32) -> String {
    let digits = match value.abs() {
        0.0 => return "0".to_owned(),
        size if size >= 100.0 => 0,
        size => (1.0 - libm::floorf(libm::log10f(size))).max(0.0) as usize,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn gap(page: &mut String, section: &Section) -> fmt::Result {
    let gap: &Gap = match &section.gap {
        Some(Ok(gap)) => gap,
        Some(Err(problem)) => {
            return writeln!(page, "<p>There is no oracle of it: {}.</p>", Text(problem));
        }
        None => {
            page.push_str("<p>Not looked into: an oracle needs one simulated host, <code>environment.scenario</code>, and this \
configuration plays on another environment or draws its hosts; or it was not asked for. <code>blkpilot-lab oracle SCENARIO \
--policy DIR/policy</code> judges a policy on any scenario.</p>\n");
            return Ok(());
        }
    };
    writeln!(
        page,
        "<p>On <code>{}</code>, {} episodes. The lagged oracle sees what a policy sees, one interval late, and takes the best setting \
for it; regret is (lagged oracle − policy)/(lagged oracle − random), 0 as good as it and 1 as bad as random.</p>",
        Text(&gap.scenario),
        gap.episodes
    )?;
    page.push_str("<table><tr><th>Policy</th><th>Mean reward</th><th>Regret</th></tr>");
    for (name, reward, regret) in &gap.policies {
        let regret = regret.map_or_else(dash, |own| {
            format!(
                "{:.1} % <small>[{:.1}, {:.1}]</small>",
                100.0 * own.value,
                100.0 * own.ci95[0],
                100.0 * own.ci95[1]
            )
        });
        write!(
            page,
            "<tr><td>{}</td><td>{reward:.4}</td><td>{regret}</td></tr>",
            Text(name)
        )?;
    }
    let how = if gap.exhaustive >= 1.0 {
        "The oracle has tried every setting in every state."
    } else {
        "The oracle has searched in some states, where there may be better settings than it knows: \
<code>blkpilot-lab oracle</code> searches longer and gives a bound."
    };
    writeln!(
        page,
        "</table>\n<p class=\"note\">{how} Intervals: 95 %, over episodes.</p>"
    )
}

fn reproduction(page: &mut String, sections: &[Section]) -> fmt::Result {
    page.push_str("<h2>Made by</h2>\n");
    for section in sections {
        let group = &section.group;
        let config = toml::to_string(&group.config.document).unwrap_or_default();
        writeln!(
            page,
            "<details><summary>{}: config</summary><pre>{}</pre></details>",
            Text(&group.label),
            Text(&config)
        )?;
    }
    page.push_str("<div class=\"scroll\"><table><tr><th>Run</th><th class=\"text\">Code</th><th class=\"text\">Train it again and compare</th></tr>");
    for section in sections {
        for run in &section.group.runs {
            write!(
                page,
                "<tr><td>{}, seed {}</td><td class=\"text\">{}</td><td class=\"text\"><code>blkpilot-lab reproduce {}</code></td></tr>",
                Text(&section.group.label),
                run.seed,
                Text(&run.code_versions.join(", then ")),
                Text(&quoted(&run.dir))
            )?;
        }
    }
    page.push_str("</table></div>\n");
    Ok(())
}

/// As a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=,".contains(c);
    if text.chars().all(is_plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn cell(figure: Option<Figure>) -> String {
    figure.map_or_else(dash, |own| {
        format!(
            "{:.4} <small>[{:.4}, {:.4}]</small>",
            own.value, own.ci95[0], own.ci95[1]
        )
    })
}

fn signed(figure: Option<Figure>) -> String {
    figure.map_or_else(dash, |own| {
        format!(
            "{:+.4} <small>[{:+.4}, {:+.4}]</small>",
            own.value, own.ci95[0], own.ci95[1]
        )
    })
}

fn dash() -> String {
    "–".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let texts = |low, high| -> Vec<String> {
            ticks(low, high).into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(
            texts(-1.007, -0.641),
            [
                "-1.00", "-0.95", "-0.90", "-0.85", "-0.80", "-0.75", "-0.70", "-0.65"
            ]
        );
        assert_eq!(texts(0.0, 500.0), ["0", "100", "200", "300", "400", "500"]);
    }

    #[test]
    fn numbers_are_told_with_few_digits() {
        let told = [0.0, 0.0042, 0.28, 1.0, 9.43, 85.25, 12703.0, -0.5].map(short);
        assert_eq!(
            told,
            ["0", "0.0042", "0.28", "1", "9.4", "85", "12703", "-0.5"]
        );
    }

    #[test]
    fn paths_are_quoted_as_a_shell_takes_them() {
        assert_eq!(
            quoted(Path::new("out/a=1,b=2/seed-1")),
            "out/a=1,b=2/seed-1"
        );
        assert_eq!(quoted(Path::new("it's $HOME")), "'it'\\''s $HOME'");
    }
}
