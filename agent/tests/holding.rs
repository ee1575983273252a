//! Who holds an environment: forks, calls that are repeated, holder and observers of a host, and filters.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so")]

mod support;

use std::time::Duration;

use blkpilot_agent::access::role::Role;
use blkpilot_proto::v1;
use blkpilot_proto::v1::environment::Kind;
use blkpilot_proto::v1::environment_service_client::EnvironmentServiceClient;
use blkpilot_proto::v1::observe_response::Shown;
use support::{
    HOST, Service, Settings, cart_pole, create, environment, fields, managed_host, metadata,
    preset, reason, reset,
};
use tonic::transport::Channel;
use tonic::{Code, Status};
use uuid::Uuid;

type Client = EnvironmentServiceClient<Channel>;

fn fork(name: &str, id: &str) -> v1::ForkEnvironmentRequest {
    v1::ForkEnvironmentRequest {
        name: name.to_owned(),
        environment_id: id.to_owned(),
        ..v1::ForkEnvironmentRequest::default()
    }
}

/// A step in which all stays as it is, but for the first level of each environment.
fn step(name: &str, seen: &[v1::Observation], first: u32) -> v1::StepRequest {
    let actions = seen.iter().map(|seen| {
        let mut action = seen.current.clone().unwrap();
        let levels = &mut action.disks.as_mut().unwrap().levels;
        if seen.disk_ids.len() == 1 {
            levels[0] = first;
        }
        action
    });
    v1::StepRequest {
        name: name.to_owned(),
        actions: actions.collect(),
        ..v1::StepRequest::default()
    }
}

