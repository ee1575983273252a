//! Many environments in one resource, and the stream that steps them, through a real server and client.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::time::Duration;

use blkpilot_env::sim::presets;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment::Kind;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use blkpilot_proto::v1::rollout_request::Request as Asked;
use support::{
    Service, Settings, cart_pole, environment, fields, managed_host, metadata, preset, reason,
    reset,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

const MODES: [v1::Autoreset; 3] = [
    v1::Autoreset::Disabled,
    v1::Autoreset::NextStep,
    v1::Autoreset::SameStep,
];

fn random_hosts() -> Kind {
    let generator = v1::sim_host::Generator {
        schedulers: true,
        steps: 6,
        ..v1::sim_host::Generator::default()
    };
    Kind::SimHost(v1::SimHost {
        scenario: Some(v1::sim_host::Scenario::Generator(generator)),
    })
}

fn many(kind: Kind, count: u32, mode: v1::Autoreset) -> v1::Environment {
    v1::Environment {
        count,
        autoreset: mode.into(),
        ..environment(kind)
    }
}

async fn create(
    client: &mut EnvironmentServiceClient<Channel>,
    environment: v1::Environment,
) -> String {
    let request = v1::CreateEnvironmentRequest {
        environment: Some(environment),
        ..v1::CreateEnvironmentRequest::default()
    };
    let made = client.create_environment(request).await.unwrap();
    made.into_inner().name
}

/// A rollout whose requests are written as a test likes.
struct Rollout {
    requests: mpsc::Sender<v1::RolloutRequest>,
    answers: Streaming<v1::RolloutResponse>,
}

impl Rollout {
    async fn open(service: &Service, name: &str, view: v1::RolloutView) -> Self {
        Self::open_with(service, name, view, |_| ()).await
    }

    async fn open_with(
        service: &Service,
        name: &str,
        view: v1::RolloutView,
        set_up: impl FnOnce(&mut Request<ReceiverStream<v1::RolloutRequest>>),
    ) -> Self {
        let (requests, outgoing) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        set_up(&mut request);
        let answers = service.environments().rollout(request).await.unwrap();
        let rollout = Self {
            requests,
            answers: answers.into_inner(),
        };
        let open = v1::RolloutOpen {
            name: name.to_owned(),
            view: view.into(),
        };
        rollout.send(Asked::Open(open)).await;
        rollout
    }

    async fn send(&self, request: Asked) {
        let request = v1::RolloutRequest {
            request: Some(request),
        };
        // Of a stream that has ended it is the answer that says why.
        let _ = self.requests.send(request).await;
    }

    async fn act(&self, levels: &[u16]) {
        let bytes: Vec<u8> = levels
            .iter()
            .flat_map(|level| level.to_le_bytes())
            .collect();
        self.send(Asked::Actions(bytes.into())).await;
    }

    async fn reset(&self, seed: u64) {
        self.send(Asked::Reset(v1::RolloutReset {
            seed: Some(seed),
            ..v1::RolloutReset::default()
        }))
        .await;
    }

    async fn answer(&mut self) -> v1::RolloutResponse {
        self.answers.message().await.unwrap().unwrap()
    }

    async fn refusal(&mut self) -> Status {
        self.answers.message().await.unwrap_err()
    }
}

fn floats<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<u8> {
    let bytes = values.into_iter().map(|value| value.to_le_bytes());
    bytes.flatten().collect()
}

fn levels<'a>(tables: impl IntoIterator<Item = &'a v1::LevelTable>) -> Vec<u8> {
    let levels = tables.into_iter().flat_map(|table| &table.levels);
    levels
        .flat_map(|level| (*level as u16).to_le_bytes())
        .collect()
}

fn validity(seen: &[&v1::Observation]) -> Vec<u8> {
    let tables = |table: fn(&v1::Observation) -> &v1::Table| {
        let of = move |o: &&v1::Observation| {
            let table = table(o);
            let cells = (table.rows * table.columns) as usize;
            match &table.validity[..] {
                [] => vec![v1::Validity::Valid as u8; cells],
                values => values.iter().map(|value| *value as u8).collect(),
            }
        };
        seen.iter().flat_map(of).collect::<Vec<u8>>()
    };
    let all = [
        tables(|o| o.disks.as_ref().unwrap()),
        tables(|o| o.channels.as_ref().unwrap()),
        tables(|o| o.devices.as_ref().unwrap()),
        tables(|o| o.host.as_ref().unwrap()),
    ]
    .concat();
    if all.iter().all(|value| *value == v1::Validity::Valid as u8) {
        return vec![];
    }
    all
}

