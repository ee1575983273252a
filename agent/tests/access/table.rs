//! Every method × role × credential, with the expected code.

use std::path::Path;
use std::time::SystemTime;

use blkpilot_agent::access::methods::{METHODS, Need};
use blkpilot_agent::access::role::Role;
use blkpilot_agent::access::tokens::{Secret, TokenFile};
use blkpilot_agent::client::Target;
use tempfile::TempDir;
use tonic::Code;

use super::pki::{Ca, write};
use super::setup::{
    CHECK, LIST_HOSTS, Service, ask, ask_anew, expired, reason, revoked, showing, trusting, wanted,
};

/// What each method answers an empty request of somebody who may call it.
const ANSWERS: [(&str, Code); 57] = [
    ("/grpc.health.v1.Health/Check", Code::Ok),
    ("/grpc.health.v1.Health/Watch", Code::Ok),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Code::InvalidArgument,
    ),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.EnvironmentService/CreateEnvironment",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.EnvironmentService/GetEnvironment",
        Code::InvalidArgument,
    ),
    ("/blkpilot.v1.EnvironmentService/ListEnvironments", Code::Ok),
    (
        "/blkpilot.v1.EnvironmentService/GetSpec",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.EnvironmentService/Reset",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.EnvironmentService/Step",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.EnvironmentService/Rollout",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.EnvironmentService/ForkEnvironment",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.EnvironmentService/Observe",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.EnvironmentService/DeleteEnvironment",
        Code::InvalidArgument,
    ),
    ("/blkpilot.v1.TunerService/ListHosts", Code::Ok),
    (
        "/blkpilot.v1.TunerService/ListGuests",
        Code::InvalidArgument,
    ),
    ("/blkpilot.v1.TunerService/GetGuest", Code::InvalidArgument),
    ("/blkpilot.v1.TunerService/Propose", Code::InvalidArgument),
    ("/blkpilot.v1.TunerService/Apply", Code::InvalidArgument),
    ("/blkpilot.v1.TunerService/Rollback", Code::InvalidArgument),
    ("/blkpilot.v1.TunerService/Unfreeze", Code::InvalidArgument),
    (
        "/blkpilot.v1.TunerService/SetRewardWeights",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.TunerService/ChangeDevice",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.TunerService/ListDevices",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.TunerService/ListDiskSettings",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.TunerService/ChangeDiskSettings",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.TunerService/GetDecision",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.TunerService/ListDecisions",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.TunerService/WatchDecisions",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.PolicyService/UploadPolicyVersion",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.PolicyService/GetPolicy",
        Code::InvalidArgument,
    ),
    ("/blkpilot.v1.PolicyService/ListPolicies", Code::Ok),
    (
        "/blkpilot.v1.PolicyService/GetPolicyVersion",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.PolicyService/ListPolicyVersions",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.PolicyService/PromotePolicyVersion",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.PolicyService/RollbackProduction",
        Code::FailedPrecondition,
    ),
    (
        "/blkpilot.v1.PolicyService/ArchivePolicyVersion",
        Code::InvalidArgument,
    ),
    ("/blkpilot.v1.PolicyService/ListPolicyEvents", Code::Ok),
    (
        "/blkpilot.v1.EvaluationService/CreateEvaluation",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.EvaluationService/GetEvaluation",
        Code::InvalidArgument,
    ),
    ("/blkpilot.v1.EvaluationService/ListEvaluations", Code::Ok),
    (
        "/blkpilot.v1.EvaluationService/DeleteEvaluation",
        Code::InvalidArgument,
    ),
    (
        "/blkpilot.v1.TrainingService/CreateTrainingRun",
        Code::FailedPrecondition,
    ),
    (
        "/blkpilot.v1.TrainingService/GetTrainingRun",
        Code::FailedPrecondition,
    ),
    (
        "/blkpilot.v1.TrainingService/ListTrainingRuns",
        Code::FailedPrecondition,
    ),
    (
        "/blkpilot.v1.TrainingService/WatchTrainingRun",
        Code::FailedPrecondition,
    ),
    (
        "/blkpilot.v1.TrainingService/PauseTrainingRun",
        Code::FailedPrecondition,
    ),
    (
        "/blkpilot.v1.TrainingService/ResumeTrainingRun",
        Code::FailedPrecondition,
    ),
    (
        "/blkpilot.v1.TrainingService/CancelTrainingRun",
        Code::FailedPrecondition,
    ),
    (
        "/blkpilot.v1.TrainingService/PublishTrainingRun",
        Code::FailedPrecondition,
    ),
    (
        "/blkpilot.v1.TrainingService/DeleteTrainingRun",
        Code::FailedPrecondition,
    ),
    (
        "/blkpilot.v1.OperationService/WatchOperation",
        Code::InvalidArgument,
    ),
    ("/google.longrunning.Operations/ListOperations", Code::Ok),
    (
        "/google.longrunning.Operations/GetOperation",
        Code::InvalidArgument,
    ),
    (
        "/google.longrunning.Operations/WaitOperation",
        Code::InvalidArgument,
    ),
    (
        "/google.longrunning.Operations/CancelOperation",
        Code::InvalidArgument,
    ),
    (
        "/google.longrunning.Operations/DeleteOperation",
        Code::InvalidArgument,
    ),
];

