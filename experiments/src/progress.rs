//! Progress bars on standard error.

use blkpilot_models::oracle::study::Progress as Stage;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

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
            } => {
                let value =
                    episodic_return.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
                self.bar.set_length(*planned);
                self.bar.set_position(*env_steps);
                self.bar
                    .set_message(format!("return {value}  {note}  {steps_per_s:.0} steps/s"));
            }
            // Also where no bar is drawn.
            Event::Note(note) => self.bar.suspend(|| eprintln!("{note}")),
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
        }
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
        fits().inc(1);
        episodes(2).inc(1);
    }
}
