//! Failures of calls: gRPC status with rich details on the way out, and read back by our client.
//!
//! Every failure has an `ErrorInfo` with a stable reason, so that a caller decides by data and not
//! by text; what concerns a field of the request is also a `BadRequest` violation.

use std::collections::HashMap;
use std::time::Duration;

use blkpilot_env::{ActionError, BatchError, EnvError, MaskReason};
use blkpilot_proto::ERROR_DOMAIN;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, ErrorInfo, StatusExt as _};

use super::{WireError, mask_from_wire, mask_to_wire};

/// A failure of a call, before it becomes a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: Code,
    reason: &'static str,
    message: String,
    metadata: HashMap<String, String>,
    violations: Vec<(String, String)>,
}

/// Metadata of a failure that passes by itself: in how many seconds.
const RETRY_AFTER: &str = "retry_after_s";

impl Failure {
    /// A failure with a code, a stable reason in capitals, and a message with the way out.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            metadata: HashMap::new(),
            violations: vec![],
        }
    }

    /// With the time after which it is worth another try, in whole seconds.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.with(RETRY_AFTER, seconds)
    }

    /// A field of the request that is wrong.
    pub fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        let (field, problem) = (field.into(), problem.into());
        Self::new(
            Code::InvalidArgument,
            "INVALID_FIELD",
            format!("{field}: {problem}"),
        )
        .violating(field, problem)
    }

    /// A resource that is not there.
    pub fn not_found(name: &str, way_out: &str) -> Self {
        Self::new(
            Code::NotFound,
            "NOT_FOUND",
            format!("{name} does not exist: {way_out}"),
        )
        .with("name", name)
    }

    /// With a piece of metadata for programs.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// With a field of the request that is wrong.
    #[must_use]
    pub fn violating(mut self, field: impl Into<String>, problem: impl Into<String>) -> Self {
        self.violations.push((field.into(), problem.into()));
        self
    }

    /// As that of one of several environments.
    #[must_use]
    pub fn of_environment(mut self, environment: usize) -> Self {
        self.message = format!("environment {environment}: {}", self.message);
        for (field, _) in &mut self.violations {
            if let Some(rest) = field.strip_prefix("action") {
                *field = format!("actions[{environment}]{rest}");
            }
        }
        self.with("environment", environment)
    }

    /// As that of one request of a stream, counted from 0.
    #[must_use]
    pub fn of_request(mut self, request: u64) -> Self {
        self.message = format!("request {request}: {}", self.message);
        self.with("request", request)
    }

    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// What failed, in words.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut details = ErrorDetails::new();
        let wait = failure.metadata.get(RETRY_AFTER);
        if let Some(seconds) = wait.and_then(|wait| wait.parse().ok()) {
            details.set_retry_info(Some(Duration::from_secs(seconds)));
        }
        details.set_error_info(failure.reason, ERROR_DOMAIN, failure.metadata);
        for (field, problem) in failure.violations {
            details.add_bad_request_violation(field, problem);
        }
        Self::with_error_details(failure.code, failure.message, details)
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self::field(error.field, error.problem)
    }
}

impl From<ActionError> for Failure {
    fn from(error: ActionError) -> Self {
        let message = error.to_string();
        let invalid = |reason| Self::new(Code::InvalidArgument, reason, message.clone());
        let (failure, field) = match &error {
            ActionError::Shape { table, got, want } => (
                invalid("ACTION_SHAPE")
                    .with("table", table)
                    .with("got_rows", got.0)
                    .with("got_heads", got.1)
                    .with("want_rows", want.0)
                    .with("want_heads", want.1),
                format!("action.{table}s"),
            ),
            ActionError::NoSuchLevel {
                row,
                head,
                level,
                last,
            } => (
                invalid("ACTION_NO_SUCH_LEVEL")
                    .with("row", row)
                    .with("head", head)
                    .with("level", level)
                    .with("last", last),
                format!("action[{row}].{head}"),
            ),
            ActionError::Masked {
                row,
                head,
                level_name,
                reason,
            } => (
                Self::new(masked_code(*reason), "ACTION_MASKED", message.clone())
                    .with("row", row)
                    .with("head", head)
                    .with("level", level_name)
                    .with("mask_reason", mask_to_wire(*reason).as_str_name()),
                format!("action[{row}].{head}"),
            ),
            ActionError::GroupDisagrees {
                first,
                second,
                head,
            } => (
                invalid("ACTION_GROUP_DISAGREES")
                    .with("first", first)
                    .with("second", second)
                    .with("head", head),
                format!("action[{second}].{head}"),
            ),
            ActionError::Order { disks, devices } => (
                invalid("ACTION_ORDER")
                    .with("disks", disks)
                    .with("devices", devices),
                "order".to_owned(),
            ),
        };
        failure.violating(field, message)
    }
}

/// A level that is masked for a passing reason is worth another try; gRPC clients know that from the
/// code.
fn masked_code(reason: MaskReason) -> Code {
    match reason {
        MaskReason::Unresponsive | MaskReason::WritingBack => Code::Unavailable,
        _ => Code::InvalidArgument,
    }
}

impl From<EnvError> for Failure {
    fn from(error: EnvError) -> Self {
        let message = error.to_string();
        match error {
            EnvError::StepBeforeReset => {
                Self::new(Code::FailedPrecondition, "STEP_BEFORE_RESET", message)
            }
            EnvError::EpisodeOver => Self::new(Code::FailedPrecondition, "EPISODE_OVER", message),
            EnvError::Action(error) => error.into(),
            EnvError::Option {
                name,
                value,
                problem,
            } => Self::new(Code::InvalidArgument, "RESET_OPTION", message)
                .with("option", &name)
                .with("value", value)
                .with("problem", &problem)
                .violating(format!("options[{name}]"), problem),
            EnvError::Config(errors) => {
                let failure = Self::new(Code::InvalidArgument, "SCENARIO", message);
                let violate = |failure: Self, (path, problem)| failure.violating(path, problem);
                errors.0.into_iter().fold(failure, violate)
            }
            EnvError::Host { .. } => Self::new(Code::Unavailable, "HOST_FAILED", message),
        }
    }
}

