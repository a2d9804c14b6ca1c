//! Scheduler and blocks without a model: every invariant over random lives of requests, and each behaviour by name.
//!
//! The compute here is a chain of hashes: what it stores for a token depends on all that it finds stored for the
//! tokens before, so that one wrong, missing or foreign block changes every token after it.
#![allow(clippy::unwrap_used, reason = "a test may panic, and so may its modules")]

use std::collections::{BTreeMap, BTreeSet};

use engine::blocks::{BlockPool, InUse};
use engine::scheduler::{Limits, Plan, Scheduler, Work};
use engine::sequence::{Partition, Sequence, SequenceId};
use proptest::prelude::*;

const BLOCK: usize = 4;
const LIMITS: Limits = Limits { step_tokens: 8, running: 3, waiting: 6, waiting_per_partition: 4 };

/// One token's stored state and whose it is; `None` where nothing was stored since the block was zeroed.
type Cell = Option<(Partition, u64)>;

fn mix(state: u64, token: u32) -> u64 {
    (state ^ u64::from(token) ^ 0x9e37_79b9_7f4a_7c15)
        .wrapping_mul(0xff51_afd7_ed55_8ccd)
        .rotate_left(29)
}

/// What is stored for a token after those before it.
fn store(before: impl Iterator<Item = u64>, token: u32) -> u64 {
    mix(before.fold(1, |state, cell| mix(state, 0) ^ cell), token)
}

fn choose(state: u64) -> u32 {
    u32::try_from(state % 5).unwrap()
}

/// The answer by definition, without blocks.
fn solo(prompt: &[u32], answer_max: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    let mut stored: Vec<u64> = Vec::new();
    while tokens.len() < prompt.len() + answer_max {
        for token in &tokens[stored.len()..] {
            stored.push(store(stored.iter().copied(), *token));
        }
        tokens.push(choose(*stored.last().unwrap()));
    }
    tokens.split_off(prompt.len())
}

struct Request {
    priority: u8,
    prompt: Vec<u32>,
    answer_max: usize,
    answer: Vec<u32>,
}

/// A scheduler, the cache that it rules, and the requests that live.
struct World {
    scheduler: Scheduler,
    cache: Vec<[Cell; BLOCK]>,
    live: BTreeMap<SequenceId, Request>,
    /// Answers that are complete, and how many tokens were in the cache when they began.
    done: BTreeMap<SequenceId, (Vec<u32>, usize)>,
    failed: BTreeSet<SequenceId>,
    preemptions: usize,
    next: u64,
}

impl World {
    fn new(blocks: u32) -> Self {
        Self {
            scheduler: Scheduler::new(LIMITS, BlockPool::new(blocks, BLOCK)),
            cache: (0..blocks).map(|_| Default::default()).collect(),
            live: BTreeMap::new(),
            done: BTreeMap::new(),
            failed: BTreeSet::new(),
            preemptions: 0,
            next: 0,
        }
    }

    fn arrive(
        &mut self,
        partition: &str,
        priority: u8,
        prompt: &[u32],
        answer_max: usize,
    ) -> Option<SequenceId> {
        let id = SequenceId(self.next);
        self.next += 1;
        let sequence =
            Sequence::new(id, Partition::from(partition), priority, prompt.to_vec(), answer_max);
        let request = Request { priority, prompt: prompt.to_vec(), answer_max, answer: Vec::new() };
        self.scheduler.enqueue(sequence).ok()?;
        self.live.insert(id, request);
        Some(id)
    }

    fn cancel(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        self.live.remove(&id);
    }

    /// One step under every invariant; what ended leaves.
    fn step(&mut self) -> Plan {
        let plan = self.scheduler.schedule();
        assert_eq!(plan, self.scheduler.schedule(), "scheduling changed something");
        self.check(&plan);
        let cache = &mut self.cache;
        self.scheduler.apply(&plan, &mut |block| cache[block as usize] = Default::default());
        self.preemptions += plan.preempt.len();
        if let Some(id) = plan.fail {
            let request = &self.live[&id];
            let tokens = request.prompt.len() + request.answer.len();
            assert!(tokens > self.cache.len() * BLOCK, "{tokens} tokens would fit the cache");
            self.failed.insert(id);
            self.cancel(id);
        }
        for work in &plan.work {
            self.compute(work);
        }
        plan
    }