fn reasons<'a>(masks: impl IntoIterator<Item = &'a Vec<i32>>) -> Vec<u8> {
    let reasons: Vec<u8> = masks.into_iter().flatten().map(|r| *r as u8).collect();
    if reasons.iter().all(|r| *r == v1::MaskReason::Allowed as u8) {
        return vec![];
    }
    reasons
}

/// Observations as the layout in the .proto packs them; the ages are left out.
fn packed(seen: &[&v1::Observation]) -> v1::PackedObservations {
    let table = |table: fn(&v1::Observation) -> &Option<v1::Table>| {
        let tables = seen.iter().flat_map(|o| &table(o).as_ref().unwrap().values);
        floats(tables).into()
    };
    let masks = || seen.iter().map(|o| o.masks.as_ref().unwrap());
    let current = || seen.iter().map(|o| o.current.as_ref().unwrap());
    v1::PackedObservations {
        disks: table(|o| &o.disks),
        channels: table(|o| &o.channels),
        devices: table(|o| &o.devices),
        host: table(|o| &o.host),
        pairs: floats(seen.iter().flat_map(|o| &o.pairs.as_ref().unwrap().values)).into(),
        disk_masks: reasons(masks().map(|masks| &masks.disks)).into(),
        device_masks: reasons(masks().map(|masks| &masks.devices)).into(),
        disk_levels: levels(current().map(|action| action.disks.as_ref().unwrap())).into(),
        device_levels: levels(current().map(|action| action.devices.as_ref().unwrap())).into(),
        validity: validity(seen).into(),
        ..v1::PackedObservations::default()
    }
}

/// What Step has answered, as the layout in the .proto packs it.
fn packed_outcomes(steps: &[v1::StepResponse]) -> v1::PackedOutcomes {
    let rewards = || steps.iter().map(|step| step.rewards.as_ref().unwrap());
    let executed = || steps.iter().map(|step| step.executed.as_ref().unwrap());
    let flags = |flag: fn(&v1::StepResponse) -> bool| {
        let flags: Vec<u8> = steps.iter().map(|step| flag(step).into()).collect();
        flags
    };
    let counted: Vec<bool> = rewards().flat_map(|r| r.counted.clone()).collect();
    let counted = match counted.iter().all(|counts| *counts) {
        true => vec![],
        false => counted.iter().map(|counts| u8::from(*counts)).collect(),
    };
    v1::PackedOutcomes {
        rewards: floats(rewards().flat_map(|r| &r.total)).into(),
        own: floats(rewards().flat_map(|r| &r.own)).into(),
        terms: floats(rewards().flat_map(|r| &r.terms.as_ref().unwrap().values)).into(),
        counted: counted.into(),
        terminated: flags(|step| step.terminated).into(),
        truncated: flags(|step| step.truncated).into(),
        disk_executed: levels(executed().map(|action| action.disks.as_ref().unwrap())).into(),
        device_executed: levels(executed().map(|action| action.devices.as_ref().unwrap())).into(),
    }
}

/// Moves that are not all the same: disk d of environment e asks for its first head's level by the step, where that
/// is allowed, and keeps the rest.
fn moves(seen: &[v1::Observation], turn: usize) -> Vec<v1::JointAction> {
    let action = |(e, seen): (usize, &v1::Observation)| {
        let mut action = seen.current.clone().unwrap();
        let masks = seen.masks.as_ref().unwrap();
        let table = action.disks.as_mut().unwrap();
        for disk in 0..table.rows as usize {
            let level = (turn / 12 + e + disk) % 2;
            let allowed = masks.disks[disk * masks.disk_width as usize + level];
            let is_alone = seen.disk_group[disk] < 0
                || seen
                    .disk_group
                    .iter()
                    .filter(|g| **g == seen.disk_group[disk])
                    .count()
                    == 1;
            if allowed == i32::from(v1::MaskReason::Allowed) && is_alone {
                table.levels[disk * table.heads as usize] = level as u32;
            }
        }
        action
    };
    seen.iter().enumerate().map(action).collect()
}

