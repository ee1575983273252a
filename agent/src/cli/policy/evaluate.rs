//! `blkpilot policy evaluate` and `evaluations`: versions judged on the service's own decisions.

use blkpilot_proto::v1;
use blkpilot_proto::v1::evaluation_service_client::EvaluationServiceClient;
use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::{ServerArgs, follow, response, text};
use crate::cli::CliError;
use crate::cli::json::Json;
use crate::cli::output::print;
use crate::cli::pages;
use crate::client::Connection;
use crate::policies::store::VersionName;

/// When a verdict is believed.
#[derive(Debug, Args)]
pub(super) struct JudgingArgs {
    /// Steps of the windows that the log is cut into
    #[arg(long, value_name = "STEPS", default_value_t = 10)]
    horizon: i32,
    /// Span of the log that is resampled as one
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    block: humantime::Duration,
    /// Confidence of the intervals
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    confidence: f64,
    /// Least effective sample size for a verdict, in windows
    #[arg(long, value_name = "WINDOWS", default_value_t = 50.0)]
    least_ess: f64,
    /// Reward by which it may be worse and yet count as not worse
    #[arg(long, value_name = "REWARD", default_value_t = 0.0)]
    margin: f64,
    /// Admit a log of several policies, or of several weightings of the reward
    #[arg(long)]
    mixed: bool,
}

impl JudgingArgs {
    /// As a gate.
    pub(super) fn gate(&self, not_worse: bool) -> v1::PromotionGate {
        v1::PromotionGate {
            not_worse,
            margin: self.margin,
            confidence: self.confidence,
            horizon_steps: self.horizon,
            block_s: self.block.as_secs_f64(),
            replicates: 0,
            least_ess: self.least_ess,
            mixed: self.mixed,
        }
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct EvaluateArgs {
    /// POLICY/NUMBER, or `random`
    #[arg(value_name = "VERSION", value_parser = subject)]
    version: String,
    /// Compare it with this one in place of the behaviour in the log
    #[arg(long, value_name = "VERSION", value_parser = subject)]
    against: Option<String>,
    /// Only decisions of so long ago, such as 7d
    #[arg(long, value_name = "AGE")]
    since: Option<humantime::Duration>,
    /// Discount per step; by default that of the checkpoint's training, or 0.9
    #[arg(long, value_name = "GAMMA")]
    gamma: Option<f64>,
    #[command(flatten)]
    judging: JudgingArgs,
    /// Assume that a disk's reward depends on no other disk's choice
    #[arg(long)]
    exposure_disk: bool,
    /// Check everything, evaluate nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct EvaluationsArgs {
    #[command(flatten)]
    server: ServerArgs,
}

fn subject(text: &str) -> Result<String, String> {
    if text == "random" {
        return Ok(text.to_owned());
    }
    let name: VersionName = text.parse()?;
    Ok(name.to_string())
}

impl EvaluateArgs {
    fn request(&self) -> v1::CreateEvaluationRequest {
        v1::CreateEvaluationRequest {
            policy: self.version.clone(),
            against: self.against.clone().unwrap_or_default(),
            options: Some(v1::EvaluationOptions {
                max_age_s: self.since.map_or(0.0, |since| since.as_secs_f64()),
                gamma: self.gamma,
                horizon_steps: self.judging.horizon,
                block_s: self.judging.block.as_secs_f64(),
                confidence: self.judging.confidence,
                replicates: 0,
                least_ess: self.judging.least_ess,
                margin: self.judging.margin,
                mixed: self.judging.mixed,
                exposure_disk: self.exposure_disk,
            }),
            validate_only: self.dry_run,
            request_id: Uuid::new_v4().to_string(),
        }
    }
}

async fn client(args: &ServerArgs) -> Result<EvaluationServiceClient<Connection>, CliError> {
    let connection = args.connect().await?;
    Ok(EvaluationServiceClient::new(connection))
}

pub(super) async fn run(args: &EvaluateArgs) -> Result<(), CliError> {
    let mut client = client(&args.server).await?;
    let operation = client.create_evaluation(args.request()).await?.into_inner();
    let done = follow(&args.server, operation).await?;
    let evaluation: v1::Evaluation = response(&done)?;
    if args.dry_run {
        return print("it can be asked for; nothing was evaluated");
    }
    if args.server.json {
        let value = Json::new().value("Evaluation", &evaluation);
        return print(format_args!("{value:#}"));
    }
    print(text::evaluation(&evaluation))
}

pub(super) async fn list(args: &EvaluationsArgs) -> Result<(), CliError> {
    let mut client = client(&args.server).await?;
    let evaluations = pages::all(async |page_token| {
        let request = v1::ListEvaluationsRequest {
            page_size: 0,
            page_token,
        };
        let page = client.list_evaluations(request).await?.into_inner();
        Ok((page.evaluations, page.next_page_token))
    });
    let evaluations = evaluations.await?;
    if args.server.json {
        let json = Json::new();
        let listed = evaluations.iter();
        let listed: Vec<_> = listed.map(|it| json.value("Evaluation", it)).collect();
        return print(format_args!("{:#}", json!({ "evaluations": listed })));
    }
    if evaluations.is_empty() {
        return print(
            "nothing was evaluated here: `blkpilot policy evaluate VERSION` evaluates a version",
        );
    }
    print(text::evaluations(&evaluations))
}