    fn check(&self, plan: &Plan) {
        let planned: usize = plan.work.iter().map(|work| work.tokens.len()).sum();
        assert!(planned <= LIMITS.step_tokens);
        let runs = |id: &SequenceId| self.scheduler.running(*id).is_some();
        let running = self.live.keys().filter(|id| runs(id)).count();
        assert!(running + plan.admit.len() <= LIMITS.running + plan.preempt.len());
        assert!(
            planned > 0 || plan.fail.is_some() || self.live.is_empty(),
            "work is left but nothing is done"
        );
        assert!(plan.preempt.iter().all(runs) && !plan.admit.iter().any(|a| runs(&a.id)));
        if let Some(last) = plan.work.last() {
            let short = !last.sample && planned < LIMITS.step_tokens;
            assert!(!short, "the step has room for more of {:?}", last.id);
        }
        for victim in &plan.preempt {
            let urgent = |id| self.live[&id].priority < self.live[victim].priority;
            assert!(plan.admit.iter().all(|a| urgent(a.id)), "one was preempted to admit an equal");
        }
        for work in &plan.work {
            assert!(!plan.preempt.contains(&work.id), "work for one that was preempted");
        }
        for id in self.live.keys().filter(|id| runs(id) && !plan.preempt.contains(id)) {
            let sequence = self.scheduler.running(*id).unwrap();
            if sequence.pending() == 1 && plan.fail.is_none() {
                let decoded = plan.work.iter().any(|work| work.id == *id && work.sample);
                assert!(decoded, "an answer was held up");
            }
        }
    }

    fn compute(&mut self, work: &Work) {
        let sequence = self.scheduler.running(work.id).unwrap();
        let (partition, blocks) = (sequence.partition.clone(), sequence.table.blocks());
        assert!(blocks.len() * BLOCK < sequence.computed + BLOCK, "more blocks than needed");
        let place = |position: usize| (blocks[position / BLOCK] as usize, position % BLOCK);
        for position in work.tokens.clone() {
            let before = (0..position).map(|p| {
                let (block, at) = place(p);
                let (owner, stored) = self.cache[block][at].as_ref().unwrap();
                assert_eq!(*owner, partition, "a block of another partition");
                *stored
            });
            let stored = store(before, sequence.tokens[position]);
            let (block, at) = place(position);
            for (owner, _) in self.cache[block].iter().flatten() {
                assert_eq!(*owner, partition, "a block was not zeroed");
            }
            let shared = self.scheduler.pool().holders(blocks[position / BLOCK]) > 1;
            assert!(!shared, "a shared block was written");
            self.cache[block][at] = Some((partition.clone(), stored));
        }
        if work.sample {
            let (block, at) = place(work.tokens.end - 1);
            let token = choose(self.cache[block][at].as_ref().unwrap().1);
            self.sampled(work.id, token);
        }
    }

    fn sampled(&mut self, id: SequenceId, token: u32) {
        let request = self.live.get_mut(&id).unwrap();
        request.answer.push(token);
        let room = self.scheduler.append(id, token);
        assert_eq!(room, request.answer.len() < request.answer_max);
        if !room {
            let cached = self.scheduler.running(id).unwrap().cached.unwrap();
            let request = self.live.remove(&id).unwrap();
            assert_eq!(request.answer, solo(&request.prompt, request.answer_max));
            self.done.insert(id, (request.answer, cached));
            self.scheduler.remove(id);
        }
    }

    /// Steps until everything has ended; every block is free then.
    fn finish(&mut self) {
        for _ in 0..5000 {
            if self.scheduler.is_idle() {
                break;
            }
            self.step();
        }
        assert!(self.scheduler.is_idle() && self.live.is_empty(), "{} are left", self.live.len());
        assert_eq!(self.scheduler.pool().free(), self.cache.len());
    }