fn packed_action(actions: &[v1::JointAction]) -> Vec<u16> {
    let tables = actions.iter().flat_map(|action| {
        [
            action.disks.as_ref().unwrap(),
            action.devices.as_ref().unwrap(),
        ]
    });
    tables
        .flat_map(|table| table.levels.iter().map(|level| *level as u16))
        .collect()
}

async fn step_many(
    client: &mut EnvironmentServiceClient<Channel>,
    name: &str,
    actions: Vec<v1::JointAction>,
) -> Result<Vec<v1::StepResponse>, Status> {
    let request = v1::StepRequest {
        name: name.to_owned(),
        actions,
        ..v1::StepRequest::default()
    };
    Ok(client.step(request).await?.into_inner().steps)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_environments_does_what_it_does_alone() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    for kind in [cart_pole(), preset("mixed"), random_hosts()] {
        for mode in MODES {
            let name = create(&mut client, many(kind.clone(), 3, mode)).await;
            let mut alone = vec![];
            for _ in 0..3 {
                alone.push(create(&mut client, many(kind.clone(), 1, mode)).await);
            }
            let begin = v1::ResetRequest {
                seed: Some(5),
                ..reset(&name)
            };
            let mut seen = client.reset(begin).await.unwrap().into_inner().observations;
            for (i, name) in (0..).zip(&alone) {
                let begin = v1::ResetRequest {
                    seed: Some(5 + i),
                    ..reset(name)
                };
                let first = client.reset(begin).await.unwrap().into_inner();
                assert_eq!(first.observation.as_ref(), Some(&seen[i as usize]));
            }
            for turn in 0..5 {
                let actions = moves(&seen, turn);
                let steps = step_many(&mut client, &name, actions.clone())
                    .await
                    .unwrap();
                for ((step, name), action) in steps.iter().zip(&alone).zip(actions) {
                    let request = v1::StepRequest {
                        name: name.clone(),
                        action: Some(action),
                        ..v1::StepRequest::default()
                    };
                    assert_eq!(&client.step(request).await.unwrap().into_inner(), step);
                }
                seen = steps
                    .into_iter()
                    .map(|step| step.observation.unwrap())
                    .collect();
            }
        }
    }
}

/// Plays a rollout beside single calls on a fork; how many final observations there were.
async fn play_beside_calls(service: &Service, kind: Kind, mode: v1::Autoreset) -> usize {
    let mut client = service.environments();
    let name = create(&mut client, many(kind, 3, mode)).await;
    let fork = v1::ForkEnvironmentRequest {
        name: name.clone(),
        ..v1::ForkEnvironmentRequest::default()
    };
    let twin = client
        .fork_environment(fork)
        .await
        .unwrap()
        .into_inner()
        .name;
    let begin = v1::ResetRequest {
        seed: Some(9),
        ..reset(&twin)
    };
    let mut seen = client.reset(begin).await.unwrap().into_inner().observations;
    let mut rollout = Rollout::open(service, &name, v1::RolloutView::Full).await;
    let opening = rollout.answer().await;
    assert_eq!(opening.layout.unwrap().count, 3);
    assert_eq!(
        opening.observations,
        Some(v1::PackedObservations::default())
    );
    rollout.reset(9).await;
    let first = rollout.answer().await;
    assert!(first.layout.is_some() && first.outcomes.is_none());
    assert_shown(first.observations, &seen.iter().collect::<Vec<_>>());
    let mut finals = 0;
    for turn in 0..14 {
        let actions = moves(&seen, turn);
        rollout.act(&packed_action(&actions)).await;
        let steps = match step_many(&mut client, &twin, actions).await {
            Ok(steps) => steps,
            Err(over) => {
                assert_eq!(reason(&over), "EPISODE_OVER");
                assert_eq!(reason(&rollout.refusal().await), "EPISODE_OVER");
                break;
            }
        };
        let answer = rollout.answer().await;
        assert_eq!(answer.outcomes, Some(packed_outcomes(&steps)));
        let last: Vec<_> = steps
            .iter()
            .filter_map(|s| s.final_observation.as_ref())
            .collect();
        assert_eq!(answer.final_observations.is_some(), !last.is_empty());
        if !last.is_empty() {
            assert_shown(answer.final_observations, &last);
        }
        finals += last.len();
        seen = steps
            .into_iter()
            .map(|step| step.observation.unwrap())
            .collect();
        assert_shown(answer.observations, &seen.iter().collect::<Vec<_>>());
    }
    finals
}

