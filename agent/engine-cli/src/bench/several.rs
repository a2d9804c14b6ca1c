//! Several sequences: at once, and one after the other with the same beginning.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use engine::blocks::BlockPool;
use engine::engine::Event;
use engine::limits::BLOCK_TOKENS;
use engine::load::LIMITS;
use engine::scheduler::Scheduler;
use engine::sequence::{Partition, Sequence, SequenceId};

use super::Bench;

/// Sequences that are decoded together.
const TOGETHER: [u32; 2] = [8, 16];
/// Tokens of each one's prompt.
const PROMPT: usize = 64;
/// Tokens of each one's answer: the first is sampled while other prompts are still computed.
const ANSWER: usize = 56;
/// Steps that the scheduler is timed for.
const STEPS: u32 = 1000;
/// Chats that begin alike.
const CHATS: u32 = 16;
/// Tokens that they share.
const SHARED: usize = 512;
/// Tokens of each one's own.
const QUESTION: usize = 16;

/// Decodes sequences together; counts from the moment that all of them do to the one where the first ends.
pub(super) fn batched(bench: &Bench<'_>) -> Result<()> {
    for count in TOGETHER {
        let answers = together(bench, count)?;
        let begin = answers.iter().filter_map(|times| times.first()).max().context("no answer")?;
        let end = answers.iter().filter_map(|times| times.last()).min().context("no answer")?;
        let within = |time: &&Instant| *time > begin && *time <= end;
        let tokens = answers.iter().flatten().filter(within).count();
        let spent = end.saturating_duration_since(*begin).as_secs_f64();
        ensure!(tokens > count as usize * 8, "only {tokens} tokens came while all sequences ran");
        let step_s = spent / tokens as f64 * f64::from(count);
        let scheduler = scheduler_s(count)?;
        let numbers = [
            ("tokens_per_s", tokens as f64 / spent),
            ("step_s", step_s),
            ("scheduler_share", scheduler / step_s),
        ];
        bench.report(&format!("tg x{count}"), &numbers);
    }
    Ok(())
}

/// When each token of each answer came.
fn together(bench: &Bench<'_>, count: u32) -> Result<Vec<Vec<Instant>>> {
    let ask = |number: u32| {
        let partition = Partition::from(format!("{count}, {number}").as_str());
        bench.model.submit(bench.request(&partition, bench.prompt(PROMPT, number), ANSWER))
    };
    let receivers = (0..count).map(ask).collect::<Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let readers = receivers.into_iter().map(|receiver| {
            scope.spawn(move || {
                let tokens = receiver.into_iter().filter(|e| matches!(e, Event::Token { .. }));
                tokens.map(|_| Instant::now()).collect::<Vec<_>>()
            })
        });
        let readers: Vec<_> = readers.collect();
        let times = readers.into_iter().map(|reader| reader.join().ok().context("a thread died"));
        times.collect()
    })
}

/// Seconds that deciding and booking a step of `count` sequences takes, with nothing computed.
fn scheduler_s(count: u32) -> Result<f64> {
    // Those that start first go on until the last has had its steps.
    let answer = STEPS as usize * 2;
    let tokens = SHARED + answer;
    let blocks = u32::try_from(tokens.div_ceil(BLOCK_TOKENS))? * count;
    let mut scheduler = Scheduler::new(LIMITS, BlockPool::new(blocks, BLOCK_TOKENS));
    for number in 0..count {
        let prompt = (0..).take(SHARED).map(|token: u32| token ^ number << 16).collect();
        let partition = Partition::from(number.to_string().as_str());
        let id = SequenceId(u64::from(number));
        scheduler.enqueue(Sequence::new(id, partition, 0, prompt, answer))?;
    }
    let mut spent = Duration::ZERO;
    let mut steps = 0;
    while steps < STEPS {
        let begin = Instant::now();
        let plan = scheduler.schedule();
        scheduler.apply(&plan, &mut |_| ());
        let sampled = plan.work.iter().filter(|work| work.sample);
        let room = sampled.filter(|work| scheduler.append(work.id, steps)).count();
        if room == count as usize {
            spent += begin.elapsed();
            steps += 1;
        }
        ensure!(!plan.work.is_empty(), "the scheduler stopped after {steps} steps");
    }
    Ok(spent.as_secs_f64() / f64::from(STEPS))
}

/// Time to the first token of chats that begin alike: each in a partition of its own, then all in one.
pub(super) fn prefix(bench: &Bench<'_>) -> Result<()> {
    let context = bench.context();
    ensure!(SHARED + QUESTION < context, "a context of {context} tokens is too short for this");
    let shared = Partition::from("shared");
    let chat = |number: u32| {
        let mut prompt = bench.prompt(SHARED, 0);
        prompt.extend(bench.prompt(QUESTION, number + 1));
        prompt
    };
    let first = |partition: &Partition, number| bench.time(partition, chat(number), 1);
    let alone = |number: u32| first(&Partition::from(format!("chat {number}").as_str()), number);
    let without = (0..CHATS).map(alone).collect::<Result<Vec<_>>>()?;
    first(&shared, CHATS)?;
    let with = (0..CHATS).map(|number| first(&shared, number)).collect::<Result<Vec<_>>>()?;
    let (without, with) = (median_s(without), median_s(with));
    let numbers = [("without_s", without), ("with_s", with), ("without_by_with", without / with)];
    bench.report("prefix", &numbers);
    Ok(())
}

fn median_s(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}