    /// Zeroes the cache, if nobody uses it; nothing may be left then.
    fn forget(&mut self) -> Result<(), InUse> {
        let cache = &mut self.cache;
        self.scheduler.forget(&mut |block| cache[block as usize] = Default::default())?;
        assert!(self.cache.iter().flatten().all(Option::is_none), "something was left");
        Ok(())
    }
}

fn prompt(first: u32, count: u32) -> Vec<u32> {
    (first..first + count).collect()
}

fn works(plan: &Plan) -> Vec<(u64, std::ops::Range<usize>, bool)> {
    plan.work.iter().map(|work| (work.id.0, work.tokens.clone(), work.sample)).collect()
}

fn ids(ids: &[SequenceId]) -> Vec<u64> {
    ids.iter().map(|id| id.0).collect()
}

fn admitted(plan: &Plan) -> Vec<u64> {
    plan.admit.iter().map(|admission| admission.id.0).collect()
}

#[test]
fn a_long_prompt_is_prefilled_in_chunks_beside_answers() {
    let mut world = World::new(100);
    world.arrive("a", 0, &prompt(0, 3), 5).unwrap();
    world.arrive("a", 0, &prompt(50, 20), 5).unwrap();
    assert_eq!(works(&world.step()), [(0, 0..3, true), (1, 0..5, false)]);
    assert_eq!(works(&world.step()), [(0, 3..4, true), (1, 5..12, false)]);
    // Up to the last boundary before the last token, then the rest.
    assert_eq!(works(&world.step()), [(0, 4..5, true), (1, 12..16, false), (1, 16..19, false)]);
    assert_eq!(works(&world.step()), [(0, 5..6, true), (1, 19..20, true)]);
    world.finish();
}

#[test]
fn prefills_share_a_step() {
    let mut world = World::new(100);
    for first in [0, 50, 90] {
        world.arrive("a", 0, &prompt(first, 3), 1).unwrap();
    }
    assert_eq!(works(&world.step()), [(0, 0..3, true), (1, 0..3, true), (2, 0..2, false)]);
    world.finish();
}

#[test]
fn a_hit_leaves_one_token_and_the_rest_has_the_shape_of_a_miss() {
    for (length, rest) in [(12, 8..12), (13, 12..13), (14, 12..14), (3, 0..3)] {
        let mut world = World::new(20);
        let shapes = |world: &mut World| {
            world.arrive("a", 0, &prompt(0, length), 1).unwrap();
            let mut last = 0..0;
            while !world.scheduler.is_idle() {
                last = works(&world.step()).last().unwrap().1.clone();
            }
            last
        };
        assert_eq!(shapes(&mut world), rest, "a miss of {length}");
        assert_eq!(shapes(&mut world), rest, "a hit of {length}");
        assert_eq!(world.done[&SequenceId(0)].1, 0);
        assert_eq!(world.done[&SequenceId(1)].1, rest.start);
        world.finish();
    }
}

#[test]
fn an_answer_is_a_prefix_of_the_next_turn() {
    let mut world = World::new(20);
    let first = world.arrive("a", 0, &prompt(0, 6), 7).unwrap();
    world.finish();
    // The last token was sampled but not computed: 12 are in the cache, three blocks.
    let turn = [prompt(0, 6), world.done[&first].0.clone(), prompt(80, 2)].concat();
    let second = world.arrive("a", 0, &turn, 2).unwrap();
    world.finish();
    assert_eq!(world.done[&second].1, 12);
}

#[test]
fn partitions_share_nothing() {
    let mut world = World::new(20);
    for partition in ["a", "b", "a"] {
        world.arrive(partition, 0, &prompt(0, 9), 2).unwrap();
        world.finish();
    }
    let cached: Vec<usize> = world.done.values().map(|done| done.1).collect();
    assert_eq!(cached, [0, 0, 8]);
    world.forget().unwrap();
    world.arrive("a", 0, &prompt(0, 9), 2).unwrap();
    world.finish();
    assert_eq!(world.done[&SequenceId(3)].1, 0);
}