/// The table as it stands in the design, written a second time: who may call what.
const OPEN: [&str; 2] = ["Check", "Watch"];
const OPERATOR: [&str; 22] = [
    "CreateEnvironment",
    "Rollout",
    "ForkEnvironment",
    "Reset",
    "Step",
    "DeleteEnvironment",
    "Apply",
    "Rollback",
    "Unfreeze",
    "ChangeDiskSettings",
    "UploadPolicyVersion",
    "ArchivePolicyVersion",
    "CreateEvaluation",
    "DeleteEvaluation",
    "CreateTrainingRun",
    "PauseTrainingRun",
    "ResumeTrainingRun",
    "CancelTrainingRun",
    "PublishTrainingRun",
    "DeleteTrainingRun",
    "CancelOperation",
    "DeleteOperation",
];
const ADMIN: [&str; 4] = [
    "SetRewardWeights",
    "ChangeDevice",
    "PromotePolicyVersion",
    "RollbackProduction",
];

/// What a credential is worth.
#[derive(Debug, Clone, Copy)]
enum Worth {
    /// It is refused, whatever is called.
    Refused(&'static str),
    /// Nothing was shown; the role that this has here.
    Nothing(Option<Role>),
    /// Somebody who is known, with this role.
    Known(Option<Role>),
}

fn least(path: &str) -> Option<Role> {
    let name = path.rsplit('/').next().unwrap();
    if OPEN.contains(&name) {
        None
    } else if ADMIN.contains(&name) {
        Some(Role::Admin)
    } else if OPERATOR.contains(&name) {
        Some(Role::Operator)
    } else {
        Some(Role::Observer)
    }
}

/// The code and, of a refusal, its reason.
fn expected(path: &str, answer: Code, worth: Worth) -> (Code, &'static str) {
    let may = |role: Option<Role>| least(path).is_none_or(|least| role.is_some_and(|r| r >= least));
    match worth {
        Worth::Refused(reason) => (Code::Unauthenticated, reason),
        Worth::Nothing(role) | Worth::Known(role) if may(role) => (answer, ""),
        Worth::Nothing(_) => (Code::Unauthenticated, "CREDENTIALS_MISSING"),
        Worth::Known(_) => (Code::PermissionDenied, "ROLE_TOO_LOW"),
    }
}

async fn check(what: &str, target: &Target, worth: Worth) {
    let connection = target.connect().await.unwrap();
    for (path, answer) in ANSWERS {
        let status = ask(&connection, path).await;
        let (code, why) = expected(path, answer, worth);
        assert_eq!(status.code(), code, "{what}: {path}: {status:?}");
        if !why.is_empty() {
            assert_eq!(reason(&status), why, "{what}: {path}");
        }
    }
    let status = ask(&connection, "/blkpilot.v1.TunerService/Format").await;
    let code = match worth {
        Worth::Refused(_) => Code::Unauthenticated,
        _ => Code::Unimplemented,
    };
    assert_eq!(status.code(), code, "{what}: a method that there is not");
}

/// Tokens of each kind, with what they are worth.
fn tokens(data_dir: &Path) -> Vec<(&'static str, Secret, Worth)> {
    let file = TokenFile::in_dir(data_dir);
    let make = |role| file.create(wanted(role), SystemTime::now()).unwrap().1;
    let unknown = format!("blkpilot_{}_{}", "0".repeat(16), "0".repeat(64));
    let known = |role| Worth::Known(Some(role));
    vec![
        (
            "rubbish",
            "x".to_owned().into(),
            Worth::Refused("TOKEN_UNKNOWN"),
        ),
        ("unknown", unknown.into(), Worth::Refused("TOKEN_UNKNOWN")),
        ("expired", expired(&file), Worth::Refused("TOKEN_EXPIRED")),
        ("revoked", revoked(&file), Worth::Refused("TOKEN_REVOKED")),
        ("observer", make(Role::Observer), known(Role::Observer)),
        ("operator", make(Role::Operator), known(Role::Operator)),
        ("admin", make(Role::Admin), known(Role::Admin)),
    ]
}

async fn check_tokens(target: &Target, data_dir: &Path) {
    for (what, token, worth) in tokens(data_dir) {
        let target = Target {
            token: Some(token),
            ..target.clone()
        };
        check(what, &target, worth).await;
    }
}

/// So that the table's calls are not too many.
const NO_HURRY: &str = "[service.limits]\nunknown_calls_per_second = 100000";

#[test]
fn the_table_asks_what_the_code_s_table_does() {
    let mut asked = ANSWERS.map(|(path, _)| path);
    let mut listed = METHODS.map(|method| method.path);
    asked.sort_unstable();
    listed.sort_unstable();
    assert_eq!(asked, listed);
    for method in METHODS {
        let role = match method.need {
            Need::Connection => None,
            Need::Role(role) => Some(role),
        };
        assert_eq!(role, least(method.path), "{}", method.path);
    }
}

#[tokio::test]
async fn over_loopback_a_token_says_who_may_what_and_without_one_it_is_looking() {
    let service = Service::start("127.0.0.1:0", NO_HURRY).await;
    let nothing = Worth::Nothing(Some(Role::Observer));
    check("nothing", &service.target(), nothing).await;
    check_tokens(&service.target(), &service.dir.path().join("data")).await;
}

#[tokio::test]
async fn over_the_unix_socket_whoever_can_open_it_is_admin_unless_a_token_is_sent() {
    let service = Service::start("unix:s", NO_HURRY).await;
    let known = Worth::Known(Some(Role::Admin));
    check("nothing", &service.target(), known).await;
    check_tokens(&service.target(), &service.dir.path().join("data")).await;
}

#[tokio::test]
async fn over_the_unix_socket_the_configuration_gives_roles_to_users_and_groups() {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let tables = [
        ("role = \"none\"".to_owned(), None),
        ("role = \"observer\"".to_owned(), Some(Role::Observer)),
        (
            format!("role = \"none\"\n[[service.socket.caller]]\nuid = {uid}\nrole = \"operator\""),
            Some(Role::Operator),
        ),
        (
            format!("role = \"none\"\n[[service.socket.caller]]\ngid = {gid}\nrole = \"admin\""),
            Some(Role::Admin),
        ),
    ];
    for (table, role) in tables {
        let service = Service::start("unix:s", &format!("[service.socket]\n{table}")).await;
        check(&table, &service.target(), Worth::Known(role)).await;
    }
}

#[tokio::test]
async fn through_tls_nothing_is_open_without_a_token_but_health() {
    let (dir, ca) = (TempDir::new().unwrap(), Ca::new("ours"));
    ca.server().write(dir.path(), "server");
    let trusted = write(dir.path(), "ca.pem", &ca.pem);
    let tables =
        format!("[service.tls]\ncertificate = \"server.pem\"\nkey = \"server.key\"\n{NO_HURRY}");
    let service = Service::start_in(dir, "127.0.0.1:0", &tables).await;
    assert!(
        service.address.starts_with("https://"),
        "{}",
        service.address
    );
    let target = trusting(service.target(), &trusted);
    check("nothing", &target, Worth::Nothing(None)).await;
    check_tokens(&target, &service.dir.path().join("data")).await;
    let other = write(service.dir.path(), "other.pem", &Ca::new("theirs").pem);
    let stranger = trusting(service.target(), &other);
    assert!(
        stranger.connect().await.is_err(),
        "of a CA that the client does not trust"
    );
    let plain = Target::from(&service.address.replace("https", "http"));
    assert!(!is_answered(&plain).await, "without TLS");
}

/// Whether anything is: with TLS 1.3 a client learns of its refusal only at its first call.
async fn is_answered(target: &Target) -> bool {
    let answer = ask_anew(target, CHECK).await;
    answer.is_ok_and(|status| status.code() == Code::Ok)
}

const MUTUAL: &str = "[service.tls]
certificate = \"server.pem\"
key = \"server.key\"
client_ca = \"clients.pem\"
[[service.tls.client]]
alternative_name = \"ops.example\"
role = \"admin\"
[[service.tls.client]]
common_name = \"ci\"
role = \"operator\"
";

#[tokio::test]
async fn under_mutual_tls_a_certificate_has_its_role_and_one_of_another_ca_no_connection() {
    let dir = TempDir::new().unwrap();
    let (ours, clients, theirs) = (Ca::new("ours"), Ca::new("clients"), Ca::new("theirs"));
    ours.server().write(dir.path(), "server");
    let trusted = write(dir.path(), "ca.pem", &ours.pem);
    write(dir.path(), "clients.pem", &clients.pem);
    let service = Service::start_in(dir, "127.0.0.1:0", &format!("{MUTUAL}{NO_HURRY}")).await;
    let target = trusting(service.target(), &trusted);
    let show = |ca: &Ca, common: &str, alternative: &str| {
        let signed = ca.client(common, alternative);
        showing(target.clone(), signed.write(service.dir.path(), "client"))
    };
    assert!(!is_answered(&target).await, "without a certificate");
    let stranger = show(&theirs, "ci", "ops.example");
    assert!(!is_answered(&stranger).await, "of another CA");
    let known = |role| Worth::Known(Some(role));
    let observer = show(&clients, "somebody", "somebody.example");
    check("any name", &observer, known(Role::Observer)).await;
    check(
        "its common name",
        &show(&clients, "ci", "x.example"),
        known(Role::Operator),
    )
    .await;
    let admin = show(&clients, "x", "ops.example");
    check("its alternative name", &admin, known(Role::Admin)).await;
    check_tokens(&observer, &service.dir.path().join("data")).await;
}

#[tokio::test]
async fn a_token_that_is_revoked_while_the_service_runs_is_refused_at_the_next_call() {
    let service = Service::start("127.0.0.1:0", "").await;
    let (token, secret) = service.token(Role::Observer);
    let connection = service.with_token(&secret).connect().await.unwrap();
    assert_eq!(ask(&connection, LIST_HOSTS).await.code(), Code::Ok);
    service
        .tokens()
        .revoke(&token.id, SystemTime::now())
        .unwrap();
    let refused = ask(&connection, LIST_HOSTS).await;
    assert_eq!(reason(&refused), "TOKEN_REVOKED");
}
