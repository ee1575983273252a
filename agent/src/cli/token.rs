//! `blkpilot token`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::CliError;
use super::output::print;
use super::tables::{ABSENT, table};
use crate::access::role::Role;
use crate::access::tokens::{Refusal, Token, TokenError, TokenFile, Wanted};
use crate::config::Config;

pub(super) const HELP: &str = "\
A running service sees a change at once. Roles, each with what those before it may:
  observer  reads, and asks what the policy would do
  operator  changes guests that have opted in, and holds environments
  admin     sets what concerns the whole host: block devices, weights of the reward

Examples:
  blkpilot token create ci --role operator --expires 30d --config FILE > ci.token
  blkpilot guests --server https://host.example:7077 --ca ca.pem --token-file ci.token
  blkpilot token ls --data-dir /var/lib/blkpilot
  blkpilot token revoke 0123456789abcdef --data-dir /var/lib/blkpilot";

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token and print it; it is kept as a hash and not shown again
    Create(CreateArgs),
    /// Take no more calls with a token
    Revoke(RevokeArgs),
    /// List the tokens: ids, names, roles, and until when they are taken
    Ls(LsArgs),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// The data directory of the service
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The configuration of the service, which names it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// What it is for, such as the name of its holder
    name: String,
    /// What its holder may do
    #[arg(long, value_name = "ROLE", value_parser = PossibleValuesParser::new(Role::ALL.map(Role::name)))]
    role: String,
    /// How long it is taken, such as 12h, 30d or `never` ends
    #[arg(long, value_name = "SPAN", default_value = "90d", value_parser = lifetime)]
    expires: Lifetime,
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// Its id, as `blkpilot token ls` shows it
    id: String,
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    Ever,
    For(Duration),
}

/// Longest life of a token that ends.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

fn lifetime(text: &str) -> Result<Lifetime, String> {
    if text == "never" {
        return Ok(Lifetime::Ever);
    }
    let span = humantime::parse_duration(text).ok();
    let span = span.filter(|span| (Duration::from_secs(1)..=LONGEST).contains(span));
    span.map(Lifetime::For)
        .ok_or_else(|| "must be a time such as 12h or 30d, up to 100y, or never".to_owned())
}

pub(super) fn run(command: &TokenCommand) -> Result<(), CliError> {
    let now = SystemTime::now();
    match command {
        TokenCommand::Create(args) => create(args, now),
        TokenCommand::Revoke(args) => revoke(args, now),
        TokenCommand::Ls(args) => list(args, now),
    }
}

fn create(args: &CreateArgs, now: SystemTime) -> Result<(), CliError> {
    let wanted = Wanted {
        name: args.name.clone(),
        role: args.role.parse().expect("clap takes only roles"),
        lifetime: match args.expires {
            Lifetime::Ever => None,
            Lifetime::For(span) => Some(span),
        },
    };
    let (token, secret) = file(&args.place)?.create(wanted, now)?;
    if args.json {
        let mut value = value(&token, now);
        value["token"] = secret.expose().into();
        return print(format_args!("{value:#}"));
    }
    // Alone on standard output, so that it can be sent to a file.
    print(secret.expose())?;
    let until = until(&token);
    let Token { id, name, role, .. } = token;
    eprintln!("blkpilot: token {id} ({name}, {role}), taken until {until}; it is not shown again");
    Ok(())
}

fn revoke(args: &RevokeArgs, now: SystemTime) -> Result<(), CliError> {
    let token = file(&args.place)?.revoke(&args.id, now)?;
    if args.json {
        return print(format_args!("{:#}", value(&token, now)));
    }
    print(format_args!(
        "token {} ({}) is not taken any more",
        token.id, token.name
    ))
}

fn list(args: &LsArgs, now: SystemTime) -> Result<(), CliError> {
    let tokens = file(&args.place)?.load()?;
    if args.json {
        let tokens: Vec<Value> = tokens.iter().map(|token| value(token, now)).collect();
        return print(format_args!("{:#}", json!({ "tokens": tokens })));
    }
    let row = |token: &Token| {
        [
            token.id.clone(),
            token.name.clone(),
            token.role.to_string(),
            state(token, now).to_owned(),
            time(token.created),
            until(token),
        ]
    };
    let mut table = table(&["ID", "NAME", "ROLE", "STATE", "MADE", "TAKEN UNTIL"]);
    table.add_rows(tokens.iter().map(row));
    print(table)
}

fn file(place: &Place) -> Result<TokenFile, CliError> {
    let dir = match (&place.data_dir, &place.config) {
        (Some(dir), _) => dir.clone(),
        (None, Some(file)) => Config::load(file)?.service.data_dir,
        (None, None) => unreachable!("clap wants one of them"),
    };
    check(&dir)?;
    Ok(TokenFile::in_dir(&dir))
}

/// A directory that this made might not be the service's to read.
fn check(dir: &Path) -> Result<(), CliError> {
    if dir.is_dir() {
        return Ok(());
    }
    Err(CliError::Usage(format!(
        "{}: no directory is there: start the service once, or name that of the service's configuration",
        dir.display()
    )))
}

fn value(token: &Token, now: SystemTime) -> Value {
    json!({
        "id": token.id,
        "name": token.name,
        "role": token.role.name(),
        "state": state(token, now),
        "created": time(token.created),
        "expires": token.expires.map(time),
        "revoked": token.revoked.map(time),
    })
}

fn state(token: &Token, now: SystemTime) -> &'static str {
    match token.check(now) {
        Ok(()) => "taken",
        Err(Refusal::Revoked) => "revoked",
        Err(Refusal::Expired | Refusal::Unknown) => "expired",
    }
}

fn until(token: &Token) -> String {
    match (token.revoked, token.expires) {
        (Some(revoked), _) => time(revoked),
        (None, Some(expires)) => time(expires),
        (None, None) => ABSENT.to_owned(),
    }
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

impl From<TokenError> for CliError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Name => Self::Usage(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_for_a_span_or_for_ever() {
        assert_eq!(lifetime("never"), Ok(Lifetime::Ever));
        let month = Duration::from_secs(30 * 24 * 3600);
        assert_eq!(lifetime("30d"), Ok(Lifetime::For(month)));
        for wrong in ["", "0s", "30", "soon", "1000years"] {
            assert!(lifetime(wrong).unwrap_err().contains("30d"), "{wrong}");
        }
    }
}