fn assert_shown(shown: Option<v1::PackedObservations>, seen: &[&v1::Observation]) {
    let shown = v1::PackedObservations {
        ages: Vec::new().into(),
        ..shown.unwrap()
    };
    assert_eq!(shown, packed(seen));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_packs_what_single_calls_answer() {
    let service = Service::start(&Settings::default()).await;
    for kind in [cart_pole(), preset("mixed"), random_hosts()] {
        for mode in MODES {
            let finals = play_beside_calls(&service, kind.clone(), mode).await;
            let has_ended = kind != preset("mixed") && mode == v1::Autoreset::SameStep;
            assert_eq!(finals > 0, has_ended, "{kind:?} {mode:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_requests_under_way_are_answered_in_order() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    let carts = many(cart_pole(), 4, v1::Autoreset::SameStep);
    let names = [
        create(&mut client, carts.clone()).await,
        create(&mut client, carts).await,
    ];
    let mut ahead = Rollout::open(&service, &names[0], v1::RolloutView::Basic).await;
    let mut in_turn = Rollout::open(&service, &names[1], v1::RolloutView::Basic).await;
    in_turn.answer().await;
    in_turn.reset(1).await;
    in_turn.answer().await;
    ahead.reset(1).await;
    let turns = (0..100_u16).map(|turn| [turn % 2, turn / 2 % 2, 1, turn % 3 % 2]);
    for levels in turns.clone() {
        ahead.act(&levels).await;
    }
    ahead.answer().await;
    ahead.answer().await;
    for levels in turns {
        in_turn.act(&levels).await;
        assert_eq!(ahead.answer().await, in_turn.answer().await);
    }
    // Who has nothing to ask any more has all answers, and then the end.
    drop(ahead.requests);
    assert!(ahead.answers.message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_no_answers_cannot_send_for_ever_and_holds_up_nobody_else() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    let carts = many(cart_pole(), 1024, v1::Autoreset::SameStep);
    let name = create(&mut client, carts).await;
    let mut rollout = Rollout::open(&service, &name, v1::RolloutView::Full).await;
    rollout.reset(1).await;
    let levels = [1; 1024];
    // Far more than windows of HTTP/2 and the server's bounds hold together.
    let most = 2_000;
    let mut sent = 0;
    let sending = async {
        while sent < most {
            rollout.act(&levels).await;
            sent += 1;
        }
    };
    let all_sent = tokio::time::timeout(Duration::from_secs(2), sending).await;
    assert!(
        all_sent.is_err(),
        "{most} requests were taken from one who reads nothing"
    );
    client.reset(reset(&name)).await.unwrap();
    // Nothing was lost meanwhile.
    for _ in 0..sent + 2 {
        rollout.answer().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_rollout_lets_its_environment_go() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    let name = create(&mut client, many(cart_pole(), 2, v1::Autoreset::SameStep)).await;
    let mut rollout = Rollout::open(&service, &name, v1::RolloutView::Basic).await;
    rollout.answer().await;
    rollout.reset(3).await;
    rollout.answer().await;
    drop(rollout);
    let actions = vec![
        v1::JointAction {
            disks: Some(v1::LevelTable {
                rows: 1,
                heads: 1,
                levels: vec![1],
            }),
            devices: None,
        };
        2
    ];
    step_many(&mut client, &name, actions).await.unwrap();
    let delete = v1::DeleteEnvironmentRequest {
        name: name.clone(),
        allow_missing: false,
    };
    client.delete_environment(delete).await.unwrap();
    // A rollout of an environment that is deleted meanwhile ends too.
    let name = create(&mut client, many(cart_pole(), 2, v1::Autoreset::SameStep)).await;
    let mut rollout = Rollout::open(&service, &name, v1::RolloutView::Basic).await;
    rollout.answer().await;
    let delete = v1::DeleteEnvironmentRequest {
        name,
        allow_missing: false,
    };
    client.delete_environment(delete).await.unwrap();
    rollout.reset(3).await;
    assert_eq!(rollout.refusal().await.code(), Code::NotFound);
}

/// A client that hangs must not keep a live host.
#[tokio::test]
async fn a_host_is_free_once_its_environment_is_deleted_whoever_has_a_rollout_open_still() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    for _ in 0..3 {
        let name = create(&mut client, environment(managed_host())).await;
        client.reset(reset(&name)).await.unwrap();
        let mut rollout = Rollout::open(&service, &name, v1::RolloutView::Basic).await;
        rollout.answer().await;
        let delete = |name: &str| v1::DeleteEnvironmentRequest {
            name: name.to_owned(),
            allow_missing: false,
        };
        client.delete_environment(delete(&name)).await.unwrap();
        let next = create(&mut client, environment(managed_host())).await;
        rollout.reset(1).await;
        assert_eq!(rollout.refusal().await.code(), Code::NotFound);
        client.delete_environment(delete(&next)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_ends_at_its_deadline_and_when_the_service_stops() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    let name = create(&mut client, many(cart_pole(), 2, v1::Autoreset::SameStep)).await;
    let basic = v1::RolloutView::Basic;
    let patient = |request: &mut Request<ReceiverStream<v1::RolloutRequest>>| {
        let header = "300m".parse().unwrap();
        request.metadata_mut().insert("grpc-timeout", header);
    };
    let mut rollout = Rollout::open_with(&service, &name, basic, patient).await;
    rollout.answer().await;
    let late = rollout.refusal().await;
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    let mut rollout = Rollout::open(&service, &name, basic).await;
    rollout.answer().await;
    let stopped = tokio::spawn(service.stop());
    assert_eq!(rollout.refusal().await.code(), Code::Unavailable);
    stopped.await.unwrap();
}

/// A rollout of two hosts that were begun, and what they show.
async fn begun(service: &Service, kind: Kind) -> (Rollout, String, Vec<v1::Observation>) {
    let mut client = service.environments();
    let name = create(&mut client, many(kind, 2, v1::Autoreset::Disabled)).await;
    let begin = v1::ResetRequest {
        seed: Some(1),
        ..reset(&name)
    };
    let seen = client.reset(begin).await.unwrap().into_inner().observations;
    let mut rollout = Rollout::open(service, &name, v1::RolloutView::Basic).await;
    rollout.answer().await;
    (rollout, name, seen)
}

/// Ends a rollout by a request that is refused after a good one, and looks whether the environments are as that left
/// them.
async fn refused(service: &Service, kind: Kind, bad: impl FnOnce(&mut Vec<u16>)) -> Status {
    let (mut rollout, name, seen) = begun(service, kind.clone()).await;
    let (mut other, _, _) = begun(service, kind).await;
    let good = packed_action(&moves(&seen, 0));
    let mut levels = good.clone();
    bad(&mut levels);
    rollout.act(&good).await;
    rollout.act(&levels).await;
    rollout.act(&good).await;
    rollout.answer().await;
    let refusal = rollout.refusal().await;
    assert_eq!(metadata(&refusal, "request").as_deref(), Some("2"));
    let mut again = Rollout::open(service, &name, v1::RolloutView::Basic).await;
    again.answer().await;
    other.act(&good).await;
    other.answer().await;
    for rollout in [&again, &other] {
        rollout.act(&good).await;
    }
    let pair = (again.answer().await, other.answer().await);
    assert_eq!(pair.0.observations, pair.1.observations);
    refusal
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_fit_ends_the_rollout_at_the_last_good_step() {
    let service = Service::start(&Settings::default()).await;
    let short = refused(&service, cart_pole(), |levels| levels.truncate(1)).await;
    assert_eq!(short.code(), Code::InvalidArgument);
    assert_eq!(reason(&short), "ACTION_LENGTH");
    assert_eq!(fields(&short), ["actions"]);
    let beyond = refused(&service, cart_pole(), |levels| levels[1] = 2).await;
    assert_eq!(beyond.code(), Code::InvalidArgument);
    assert_eq!(reason(&beyond), "ACTION_NO_SUCH_LEVEL");
    assert_eq!(metadata(&beyond, "environment").as_deref(), Some("1"));
    assert_eq!(fields(&beyond), ["actions[1][cart].push"]);
    let beyond = refused(&service, preset("mixed"), |levels| {
        let last = levels.len() - 1;
        levels[last] = u16::MAX;
    })
    .await;
    assert_eq!(reason(&beyond), "ACTION_NO_SUCH_LEVEL");
    assert_eq!(metadata(&beyond, "environment").as_deref(), Some("1"));
}

/// A host whose first disk has no IOThread, and so no channel to choose.
fn without_iothread() -> Kind {
    let mut scenario = presets::mixed();
    scenario.disks[0].iothread = None;
    scenario.disks[0].default_channel = 0;
    let text = toml::to_string(&scenario).unwrap();
    Kind::SimHost(v1::SimHost {
        scenario: Some(v1::sim_host::Scenario::ScenarioToml(text)),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_level_is_refused_by_name() {
    let service = Service::start(&Settings::default()).await;
    let (mut rollout, _, seen) = begun(&service, without_iothread()).await;
    let mut levels = packed_action(&moves(&seen, 0));
    let second = levels.len() / 2;
    levels[second] = 1;
    rollout.act(&levels).await;
    let masked = rollout.refusal().await;
    assert_eq!(masked.code(), Code::InvalidArgument);
    assert_eq!(reason(&masked), "ACTION_MASKED");
    let disk = &seen[1].disk_ids[0];
    assert_eq!(fields(&masked), [format!("actions[1][{disk}].channel")]);
    assert!(masked.message().contains("IOThread"), "{masked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_rollout_is_refused() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    let name = create(&mut client, many(cart_pole(), 2, v1::Autoreset::Disabled)).await;
    let basic = v1::RolloutView::Basic;
    let mut unknown = Rollout::open(&service, "environments/nobody", basic).await;
    assert_eq!(unknown.refusal().await.code(), Code::NotFound);
    let mut early = Rollout::open(&service, &name, basic).await;
    early.act(&[0, 0]).await;
    early.answer().await;
    assert_eq!(reason(&early.refusal().await), "STEP_BEFORE_RESET");
    let mut twice = Rollout::open(&service, &name, basic).await;
    twice.send(Asked::Open(v1::RolloutOpen::default())).await;
    twice.answer().await;
    assert_eq!(fields(&twice.refusal().await), ["open"]);
    let mut odd = Rollout::open(&service, &name, basic).await;
    odd.reset(1).await;
    odd.send(Asked::Actions(vec![0; 3].into())).await;
    odd.answer().await;
    odd.answer().await;
    assert_eq!(reason(&odd.refusal().await), "ACTION_LENGTH");
    let mut seeds = Rollout::open(&service, &name, basic).await;
    let reset = v1::RolloutReset {
        seeds: vec![1, 2, 3],
        ..v1::RolloutReset::default()
    };
    seeds.send(Asked::Reset(reset)).await;
    seeds.answer().await;
    assert_eq!(fields(&seeds.refusal().await), ["seeds"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mask_resets_some_and_leaves_the_others() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    let name = create(&mut client, many(cart_pole(), 3, v1::Autoreset::Disabled)).await;
    let first = client.reset(reset(&name)).await.unwrap().into_inner();
    let some = v1::ResetRequest {
        seeds: vec![1, 2, 3],
        mask: vec![true, false, true],
        ..reset(&name)
    };
    let second = client.reset(some).await.unwrap().into_inner();
    assert_eq!(first.observations[1], second.observations[1]);
    for changed in [0, 2] {
        assert_ne!(first.observations[changed], second.observations[changed]);
    }
    let wrong = v1::ResetRequest {
        mask: vec![true],
        ..reset(&name)
    };
    let refused = client.reset(wrong).await.unwrap_err();
    assert_eq!(fields(&refused), ["mask"]);
    let single = v1::StepRequest {
        name,
        action: Some(v1::JointAction::default()),
        ..v1::StepRequest::default()
    };
    assert_eq!(fields(&client.step(single).await.unwrap_err()), ["action"]);
}