#[test]
fn who_lacks_blocks_takes_them_from_the_last_to_arrive_which_resumes() {
    let mut world = World::new(5);
    world.arrive("a", 0, &prompt(0, 7), 9).unwrap();
    world.arrive("a", 0, &prompt(50, 7), 9).unwrap();
    let mut preempted = Vec::new();
    while !world.scheduler.is_idle() {
        preempted.extend(ids(&world.step().preempt));
    }
    assert_eq!(preempted, [1], "the first never is, the second once");
    assert_eq!(world.done.len(), 2);
    world.finish();
}

#[test]
fn what_a_victim_was_given_in_this_step_goes_to_others() {
    let mut world = World::new(4);
    // Both decode; both need a new block at the same moment, and there is one.
    world.arrive("a", 0, &prompt(0, 4), 6).unwrap();
    world.arrive("b", 0, &prompt(50, 4), 6).unwrap();
    world.step();
    while world.scheduler.pool().free() > 0 {
        world.step();
    }
    let plan = loop {
        let plan = world.step();
        if !plan.preempt.is_empty() {
            break plan;
        }
    };
    assert_eq!((ids(&plan.preempt), works(&plan).len()), (vec![1], 1));
    assert!(plan.admit.is_empty(), "nobody is admitted in a step that preempts");
    world.finish();
}

#[test]
fn the_urgent_go_first_and_take_a_place() {
    let mut world = World::new(100);
    for first in [0, 50, 90] {
        world.arrive("a", 5, &prompt(first, 2), 9).unwrap();
    }
    world.step();
    world.arrive("a", 5, &prompt(30, 2), 2).unwrap();
    world.arrive("b", 1, &prompt(60, 2), 2).unwrap();
    let plan = world.step();
    assert_eq!((ids(&plan.preempt), admitted(&plan)), (vec![2], vec![4]));
    world.finish();
    // No equal: one waits.
    let mut world = World::new(100);
    for first in [0, 50, 90, 30] {
        world.arrive("a", 5, &prompt(first, 2), 9).unwrap();
    }
    world.step();
    assert_eq!(world.step().preempt, []);
    world.finish();
}

#[test]
fn nobody_is_preempted_in_vain() {
    let mut world = World::new(4);
    world.arrive("a", 0, &prompt(0, 6), 3).unwrap();
    world.arrive("a", 5, &prompt(50, 2), 9).unwrap();
    world.step();
    // It would not fit beside the first, whoever else gave way.
    world.arrive("b", 1, &prompt(20, 13), 1).unwrap();
    assert_eq!(world.step().preempt, []);
    world.finish();
}

#[test]
fn ties_are_broken_by_arrival_and_the_preempted_come_first() {
    let mut world = World::new(100);
    for first in [0, 50, 90, 30] {
        world.arrive("a", 3, &prompt(first, 2), 4).unwrap();
    }
    let plan = world.step();
    assert_eq!(admitted(&plan), [0, 1, 2]);
    world.arrive("a", 1, &prompt(70, 2), 1).unwrap();
    let plan = world.step();
    assert_eq!((ids(&plan.preempt), admitted(&plan)), (vec![2], vec![4]));
    assert_eq!(admitted(&world.step()), [2], "before 3, which arrived later");
    world.finish();
}

#[test]
fn a_partition_that_asks_for_much_does_not_keep_the_others_waiting() {
    let mut world = World::new(100);
    for first in [0, 50, 90, 30] {
        world.arrive("greedy", 0, &prompt(first, 8), 2).unwrap();
    }
    for _ in 0..3 {
        world.step();
    }
    world.arrive("modest", 0, &prompt(70, 2), 1).unwrap();
    let mut order = Vec::new();
    while !world.scheduler.is_idle() {
        order.extend(admitted(&world.step()));
    }
    let at = |id| order.iter().position(|o| *o == id);
    assert!(at(4) < at(3), "{order:?}: the modest one was there last but had least");
    world.finish();
}