impl From<BatchError> for Failure {
    fn from(error: BatchError) -> Self {
        let message = error.to_string();
        match error {
            BatchError::Environment { source, .. } | BatchError::Option(source) => source.into(),
            BatchError::Length { got, want } => {
                Self::new(Code::InvalidArgument, "ACTION_LENGTH", message.clone())
                    .with("got", got)
                    .with("want", want)
                    .violating("actions", message)
            }
            BatchError::Count { got, want } => {
                let problem =
                    format!("has {got} entries, needs one for each of {want} environments");
                Self::field("actions", problem)
            }
        }
    }
}

/// What a status says an environment refused: the inverse of `Failure::from(EnvError)`. Whatever is
/// not the environment's own (a lost connection, an expired lease) is `EnvError::Host`.
#[must_use]
pub fn env_error(status: &Status) -> EnvError {
    let details = status.get_error_details();
    let known = details.error_info().and_then(known_env_error);
    known.unwrap_or_else(|| EnvError::Host {
        message: format!("{}: {}", status.code(), status.message()),
        source: None,
    })
}

fn known_env_error(info: &ErrorInfo) -> Option<EnvError> {
    let text = |key: &str| info.metadata.get(key).cloned();
    let number = |key: &str| info.metadata.get(key)?.parse().ok();
    Some(match info.reason.as_str() {
        "STEP_BEFORE_RESET" => EnvError::StepBeforeReset,
        "EPISODE_OVER" => EnvError::EpisodeOver,
        "RESET_OPTION" => EnvError::Option {
            name: text("option")?,
            value: text("value")?,
            problem: text("problem")?,
        },
        "ACTION_SHAPE" => EnvError::Action(ActionError::Shape {
            table: if text("table")? == "disk" {
                "disk"
            } else {
                "device"
            },
            got: (number("got_rows")?, number("got_heads")?),
            want: (number("want_rows")?, number("want_heads")?),
        }),
        "ACTION_NO_SUCH_LEVEL" => EnvError::Action(ActionError::NoSuchLevel {
            row: text("row")?,
            head: text("head")?,
            level: text("level")?.parse().ok()?,
            last: number("last")?,
        }),
        "ACTION_MASKED" => EnvError::Action(ActionError::Masked {
            row: text("row")?,
            head: text("head")?,
            level_name: text("level")?,
            reason: mask_reason(&text("mask_reason")?)?,
        }),
        "ACTION_GROUP_DISAGREES" => EnvError::Action(ActionError::GroupDisagrees {
            first: text("first")?,
            second: text("second")?,
            head: text("head")?,
        }),
        "ACTION_ORDER" => EnvError::Action(ActionError::Order {
            disks: number("disks")?,
            devices: number("devices")?,
        }),
        _ => return None,
    })
}

fn mask_reason(name: &str) -> Option<MaskReason> {
    let wire = blkpilot_proto::v1::MaskReason::from_str_name(name)?;
    mask_from_wire("mask_reason", wire.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(error: EnvError) -> EnvError {
        env_error(&Failure::from(error).into())
    }

    #[test]
    fn what_an_environment_refuses_survives_the_wire() {
        let action = [
            ActionError::Shape {
                table: "device",
                got: (1, 2),
                want: (3, 4),
            },
            ActionError::NoSuchLevel {
                row: "db/vda".into(),
                head: "channel".into(),
                level: 9,
                last: 4,
            },
            ActionError::Masked {
                row: "db/vda".into(),
                head: "cache".into(),
                level_name: "buffered".into(),
                reason: MaskReason::AioNative,
            },
            ActionError::GroupDisagrees {
                first: "db/vda".into(),
                second: "db/vdb".into(),
                head: "channel".into(),
            },
            ActionError::Order {
                disks: 3,
                devices: 1,
            },
        ];
        for error in action {
            let EnvError::Action(back) = round_trip(EnvError::Action(error.clone())) else {
                panic!("{error} came back as something else");
            };
            assert_eq!(back, error);
        }
        assert!(matches!(
            round_trip(EnvError::StepBeforeReset),
            EnvError::StepBeforeReset
        ));
        assert!(matches!(
            round_trip(EnvError::EpisodeOver),
            EnvError::EpisodeOver
        ));
        let option = EnvError::Option {
            name: "scenario".into(),
            value: "x".into(),
            problem: "is not one of a, b".into(),
        };
        assert!(matches!(round_trip(option), EnvError::Option { name, .. } if name == "scenario"));
    }

    #[test]
    fn a_refused_action_names_the_field() {
        let status = Status::from(Failure::from(ActionError::Masked {
            row: "db/vda".into(),
            head: "cache".into(),
            level_name: "buffered".into(),
            reason: MaskReason::NotOptedIn,
        }));
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().domain, ERROR_DOMAIN);
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "action[db/vda].cache");
        assert!(violations[0].description.contains("opted in"));
    }

    #[test]
    fn only_a_guest_that_does_not_answer_is_worth_another_try() {
        let code = |reason| {
            let error = ActionError::Masked {
                row: "db/vda".into(),
                head: "cache".into(),
                level_name: "buffered".into(),
                reason,
            };
            Status::from(Failure::from(error)).code()
        };
        assert_eq!(code(MaskReason::Unresponsive), Code::Unavailable);
        assert_eq!(code(MaskReason::JobRunning), Code::InvalidArgument);
    }
}
