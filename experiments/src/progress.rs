//! Progress bars on standard error.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::train::Event;

/// A bar that follows a run.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar over `env_steps` host-steps. Drawn only where standard error is a terminal.
    pub(crate) fn over(env_steps: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(env_steps), ProgressDrawTarget::stderr());
        bar.set_style(style(
            "{bar:28} {human_pos}/{human_len} steps  {msg}  {eta} left",
        ));
        Self { bar }
    }

    pub(crate) fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Update {
                env_steps,
                episodic_return,
                steps_per_s,
                report,
            } => {
                let value =
                    episodic_return.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
                self.bar.set_position(*env_steps);
                self.bar.set_message(format!(
                    "return {value}  policy loss {:+.4}  value loss {:.4}  {steps_per_s:.0} steps/s",
                    report.policy_loss, report.value_loss
                ));
            }
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

    pub(crate) fn end(&self) {
        self.bar.finish();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are valid: a test draws them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bars_can_be_drawn() {
        let mut progress = Progress::over(10);
        progress.show(&Event::Comparing { episodes: 2 });
        progress.show(&Event::Compared);
        progress.end();
    }
}
