//! The table of every method of every service, with the least role that it needs. What does not stand
//! here is not served.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::role::Role;

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Whoever can connect: load balancers and process supervisors have no token.
    Connection,
    /// Whoever has this role, or a greater one.
    Role(Role),
}

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It reads: no record is kept.
    Reads,
    /// It changes something: each call leaves a record in the audit. The paths of the request's fields that may
    /// name what is changed; the first that is not empty counts.
    Changes(&'static [&'static str]),
}

/// A method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// Its path, `/package.Service/Method`.
    pub path: &'static str,
    /// Who may call it.
    pub need: Need,
    /// What a call does.
    pub effect: Effect,
}

const fn open(path: &'static str) -> Method {
    Method {
        path,
        need: Need::Connection,
        effect: Effect::Reads,
    }
}

const fn reads(path: &'static str) -> Method {
    Method {
        path,
        need: Need::Role(Role::Observer),
        effect: Effect::Reads,
    }
}

const fn changes(path: &'static str, least: Role, named_by: &'static [&'static str]) -> Method {
    Method {
        path,
        need: Need::Role(least),
        effect: Effect::Changes(named_by),
    }
}

/// Every method there is.
pub const METHODS: [Method; 57] = {
    use Role::{Admin, Operator};
    [
        open("/grpc.health.v1.Health/Check"),
        open("/grpc.health.v1.Health/Watch"),
        reads("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
        reads("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
        changes(
            "/blkpilot.v1.EnvironmentService/CreateEnvironment",
            Operator,
            &["environment.managed_host.host", "environment_id"],
        ),
        reads("/blkpilot.v1.EnvironmentService/GetEnvironment"),
        reads("/blkpilot.v1.EnvironmentService/ListEnvironments"),
        reads("/blkpilot.v1.EnvironmentService/GetSpec"),
        changes("/blkpilot.v1.EnvironmentService/Reset", Operator, &["name"]),
        changes("/blkpilot.v1.EnvironmentService/Step", Operator, &["name"]),
        // One record for the stream.
        changes(
            "/blkpilot.v1.EnvironmentService/Rollout",
            Operator,
            &["open.name"],
        ),
        changes(
            "/blkpilot.v1.EnvironmentService/ForkEnvironment",
            Operator,
            &["name"],
        ),
        reads("/blkpilot.v1.EnvironmentService/Observe"),
        changes(
            "/blkpilot.v1.EnvironmentService/DeleteEnvironment",
            Operator,
            &["name"],
        ),
        reads("/blkpilot.v1.TunerService/ListHosts"),
        reads("/blkpilot.v1.TunerService/ListGuests"),
        reads("/blkpilot.v1.TunerService/GetGuest"),
        reads("/blkpilot.v1.TunerService/Propose"),
        changes(
            "/blkpilot.v1.TunerService/Apply",
            Operator,
            &["decision", "host"],
        ),
        changes("/blkpilot.v1.TunerService/Rollback", Operator, &["name"]),
        changes("/blkpilot.v1.TunerService/Unfreeze", Operator, &["name"]),
        // What these two set concerns every guest of the host.
        changes(
            "/blkpilot.v1.TunerService/SetRewardWeights",
            Admin,
            &["name"],
        ),
        changes("/blkpilot.v1.TunerService/ChangeDevice", Admin, &["name"]),
        reads("/blkpilot.v1.TunerService/ListDevices"),
        reads("/blkpilot.v1.TunerService/ListDiskSettings"),
        changes(
            "/blkpilot.v1.TunerService/ChangeDiskSettings",
            Operator,
            &["name"],
        ),
        reads("/blkpilot.v1.TunerService/GetDecision"),
        reads("/blkpilot.v1.TunerService/ListDecisions"),
        reads("/blkpilot.v1.TunerService/WatchDecisions"),
        // One record for the stream.
        changes(
            "/blkpilot.v1.PolicyService/UploadPolicyVersion",
            Operator,
            &["header.parent"],
        ),
        reads("/blkpilot.v1.PolicyService/GetPolicy"),
        reads("/blkpilot.v1.PolicyService/ListPolicies"),
        reads("/blkpilot.v1.PolicyService/GetPolicyVersion"),
        reads("/blkpilot.v1.PolicyService/ListPolicyVersions"),
        // What decides on every guest of the host.
        changes(
            "/blkpilot.v1.PolicyService/PromotePolicyVersion",
            Admin,
            &["name"],
        ),
        // What is withdrawn is named by its etag, if by anything.
        changes(
            "/blkpilot.v1.PolicyService/RollbackProduction",
            Admin,
            &["etag"],
        ),
        changes(
            "/blkpilot.v1.PolicyService/ArchivePolicyVersion",
            Operator,
            &["name"],
        ),
        reads("/blkpilot.v1.PolicyService/ListPolicyEvents"),
        changes(
            "/blkpilot.v1.EvaluationService/CreateEvaluation",
            Operator,
            &["policy"],
        ),
        reads("/blkpilot.v1.EvaluationService/GetEvaluation"),
        reads("/blkpilot.v1.EvaluationService/ListEvaluations"),
        changes(
            "/blkpilot.v1.EvaluationService/DeleteEvaluation",
            Operator,
            &["name"],
        ),
        changes(
            "/blkpilot.v1.TrainingService/CreateTrainingRun",
            Operator,
            &["training_run_id"],
        ),
        reads("/blkpilot.v1.TrainingService/GetTrainingRun"),
        reads("/blkpilot.v1.TrainingService/ListTrainingRuns"),
        reads("/blkpilot.v1.TrainingService/WatchTrainingRun"),
        changes(
            "/blkpilot.v1.TrainingService/PauseTrainingRun",
            Operator,
            &["name"],
        ),
        changes(
            "/blkpilot.v1.TrainingService/ResumeTrainingRun",
            Operator,
            &["name"],
        ),
        changes(
            "/blkpilot.v1.TrainingService/CancelTrainingRun",
            Operator,
            &["name"],
        ),
        changes(
            "/blkpilot.v1.TrainingService/PublishTrainingRun",
            Operator,
            &["name", "parent"],
        ),
        changes(
            "/blkpilot.v1.TrainingService/DeleteTrainingRun",
            Operator,
            &["name"],
        ),
        reads("/blkpilot.v1.OperationService/WatchOperation"),
        reads("/google.longrunning.Operations/ListOperations"),
        reads("/google.longrunning.Operations/GetOperation"),
        reads("/google.longrunning.Operations/WaitOperation"),
        changes(
            "/google.longrunning.Operations/CancelOperation",
            Operator,
            &["name"],
        ),
        changes(
            "/google.longrunning.Operations/DeleteOperation",
            Operator,
            &["name"],
        ),
    ]
};

/// The method with this path; `None` if the table has none.
#[must_use]
pub fn find(path: &str) -> Option<&'static Method> {
    static BY_PATH: LazyLock<HashMap<&str, &Method>> =
        LazyLock::new(|| METHODS.iter().map(|method| (method.path, method)).collect());
    BY_PATH.get(path).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use blkpilot_proto::v1::FILE_DESCRIPTOR_SET;
    use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

    use super::*;

    fn served() -> Vec<prost_reflect::MethodDescriptor> {
        let sets = [
            FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let pools = sets.map(|set| DescriptorPool::decode(set).unwrap());
        let services = pools.iter().flat_map(DescriptorPool::services);
        services
            .flat_map(|service| service.methods().collect::<Vec<_>>())
            .collect()
    }

    fn path(method: &prost_reflect::MethodDescriptor) -> String {
        format!("/{}/{}", method.parent_service().full_name(), method.name())
    }

    #[test]
    fn every_method_of_every_service_stands_in_the_table_once_and_no_other() {
        let served: BTreeSet<String> = served().iter().map(path).collect();
        let listed: BTreeSet<String> = METHODS.iter().map(|m| m.path.to_owned()).collect();
        assert_eq!(listed, served);
        assert_eq!(listed.len(), METHODS.len());
    }

    fn has_text(message: &MessageDescriptor, path: &str) -> bool {
        let (first, rest) = path.split_once('.').unwrap_or((path, ""));
        let field = message.get_field_by_name(first).unwrap();
        match field.kind() {
            Kind::Message(inner) => has_text(&inner, rest),
            kind => rest.is_empty() && kind == Kind::String,
        }
    }

    #[test]
    fn what_a_change_is_named_by_is_a_text_of_its_request() {
        for method in served() {
            let listed = find(&path(&method)).unwrap();
            if let Effect::Changes(named_by) = listed.effect {
                assert!(!named_by.is_empty(), "{}", listed.path);
                for field in named_by {
                    assert!(has_text(&method.input(), field), "{} {field}", listed.path);
                }
            }
        }
    }

    #[test]
    fn what_changes_something_needs_more_than_an_observer() {
        for method in METHODS {
            let is_change = matches!(method.effect, Effect::Changes(_));
            let needs_more = matches!(method.need, Need::Role(role) if role > Role::Observer);
            assert_eq!(is_change, needs_more, "{}", method.path);
        }
    }
}
