//! Tokens and logprobs of a request are the same to the bit, whatever else runs: with the real compute on
//! synthetic models of every architecture, against a run alone on the scalar kernels, one thread and an empty cache.

use std::collections::BTreeMap;
use std::sync::mpsc::channel;

use kernels::{Isa, Scalar};
use proptest::prelude::*;

use super::tests::engine_of;
use super::*;
use crate::synthetic::families::CASES;

/// A request, and how many steps go by before the next arrives.
#[derive(Clone, Debug)]
struct Wanted {
    partition: usize,
    priority: u8,
    /// Tokens of a prompt that many share, and of one that few share.
    shared: u32,
    own: u32,
    answer_max: usize,
    temperature: f32,
    steps: usize,
    /// Leaves after so many tokens.
    cancel: Option<usize>,
}

/// Token, bits of its logprob and of those of the likeliest.
type Said = Vec<(u32, u32, Vec<(u32, u32)>)>;

/// What happened on the way, so that a test can say that it saw it.
#[derive(Debug, Default)]
struct Seen {
    preemptions: usize,
    hits: usize,
}

fn job(wanted: &Wanted) -> (Job, Receiver<Event>) {
    let (events, receiver) = channel();
    let job = Job {
        prompt: (0..wanted.shared)
            .chain(wanted.own * 7..wanted.own * 8)
            .map(|t| 40 + t % 90)
            .collect(),
        answer_max: wanted.answer_max,
        partition: Partition::from(["a", "b"][wanted.partition]),
        priority: wanted.priority,
        sampling: Sampling {
            temperature: wanted.temperature,
            top_p: 0.95,
            min_p: 0.01,
            presence_penalty: 0.5,
            frequency_penalty: 0.2,
            repetition_penalty: 1.1,
            seed: wanted.own.into(),
            ..Sampling::default()
        },
        stops: Vec::new(),
        constraint: None,
        logprobs: Some(2),
        events,
        cancelled: Arc::new(AtomicBool::new(false)),
    };
    (job, receiver)
}

/// Collects an event; whether it was the last.
fn hear(event: Event, said: &mut Said, seen: &mut Seen) -> bool {
    match event {
        Event::Accepted => false,
        Event::Token { token, logprobs, .. } => {
            let logprobs = logprobs.unwrap();
            let top = logprobs.top.iter().map(|(token, l)| (*token, l.to_bits())).collect();
            said.push((token, logprobs.logprob.to_bits(), top));
            false
        }
        Event::Done { tokens, cached, .. } => {
            assert_eq!(tokens as usize, said.len());
            seen.hits += usize::from(cached > 0);
            true
        }
        other => panic!("{other:?}"),
    }
}

fn alone(case: &str, wanted: &Wanted) -> Said {
    let mut engine = engine_of(case, Isa::Scalar(Scalar), 1, 8);
    let (job, events) = job(wanted);
    engine.start(job);
    while !engine.scheduler.is_idle() {
        engine.step();
    }
    let mut said = Said::new();
    let ended = events.iter().filter(|event| hear(event.clone(), &mut said, &mut Seen::default()));
    assert_eq!(ended.count(), 1);
    said
}

/// All requests in one engine; each that is not cancelled must say what it says alone.
fn together(case: &str, all: &[Wanted], threads: usize, blocks: u32) -> Seen {
    let mut engine = engine_of(case, Isa::detect(), threads, blocks);
    let mut open = BTreeMap::new();
    let mut seen = Seen::default();
    for wanted in all {
        let (job, events) = job(wanted);
        let cancel = Arc::clone(&job.cancelled);
        engine.start(job);
        open.insert(SequenceId(engine.next - 1), (wanted, events, cancel, Said::new()));
        for _ in 0..wanted.steps {
            step(case, &mut engine, &mut open, &mut seen);
        }
    }
    for _ in 0..4000 {
        step(case, &mut engine, &mut open, &mut seen);
    }
    assert!(open.is_empty() && engine.requests.is_empty(), "{} have not ended", open.len());
    assert_eq!(engine.scheduler.pool().free(), blocks as usize);
    seen
}

type Open<'a> = BTreeMap<SequenceId, (&'a Wanted, Receiver<Event>, Arc<AtomicBool>, Said)>;

fn step(case: &str, engine: &mut Engine, open: &mut Open<'_>, seen: &mut Seen) {
    if engine.scheduler.is_idle() {
        return;
    }
    let ran = |engine: &Engine, id| engine.scheduler.running(id).is_some();
    let before: Vec<SequenceId> = open.keys().copied().filter(|id| ran(engine, *id)).collect();
    engine.drop_cancelled();
    engine.step();
    let waits = |id: &&SequenceId| engine.requests.contains_key(id) && !ran(engine, **id);
    seen.preemptions += before.iter().filter(waits).count();
    open.retain(|_, (wanted, events, cancel, said)| {
        while let Ok(event) = events.try_recv() {
            if event == Event::Overloaded {
                return false;
            }
            if hear(event, said, seen) {
                assert_eq!(*said, alone(case, wanted), "{case} {wanted:?}");
                return false;
            }
        }
        let leaves = wanted.cancel.is_some_and(|tokens| said.len() >= tokens);
        cancel.store(leaves, Ordering::Relaxed);
        !leaves
    });
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let cancel = prop_oneof![3 => Just(None), 1 => (0..9_usize).prop_map(Some)];
    let numbers = (0..2_usize, 0..2_u8, 0..50_u32, 1..20_u32, 1..20_usize, 0..9_usize);
    (numbers, prop_oneof![Just(0.0_f32), Just(0.9)], cancel).prop_map(
        |((partition, priority, shared, own, answer_max, steps), temperature, cancel)| Wanted {
            partition,
            priority,
            shared,
            own,
            answer_max,
            temperature,
            steps,
            cancel,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_request_says_the_same_whatever_else_runs(
        all in prop::collection::vec(wanted(), 1..9),
        threads in 1..3_usize,
        blocks in 8..16_u32,
        case in prop::sample::select([&["formats"], &CASES[..]].concat()),
    ) {
        together(case, &all, threads, blocks);
    }
}

#[test]
fn a_preempted_request_and_one_with_a_hit_say_the_same() {
    let long = |own, priority, steps| Wanted {
        partition: 0,
        priority,
        shared: 40,
        own,
        answer_max: 45,
        temperature: 0.9,
        steps,
        cancel: None,
    };
    // Random answers may end early; some of these do not.
    let all: Vec<Wanted> = (1..7).map(|own| long(own, u8::from(own % 2 == 1), 6)).collect();
    for (i, case) in CASES.into_iter().chain(["formats"]).enumerate() {
        let seen = together(case, &all, 1 + i % 2, 9);
        assert!(seen.preemptions > 0 && seen.hits > 0, "{case} {seen:?}");
    }
}
