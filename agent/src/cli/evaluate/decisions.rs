//! `blkpilot evaluate --log`: a decision log.

use std::path::{Path, PathBuf};

use blkpilot_evaluate::{
    Block, EvaluateError, Exposure, Extras, Mixed, Options, Progress, ValueModel, VerdictRule,
    evaluate_with, html, verdict,
};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::target::{self, Choice};
use super::verdict_text;
use crate::cli::CliError;
use crate::cli::log::{find, parse_time};
use crate::cli::output::print;
use crate::decision::now_us;
use crate::policies::judging::Judged;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExposureArg {
    /// The weight is that of all choices of the host
    Host,
    /// Assume that a disk's reward depends on no other disk's choice
    Disk,
}

/// What is evaluated, and how; `evaluate` and `promote` share it.
#[derive(Debug, Args)]
pub(in crate::cli) struct Settings {
    /// Compare with this policy, a checkpoint's directory or `random`, instead of the behaviour in the log
    #[arg(long, value_name = "POLICY")]
    pub(in crate::cli) against: Option<PathBuf>,
    /// How the policies choose
    #[arg(long, value_enum, default_value = "greedy")]
    pub(in crate::cli) selection: Choice,
    /// Probability with which they draw from all that is allowed instead
    #[arg(long, value_name = "E", default_value_t = 0.0, value_parser = parse_epsilon)]
    pub(in crate::cli) epsilon: f64,
    /// Discount per step; by default that of the checkpoint's training, or 0.9 where it says none
    #[arg(long, value_name = "G")]
    pub(in crate::cli) gamma: Option<f64>,
    /// Steps of the windows that the log is cut into
    #[arg(long, value_name = "STEPS", default_value_t = 10)]
    pub(in crate::cli) horizon: usize,
    /// Who is exposed to whose choice
    #[arg(long, value_enum, default_value = "host")]
    exposure: ExposureArg,
    /// What is resampled: windows of one host within this span, such as 10min, or within one `episode`
    #[arg(long, value_name = "SPAN", default_value = "10min", value_parser = parse_block)]
    pub(in crate::cli) block: Block,
    /// Admit a log of several policies, or of several weightings of the reward
    #[arg(long)]
    mixed: bool,
    /// Confidence of the intervals
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub(in crate::cli) confidence: f64,
    /// Replicates of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 2000)]
    replicates: usize,
    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Only this host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Least effective sample size for a verdict, in windows
    #[arg(long, value_name = "N", default_value_t = 50.0)]
    least_ess: f64,
    /// Reward by which a policy may be worse and yet count as not worse
    #[arg(long, value_name = "REWARD", default_value_t = 0.0)]
    margin: f64,
}

/// What `evaluate` itself takes; `blkpilot-lab evaluate` takes the same.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// The log's directory, or the data directory of the service that holds it
    #[arg(long, value_name = "DIR", requires = "policy")]
    log: Option<PathBuf>,
    /// The policy: a checkpoint's directory, or `random`
    #[arg(long, value_name = "POLICY", requires = "log")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Only from then on: a time such as 2025-03-09T10:00:00Z, or so long ago, such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<i64>,
    /// Only before then
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<i64>,
    /// Print one JSON object: `evaluation` and `verdict`
    #[arg(long)]
    json: bool,
    /// Write a page with the estimates and diagnostics to this file; it needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

fn parse_epsilon(text: &str) -> Result<f64, String> {
    let epsilon: f64 = text.parse().map_err(|_| "must be a number".to_owned())?;
    if (0.0..=1.0).contains(&epsilon) {
        Ok(epsilon)
    } else {
        Err("must be in [0, 1]".to_owned())
    }
}

fn parse_block(text: &str) -> Result<Block, String> {
    if text == "episode" {
        return Ok(Block::Episode);
    }
    humantime::parse_duration(text)
        .map(|span| Block::Seconds(span.as_secs_f64()))
        .map_err(|_| "must be a span such as 10min, or `episode`".to_owned())
}

