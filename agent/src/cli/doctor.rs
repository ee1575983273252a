//! `blkpilot doctor`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::CliError;
use super::output::print;
use crate::doctor::{Finding, Level, Machine, examine, worst};

/// Where the package puts the configuration.
const CONFIG: &str = "/etc/blkpilot/blkpilot.toml";

pub(super) const HELP: &str = "\
Exit status:
  0  all is well
  1  a warning: the service works, but sees or tunes less than it could
  2  something failed: the service does not start, or does not reach what it needs

Run it as the service's user, since it looks at what that may do:
  sudo -u blkpilot blkpilot doctor";

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The configuration of the service
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> Result<(), CliError> {
    let findings = examine(&args.config, &Machine::this());
    if args.json {
        print(as_json(&findings))?;
    } else {
        for finding in &findings {
            print(as_text(finding))?;
        }
    }
    match worst(&findings) {
        Level::Ok => Ok(()),
        Level::Warning => Err(CliError::Unwell { status: 1 }),
        Level::Failed => Err(CliError::Unwell { status: 2 }),
    }
}

fn as_text(finding: &Finding) -> String {
    let Finding {
        check,
        level,
        found,
        repair,
    } = finding;
    let line = format!("{:<8} {check:<15} {found}", level.to_string());
    match repair {
        Some(repair) => format!("{line}\n{:<24} → {repair}", ""),
        None => line,
    }
}

fn as_json(findings: &[Finding]) -> serde_json::Value {
    let one = |finding: &Finding| {
        json!({
            "check": finding.check,
            "level": finding.level.to_string(),
            "found": finding.found,
            "repair": finding.repair,
        })
    };
    json!({
        "level": worst(findings).to_string(),
        "findings": findings.iter().map(one).collect::<Vec<_>>(),
    })
}