async fn seen_after_reset(client: &mut Client, name: &str) -> Vec<v1::Observation> {
    client
        .reset(reset(name))
        .await
        .unwrap()
        .into_inner()
        .observations
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_goes_on_as_its_original_does_bit_for_bit() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    for (id, kind) in [("cart", cart_pole()), ("host", preset("mixed"))] {
        let original = v1::CreateEnvironmentRequest {
            environment: Some(v1::Environment {
                count: 2,
                autoreset: v1::Autoreset::SameStep.into(),
                ..environment(kind.clone())
            }),
            ..create(kind, id)
        };
        let made = client
            .create_environment(original)
            .await
            .unwrap()
            .into_inner();
        let seen = seen_after_reset(&mut client, &made.name).await;
        client.step(step(&made.name, &seen, 1)).await.unwrap();
        let forked = client
            .fork_environment(fork(&made.name, &format!("{id}-2")))
            .await;
        let forked = forked.unwrap().into_inner();
        assert_eq!(forked.name, format!("environments/{id}-2"));
        assert_eq!((forked.kind, forked.count), (made.kind, 2));
        for turn in 0..40 {
            let mut both = vec![];
            for name in [&made.name, &forked.name] {
                let step = client.step(step(name, &seen, turn / 3 % 2)).await;
                both.push(prost::Message::encode_to_vec(&step.unwrap().into_inner()));
            }
            assert_eq!(both[0], both[1]);
        }
        // Random numbers go on equally too.
        let mut both = vec![];
        for name in [&made.name, &forked.name] {
            both.push(seen_after_reset(&mut client, name).await);
        }
        assert_eq!(both[0], both[1]);
        assert_ne!(both[0], seen);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_forked_says_why_and_validating_makes_nothing() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    client
        .create_environment(create(managed_host(), "live"))
        .await
        .unwrap();
    let refused = client
        .fork_environment(fork("environments/live", ""))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(reason(&refused), "CANNOT_FORK");
    client
        .create_environment(create(cart_pole(), "cart"))
        .await
        .unwrap();
    let tried = v1::ForkEnvironmentRequest {
        validate_only: true,
        ..fork("environments/cart", "twin")
    };
    let described = client.fork_environment(tried).await.unwrap().into_inner();
    assert_eq!(described.name, "environments/twin");
    assert!(described.create_time.is_none());
    let taken = client
        .fork_environment(fork("environments/cart", "cart"))
        .await
        .unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    let tried = v1::ForkEnvironmentRequest {
        validate_only: true,
        ..fork("environments/cart", "cart")
    };
    let taken = client.fork_environment(tried).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    let shown = v1::ListEnvironmentsRequest::default();
    let shown = client.list_environments(shown).await.unwrap().into_inner();
    assert_eq!(shown.environments.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_has_the_first_answer_and_is_not_done_twice() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    client
        .create_environment(create(cart_pole(), "cart"))
        .await
        .unwrap();
    let name = "environments/cart";
    let id = || Uuid::new_v4().to_string();
    let begin = v1::ResetRequest {
        request_id: id(),
        ..reset(name)
    };
    let first = client.reset(begin.clone()).await.unwrap().into_inner();
    assert_eq!(
        client.reset(begin.clone()).await.unwrap().into_inner(),
        first
    );
    let observation = first.observation.unwrap();
    let push = v1::StepRequest {
        request_id: id(),
        action: observation.current.clone(),
        name: name.to_owned(),
        ..v1::StepRequest::default()
    };
    // Both at once, too: the second waits for the first.
    let mut other = client.clone();
    let (one, two) = tokio::join!(client.step(push.clone()), other.step(push.clone()));
    let (one, two) = (one.unwrap().into_inner(), two.unwrap().into_inner());
    assert_eq!(one, two);
    let next = v1::StepRequest {
        request_id: id(),
        ..push.clone()
    };
    assert_ne!(client.step(next).await.unwrap().into_inner(), one);
    assert_eq!(client.step(push.clone()).await.unwrap().into_inner(), one);
    // The same id with another request.
    let mut otherwise = push.clone();
    otherwise
        .action
        .as_mut()
        .unwrap()
        .disks
        .as_mut()
        .unwrap()
        .levels[0] = 1;
    let refused = client.step(otherwise).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(fields(&refused), ["request_id"]);
    let reset_by_its_id = v1::ResetRequest {
        request_id: push.request_id.clone(),
        ..begin
    };
    let refused = client.reset(reset_by_its_id).await.unwrap_err();
    assert_eq!(fields(&refused), ["request_id"]);
    let nonsense = v1::StepRequest {
        request_id: "again".to_owned(),
        ..push
    };
    assert_eq!(
        fields(&client.step(nonsense).await.unwrap_err()),
        ["request_id"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_creations_and_forks_make_one_environment() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    let request = v1::CreateEnvironmentRequest {
        request_id: Uuid::new_v4().to_string(),
        ..create(cart_pole(), "")
    };
    let mut other = client.clone();
    let (one, two) = tokio::join!(
        client.create_environment(request.clone()),
        other.create_environment(request.clone())
    );
    let made = one.unwrap().into_inner();
    assert_eq!(made.name, two.unwrap().into_inner().name);
    let otherwise = v1::CreateEnvironmentRequest {
        environment_id: "mine".to_owned(),
        ..request
    };
    let refused = client.create_environment(otherwise).await.unwrap_err();
    assert_eq!(fields(&refused), ["request_id"]);
    let request = v1::ForkEnvironmentRequest {
        request_id: Uuid::new_v4().to_string(),
        ..fork(&made.name, "")
    };
    let one = client
        .fork_environment(request.clone())
        .await
        .unwrap()
        .into_inner();
    let two = client.fork_environment(request).await.unwrap().into_inner();
    assert_eq!(one.name, two.name);
    let shown = v1::ListEnvironmentsRequest::default();
    let shown = client.list_environments(shown).await.unwrap().into_inner();
    assert_eq!(shown.environments.len(), 2);
}

fn observer(id: &str) -> v1::CreateEnvironmentRequest {
    let kind = Kind::ManagedHost(v1::ManagedHost {
        host: HOST.to_owned(),
        access: v1::HostAccess::Observer.into(),
        ..v1::ManagedHost::default()
    });
    create(kind, id)
}

fn observe(id: &str) -> v1::ObserveRequest {
    v1::ObserveRequest {
        name: format!("environments/{id}"),
    }
}

/// That an observer was refused in the holder's name.
fn assert_names_holder(refused: &Status) {
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        metadata(refused, "holder").as_deref(),
        Some("environments/mine")
    );
    let end = metadata(refused, "lease_end").unwrap();
    assert!(refused.message().contains(&end), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn observers_of_a_host_see_what_its_holder_sees_and_may_not_act() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    client.create_environment(observer("early")).await.unwrap();
    let nobody = client.reset(reset("environments/early")).await.unwrap_err();
    assert_eq!(reason(&nobody), "OBSERVER_ONLY");
    assert!(nobody.message().contains("nobody holds"));
    client
        .create_environment(create(managed_host(), "mine"))
        .await
        .unwrap();
    client.create_environment(observer("late")).await.unwrap();
    let mut streams = vec![];
    for id in ["early", "mine"] {
        streams.push(client.observe(observe(id)).await.unwrap().into_inner());
    }
    let first = client
        .reset(reset("environments/mine"))
        .await
        .unwrap()
        .into_inner();
    let action = first.observation.as_ref().unwrap().current.clone();
    for stream in &mut streams {
        let shown = stream.message().await.unwrap().unwrap();
        assert_eq!(shown.shown, Some(Shown::Reset(first.clone())));
        assert_eq!(shown.holder, "environments/mine");
    }
    // Who comes later begins with what was shown last.
    streams.push(client.observe(observe("late")).await.unwrap().into_inner());
    let shown = streams[2].message().await.unwrap().unwrap();
    assert_eq!((shown.shown, shown.missed), (Some(Shown::Reset(first)), 0));
    let act = |id: &str| v1::StepRequest {
        name: format!("environments/{id}"),
        action: action.clone(),
        ..v1::StepRequest::default()
    };
    let stepped = client.step(act("mine")).await.unwrap().into_inner();
    for stream in &mut streams {
        let shown = stream.message().await.unwrap().unwrap();
        assert_eq!(shown.shown, Some(Shown::Step(stepped.clone())));
    }
    let refused = client.step(act("late")).await.unwrap_err();
    assert_eq!(reason(&refused), "OBSERVER_ONLY");
    assert_names_holder(&refused);
    let second = client
        .create_environment(create(managed_host(), "yours"))
        .await
        .unwrap_err();
    assert_eq!(reason(&second), "HOST_ATTACHED");
    assert_names_holder(&second);
    // One that was not read for two answers is told what it has missed.
    for _ in 0..2 {
        client.step(act("mine")).await.unwrap();
    }
    let last = client.step(act("mine")).await.unwrap().into_inner();
    let mut missed = 0;
    loop {
        let shown = streams[1].message().await.unwrap().unwrap();
        missed += shown.missed + 1;
        if shown.shown == Some(Shown::Step(last.clone())) {
            break;
        }
    }
    assert_eq!(missed, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn observing_keeps_an_observer_and_ends_with_it() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    let mut brief = observer("brief");
    let lease = Duration::from_secs(1).try_into().ok();
    brief.environment.as_mut().unwrap().lease_duration = lease;
    client.create_environment(brief).await.unwrap();
    let mut stream = client.observe(observe("brief")).await.unwrap().into_inner();
    // Longer than its lease, in which nothing is shown.
    let quiet = tokio::time::timeout(Duration::from_secs(2), stream.message()).await;
    assert!(quiet.is_err());
    let delete = v1::DeleteEnvironmentRequest {
        name: "environments/brief".to_owned(),
        allow_missing: false,
    };
    client.delete_environment(delete).await.unwrap();
    let ended = stream.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::NotFound);
    client
        .create_environment(create(cart_pole(), "cart"))
        .await
        .unwrap();
    let refused = client.observe(observe("cart")).await.unwrap_err();
    assert_eq!(reason(&refused), "NOT_A_HOST");
    client.create_environment(observer("other")).await.unwrap();
    let mut stream = client.observe(observe("other")).await.unwrap().into_inner();
    service.stop().await;
    assert!(stream.message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_may_force_nothing() {
    let service = Service::start(&Settings {
        on_tcp: true,
        ..Settings::default()
    })
    .await;
    let operator = service.with_token(Role::Operator);
    let mut client = EnvironmentServiceClient::new(operator.connect().await.unwrap());
    client.create_environment(observer("looks")).await.unwrap();
    let mut forces = observer("forces");
    if let Some(Kind::ManagedHost(host)) = &mut forces.environment.as_mut().unwrap().kind {
        host.force_reason = "I want to".to_owned();
    }
    let refused = client.create_environment(forces).await.unwrap_err();
    assert_eq!(fields(&refused), ["environment.managed_host.force_reason"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_page_by_page() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    for id in ["a", "b", "c"] {
        client
            .create_environment(create(cart_pole(), id))
            .await
            .unwrap();
        client
            .create_environment(create(preset("mixed"), &format!("sim-{id}")))
            .await
            .unwrap();
    }
    let mut seen = vec![];
    let mut page_token = String::new();
    loop {
        let request = v1::ListEnvironmentsRequest {
            page_size: 2,
            page_token,
            filter: "kind = \"sim_host\" AND preset = mixed AND count = 1".to_owned(),
        };
        let page = client
            .list_environments(request)
            .await
            .unwrap()
            .into_inner();
        seen.extend(page.environments.into_iter().map(|e| e.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(
        seen,
        [
            "environments/sim-a",
            "environments/sim-b",
            "environments/sim-c"
        ]
    );
    let request = v1::ListEnvironmentsRequest {
        filter: "colour = red".to_owned(),
        ..v1::ListEnvironmentsRequest::default()
    };
    let refused = client.list_environments(request).await.unwrap_err();
    assert_eq!(fields(&refused), ["filter"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_count_out_of_range_is_refused() {
    let service = Service::start(&Settings::default()).await;
    let mut client = service.environments();
    for (kind, count) in [(cart_pole(), 1025), (managed_host(), 2)] {
        let mut many = create(kind, "");
        many.environment.as_mut().unwrap().count = count;
        let refused = client.create_environment(many).await.unwrap_err();
        assert_eq!(fields(&refused), ["environment.count"]);
    }
}