/// Evaluates a policy on the log in `log`, decided from `since` and before `until`; `models` are added.
pub(in crate::cli) fn judge(
    log: &Path,
    policy: &Path,
    settings: &Settings,
    (since, until): (Option<i64>, Option<i64>),
    models: Vec<&mut dyn ValueModel>,
) -> Result<Judged, CliError> {
    let Settings {
        selection, epsilon, ..
    } = *settings;
    let against = settings.against.as_deref();
    let named = target::load(policy, against, selection, epsilon)?;
    let against = against
        .map(|other| target::load(other, Some(policy), selection, epsilon))
        .transpose()?;
    let now = now_us();
    let options = Options {
        gamma: settings.gamma.or(named.gamma).unwrap_or(0.9),
        horizon: settings.horizon,
        exposure: match settings.exposure {
            ExposureArg::Host => Exposure::Host,
            ExposureArg::Disk => Exposure::Disk,
        },
        block: settings.block,
        mixed: if settings.mixed {
            Mixed::Admitted
        } else {
            Mixed::Refused
        },
        confidence: settings.confidence,
        replicates: settings.replicates,
        seed: settings.seed,
        from_us: since,
        // Rows that come meanwhile would be in one pass and not in another.
        until_us: until.or(Some(now)),
        host: settings.host.clone(),
        now_us: Some(now),
    };
    let bar = progress();
    let mut tick = |at: Progress| show(&bar, at);
    let against = against.as_ref().map(|named| &*named.policy);
    let mut extras = Extras {
        progress: Some(&mut tick),
        ..Extras::default()
    };
    // One by one: models that outlive the progress bar are then lent for as long as it.
    for model in models {
        extras.models.push(model);
    }
    let evaluation = evaluate_with(log, &*named.policy, against, &options, extras);
    bar.finish_and_clear();
    let evaluation = evaluation?;
    let rule = VerdictRule {
        least_ess: settings.least_ess,
        margin: settings.margin,
        ..VerdictRule::default()
    };
    let verdict = verdict(&evaluation, &rule);
    Ok(Judged {
        evaluation,
        verdict,
    })
}

/// On standard error, and only on a terminal.
fn progress() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {human_pos}/{human_len} rows {eta}");
    bar.set_style(style.expect("the template is valid"));
    bar
}

fn show(bar: &ProgressBar, at: Progress) {
    bar.set_message(format!("pass {} of {}", at.pass + 1, at.passes));
    bar.set_length(at.of.unwrap_or(at.rows));
    bar.set_position(at.rows);
}

/// Evaluates a policy on a decision log and prints what came of it, with the estimates of `models` beside the others.
/// This is `blkpilot evaluate --log`, without models, and `blkpilot-lab evaluate`, with one.
///
/// # Errors
/// What keeps it from being evaluated, or from being printed.
pub fn run(args: &LogArgs, models: Vec<&mut dyn ValueModel>) -> Result<(), CliError> {
    let (Some(log), Some(policy)) = (&args.log, &args.policy) else {
        let problem = "name a log and a policy with --log and --policy";
        return Err(CliError::Usage(problem.to_owned()));
    };
    let log = find(log)?;
    let judged = judge(
        &log,
        policy,
        &args.settings,
        (args.since, args.until),
        models,
    )?;
    let Judged {
        evaluation,
        verdict,
    } = &judged;
    if let Some(file) = &args.html {
        std::fs::write(file, html(evaluation, verdict))
            .map_err(|error| CliError::Failed(format!("{}: {error}", file.display())))?;
    }
    if args.json {
        let whole = json!({ "evaluation": evaluation, "verdict": verdict });
        return print(format_args!("{whole:#}"));
    }
    print(verdict_text::report(evaluation, verdict))
}

impl From<EvaluateError> for CliError {
    fn from(error: EvaluateError) -> Self {
        match error {
            EvaluateError::Option { .. } | EvaluateError::Exposure { .. } => {
                Self::Usage(error.to_string())
            }
            other => Self::Failed(other.to_string()),
        }
    }
}
