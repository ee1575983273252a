//! Calls of every method.

use std::time::Instant;

use blkpilot_agent::access::methods::METHODS;
use blkpilot_env::Rng;
use blkpilot_proto::v1::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use rand::RngExt as _;

use super::corpus::{Case, Corpus, hex};
use super::target::{Answer, Target};
use super::{draw, good, length, mutate, panics, rng};

/// Calls after which the environments are made anew.
const STRETCH: u64 = 200;
/// Messages of a stream.
const MOST_MESSAGES: usize = 6;
/// A rollout has tensors of so many levels as one of the environments has.
const TENSORS: [usize; 6] = [0, 1, 4, 8, 15, 24];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_sent_is_answered_with_a_status_and_nothing_panics() {
    panics::note();
    let target = Target::start().await;
    let mut corpus = Corpus::kept();
    target.renew().await;
    let good = good::cases();
    for case in &good {
        let answer = send(&target, case).await;
        assert_eq!(answer.code, "Ok", "{} is good: {answer:?}", case.path);
        corpus.note(&case.path, &answer);
    }
    for case in corpus.cases.clone() {
        let answer = send(&target, &case).await;
        corpus.note(&case.path, &answer);
    }
    let (replayed, known) = (corpus.cases.len(), corpus.answers());
    let (mut rng, methods) = (rng(), methods());
    let (begun, mut calls) = (Instant::now(), 0);
    while begun.elapsed() < length() {
        if calls % STRETCH == 0 {
            target.renew().await;
        }
        let case = case(&mut rng, &methods, &corpus, &good);
        let answer = send(&target, &case).await;
        if corpus.note(&case.path, &answer) {
            corpus.add(case, &answer);
        }
        calls += 1;
    }
    println!(
        "{replayed} calls of the corpus with {known} kinds of answers, then {calls} more: {} kinds, {} cases",
        corpus.answers(),
        corpus.cases.len()
    );
    assert!(calls > 0);
}

/// # Panics
/// When it is not answered as it must be, or something else panics meanwhile.
async fn send(target: &Target, case: &Case) -> Answer {
    let answered = target.call(&case.path, &case.messages).await;
    let shown = || {
        let messages: Vec<String> = case.messages.iter().map(|m| hex(m)).collect();
        format!("{}\t{}", case.path, messages.join(","))
    };
    let answer = answered.unwrap_or_else(|problem| panic!("{problem}: {}", shown()));
    let panicked = panics::seen();
    assert!(panicked.is_empty(), "{panicked:#?}: {}", shown());
    answer
}

/// All that are in the table and described by our own files.
fn methods() -> Vec<MethodDescriptor> {
    let sets = [
        FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ];
    let pools = sets.map(|set| DescriptorPool::decode(set).unwrap());
    let services = pools.iter().flat_map(DescriptorPool::services);
    let methods = services.flat_map(|service| service.methods().collect::<Vec<_>>());
    let methods: Vec<_> = methods.collect();
    let is_served = |m: &&MethodDescriptor| METHODS.iter().any(|served| served.path == path(m));
    assert_eq!(methods.iter().filter(is_served).count(), METHODS.len() - 1);
    methods
}

fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// A call that was drawn, or one that is good or there was before, changed here or there.
fn case(rng: &mut Rng, methods: &[MethodDescriptor], corpus: &Corpus, good: &[Case]) -> Case {
    let method = &methods[rng.random_range(0..methods.len())];
    let known = match rng.random_range(0..6) {
        0 => good,
        1 | 2 => &corpus.cases[..],
        _ => &[],
    };
    let mut case = match known.len() {
        0 => drawn(rng, method),
        count => known[rng.random_range(0..count)].clone(),
    };
    if rng.random_bool(0.5) {
        let other = draw::message(rng, &method.input(), 0).encode_to_vec();
        for message in &mut case.messages {
            mutate::bytes(rng, message, &other);
        }
    }
    case
}

fn drawn(rng: &mut Rng, method: &MethodDescriptor) -> Case {
    let path = path(method);
    let messages = if path.ends_with("/Rollout") {
        rollout(rng, method)
    } else {
        let most = if method.is_client_streaming() {
            MOST_MESSAGES
        } else {
            1
        };
        let count = rng.random_range(1..=most);
        let message = |_| draw::message(rng, &method.input(), 0).encode_to_vec();
        (0..count).map(message).collect()
    };
    Case { path, messages }
}

/// A rollout that is opened as it must be, more often than not, and goes on with tensors of about the right length.
fn rollout(rng: &mut Rng, method: &MethodDescriptor) -> Vec<Vec<u8>> {
    use blkpilot_proto::v1;
    use v1::rollout_request::Request as Asked;

    let ids = ["cart", "carts", "host", "drawn"];
    let open = v1::RolloutOpen {
        name: format!("environments/{}", ids[rng.random_range(0..ids.len())]),
        view: rng.random_range(0..3),
    };
    let mut requests = vec![Asked::Open(open), Asked::Reset(v1::RolloutReset::default())];
    for _ in 0..rng.random_range(0..MOST_MESSAGES) {
        let levels = TENSORS[rng.random_range(0..TENSORS.len())];
        let most = if rng.random_bool(0.9) { 3 } else { u16::MAX };
        let tensor = (0..levels).flat_map(|_| rng.random_range(0..=most).to_le_bytes());
        requests.push(Asked::Actions(tensor.collect::<Vec<u8>>().into()));
    }
    let encoded = |request| {
        let request = Some(request);
        v1::RolloutRequest { request }.encode_to_vec()
    };
    let mut messages: Vec<Vec<u8>> = requests.into_iter().map(encoded).collect();
    if rng.random_bool(0.3) {
        let at = rng.random_range(0..=messages.len());
        messages.insert(at, draw::message(rng, &method.input(), 0).encode_to_vec());
    }
    messages
}