#[test]
fn queues_are_bounded_over_all_and_per_partition() {
    let mut world = World::new(100);
    let fill = |world: &mut World, partition| {
        (0..9).filter(|_| world.arrive(partition, 0, &[1], 1).is_some()).count()
    };
    assert_eq!(fill(&mut world, "a"), LIMITS.waiting_per_partition);
    assert_eq!(fill(&mut world, "b"), LIMITS.waiting - LIMITS.waiting_per_partition);
    assert_eq!(fill(&mut world, "c"), 0);
    world.finish();
    assert_eq!(fill(&mut world, "c"), LIMITS.waiting_per_partition);
    world.finish();
}

#[test]
fn only_what_is_larger_than_the_cache_fails_and_alone() {
    let mut world = World::new(3);
    let small = world.arrive("a", 0, &prompt(0, 5), 3).unwrap();
    let grows = world.arrive("b", 0, &prompt(50, 8), 9).unwrap();
    let prompt_alone = world.arrive("c", 0, &prompt(20, 13), 1).unwrap();
    let exact = world.arrive("d", 0, &prompt(40, 8), 5).unwrap();
    world.finish();
    assert_eq!(world.failed, BTreeSet::from([grows, prompt_alone]));
    assert!(world.done.contains_key(&small) && world.done.contains_key(&exact));
}

#[test]
fn a_prefix_in_use_cannot_be_reset() {
    let mut world = World::new(10);
    let id = world.arrive("a", 0, &prompt(0, 9), 5).unwrap();
    world.step();
    assert_eq!(world.forget().unwrap_err().held, 2);
    world.cancel(id);
    world.forget().unwrap();
}

#[derive(Clone, Debug)]
enum Act {
    Arrive { partition: usize, priority: u8, shared: u32, own: u32, answer: usize },
    Step,
    Cancel { which: usize },
    Forget,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..3_usize, 0..3_u8, 0..14_u32, 1..8_u32, 1..14_usize).prop_map(
            |(partition, priority, shared, own, answer)| Act::Arrive { partition, priority, shared, own, answer }
        ),
        8 => Just(Act::Step),
        1 => (0..8_usize).prop_map(|which| Act::Cancel { which }),
        1 => Just(Act::Forget),
    ]
}

/// Lives `acts` out; returns how often one was preempted, found a prefix, and failed.
fn live(blocks: u32, acts: Vec<Act>) -> [usize; 3] {
    let mut world = World::new(blocks);
    for act in acts {
        match act {
            Act::Arrive { partition, priority, shared, own, answer } => {
                // Few first tokens, so that prefixes are met again, and few own ones.
                let prompt = [prompt(0, shared), prompt(100 + own, own)].concat();
                world.arrive(["a", "b", "c"][partition], priority, &prompt, answer);
            }
            Act::Step => drop(world.step()),
            Act::Cancel { which } => {
                let live: Vec<SequenceId> = world.live.keys().copied().collect();
                if let Some(id) = live.get(which % live.len().max(1)) {
                    world.cancel(*id);
                }
            }
            Act::Forget => {
                let used = world.scheduler.pool().free() < world.cache.len();
                assert_eq!(world.forget().is_err(), used);
            }
        }
    }
    world.finish();
    world.forget().unwrap();
    let hits = world.done.values().filter(|done| done.1 > 0).count();
    [world.preemptions, hits, world.failed.len()]
}

proptest! {
    #![proptest_config(ProptestConfig {cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_answer_is_as_alone_and_all_blocks_are_free_at_the_end(
        blocks in 4..24_u32,
        acts in prop::collection::vec(act(), 0..150),
    ) {
        live(blocks, acts);
    }
}

/// The property above is worth something only if its worlds see what it is about.
#[test]
fn random_worlds_preempt_hit_and_run_out_of_blocks() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = [0; 3];
    for _ in 0..20 {
        let acts = prop::collection::vec(act(), 100..150).new_tree(&mut runner).unwrap().current();
        let found = live(5, acts);
        seen = std::array::from_fn(|i| seen[i] + found[i]);
    }
    assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
}
