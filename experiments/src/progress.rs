//! Progress bars on standard error.

use blkpilot_models::oracle::study::Progress as Stage;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report::Progress as ReportEvent;
use crate::sweep::Progress as SweepEvent;
use crate::train::Event;

/// A bar that follows a run.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Stage and scenario that the bar is about, in a study.
    stage: Option<(&'static str, String)>,
}

impl Progress {
    /// A bar over `env_steps` host-steps. Drawn only where standard error is a terminal.
    pub(crate) fn over(env_steps: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(env_steps), ProgressDrawTarget::stderr());
        bar.set_style(style(
            "{bar:28} {human_pos}/{human_len} steps  {msg}  {eta} left",
        ));
        Self { bar, stage: None }
    }

    pub(crate) fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Update {
                env_steps,
                planned,
                episodic_return,
                steps_per_s,
                note,
                ..
            } => {
                let value =
                    episodic_return.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
                self.bar.set_length(*planned);
                self.bar.set_position(*env_steps);
                self.bar
                    .set_message(format!("return {value}  {note}  {steps_per_s:.0} steps/s"));
            }
            // Also where no bar is drawn.
            Event::Note(note) => self.say(note),
            Event::Comparing { episodes } => {
                self.bar.finish();
                self.bar = ProgressBar::with_draw_target(
                    Some(*episodes as u64),
                    ProgressDrawTarget::stderr(),
                );
                self.bar.set_style(style(
                    "{bar:28} {human_pos}/{human_len} episodes compared  {eta} left",
                ));
            }
            Event::Compared => self.bar.inc(1),
            Event::Started { .. } | Event::Saved { .. } | Event::Ended { .. } => {}
        }
    }

    /// Says something without disturbing the bar.
    pub(crate) fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    /// Shows how far the study of a scenario is.
    pub(crate) fn show_study(&mut self, scenario: &str, progress: Stage) {
        let (name, done, of) = match progress {
            Stage::States(done, of) => ("phase vectors looked into", done, of),
            Stage::Episodes(done, of) => ("episodes played", done, of),
            Stage::Judged(done, of) => ("policies judged", done, of),
        };
        // Called for each value computed: what has not changed is left alone.
        let stage = Some((name, scenario.to_owned()));
        if self.stage != stage {
            self.bar
                .set_style(style("{bar:28} {human_pos}/{human_len} {msg}"));
            self.bar.set_length(of as u64);
            self.bar.set_message(format!("{name}, {scenario}"));
            self.stage = stage;
        }
        self.bar.set_position(done as u64);
    }

    pub(crate) fn end(&self) {
        self.bar.finish();
    }
}

/// A bar over the host-steps of all runs of a sweep, with a line for each that has ended.
pub(crate) struct SweepProgress {
    bar: ProgressBar,
    has_begun: bool,
}

impl SweepProgress {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        bar.set_style(style(
            "{bar:28} {human_pos}/{human_len} steps of all runs  {eta} left",
        ));
        Self {
            bar,
            has_begun: false,
        }
    }

    pub(crate) fn show(&mut self, progress: SweepEvent<'_>) {
        match progress {
            SweepEvent::Steps { done, planned } => {
                self.bar.set_length(planned);
                self.bar.set_position(done);
                if !self.has_begun {
                    // What was done before says nothing of the time that is left.
                    self.has_begun = true;
                    self.bar.reset_eta();
                }
            }
            SweepEvent::Ended { dir, text } => {
                self.bar.suspend(|| eprintln!("{}: {text}", dir.display()));
            }
        }
    }

    pub(crate) fn end(&self) {
        self.bar.finish();
    }
}

/// A bar over the episodes of a report.
pub(crate) struct ReportProgress {
    bar: ProgressBar,
}

impl ReportProgress {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        bar.set_style(style(
            "{bar:28} {human_pos}/{human_len} episodes played  {msg}",
        ));
        Self { bar }
    }

    pub(crate) fn show(&self, progress: ReportEvent) {
        match progress {
            ReportEvent::Episodes(count) => self.bar.set_length(count as u64),
            ReportEvent::Played => self.bar.inc(1),
            // Told of for each value that it computes.
            ReportEvent::Oracle if self.bar.message().is_empty() => {
                self.bar.set_message("asking the oracle");
            }
            ReportEvent::Oracle => {}
        }
    }

    pub(crate) fn end(&self) {
        self.bar.finish();
    }
}

/// A bar over fits; drawn only where standard error is a terminal.
pub(crate) fn fits() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    bar.set_style(style("{bar:28} {human_pos}/{human_len} fits  {eta} left"));
    bar
}

/// A bar over episodes; drawn only where standard error is a terminal.
pub(crate) fn episodes(count: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(count), ProgressDrawTarget::stderr());
    bar.set_style(style(
        "{bar:28} {human_pos}/{human_len} episodes logged  {eta} left",
    ));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are valid: a test draws them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bars_can_be_drawn() {
        let mut progress = Progress::over(10);
        progress.show(&Event::Comparing { episodes: 2 });
        progress.show(&Event::Compared);
        progress.show_study("mixed", Stage::States(1, 2));
        progress.end();
        let mut sweep = SweepProgress::new();
        sweep.show(SweepEvent::Steps {
            done: 1,
            planned: 2,
        });
        sweep.end();
        let report = ReportProgress::new();
        report.show(ReportEvent::Played);
        report.end();
        fits().inc(1);
        episodes(2).inc(1);
    }
}
