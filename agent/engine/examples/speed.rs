//! `speed MODEL THREADS`: tokens per second of prefill and decode, one request at a time, through the engine's own
//! loop: scheduler, cache blocks, sampler and text included.
//!
//! Shapes are those of llama.cpp's `llama-bench`: `pp N` is a prompt of N tokens in an empty cache, up to the logits
//! after it; `tg N` is N tokens computed one after the other from an empty cache. One line of JSON each.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use engine::engine::{Event, Job};
use engine::load::{Loaded, Machine, open};
use engine::sampler::Sampling;
use engine::sequence::Partition;
use ipc::{Finish, Load};
use kernels::Isa;

/// Prompt lengths.
const PREFILL: [usize; 2] = [64, 512];
/// Answer length.
const DECODE: usize = 64;
/// First tokens that are tried for one whose answer does not end early.
const DECODE_TRIALS_MAX: u32 = 64;
/// Where the prompt's tokens begin in the vocabulary: behind the control tokens.
const FIRST_TOKEN: u32 = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(threads)) = (args.next(), args.next()) else {
        return Err("usage: speed MODEL THREADS".into());
    };
    let bytes = std::fs::read(&model).map_err(|error| format!("{model}: {error}"))?;
    let machine = Machine { isa: Isa::detect(), threads: threads.parse()? };
    let load =
        Load { model_id: "speed".to_owned(), bundle_digest: "0".repeat(64), files: Vec::new() };
    let loaded = open(&load, Arc::new(bytes), machine)?;
    // Faults in weights and cache, as llama-bench's own first pass does.
    time(&loaded, prompt(DECODE), 2)?;
    for tokens in PREFILL {
        let (spent, _) = time(&loaded, prompt(tokens), 1)?;
        report("pp", tokens, spent, machine);
    }
    let first = (FIRST_TOKEN..FIRST_TOKEN + DECODE_TRIALS_MAX)
        .find_map(|token| match time(&loaded, vec![token], DECODE) {
            Ok((_, Finish::Stop)) => None,
            Ok((_, Finish::Length)) => Some(Ok(token)),
            Err(error) => Some(Err(error)),
        })
        .ok_or("every answer ended early")??;
    let (spent, _) = time(&loaded, vec![first], DECODE)?;
    report("tg", DECODE, spent, machine);
    Ok(())
}

/// Different tokens, so that no two rows of a step are alike.
fn prompt(tokens: usize) -> Vec<u32> {
    (FIRST_TOKEN..).take(tokens).collect()
}

/// From the request to its end; as many tokens are computed as `prompt` and `answer` have together, less one.
fn time(
    loaded: &Loaded,
    prompt: Vec<u32>,
    answer_max: usize,
) -> Result<(Duration, Finish), Box<dyn Error>> {
    let (events, receiver) = channel();
    // Its own, so that no prompt finds another's beginning in the cache.
    let partition = Partition::from(format!("{:?}", Instant::now()).as_str());
    let job = Job {
        partition,
        priority: 0,
        prompt,
        answer_max,
        sampling: Sampling { temperature: 0.0, top_p: 1.0, seed: 0 },
        stops: Vec::new(),
        logprobs: None,
        events,
        cancelled: Arc::new(AtomicBool::new(false)),
    };
    let begin = Instant::now();
    loaded.jobs.send(job).map_err(|_| "the engine has stopped")?;
    for event in receiver {
        match event {
            Event::Accepted | Event::Token { .. } => {}
            Event::Done { finish, .. } => return Ok((begin.elapsed(), finish)),
            Event::Overloaded | Event::Failed(_) => return Err(format!("{event:?}").into()),
        }
    }
    Err("the engine has stopped".into())
}

fn report(what: &str, tokens: usize, spent: Duration, machine: Machine) {
    println!(
        "{{\"test\": \"{what}{tokens}\", \"threads\": {}, \"kernels\": \"{}\", \"tokens_per_s\": {:.3}}}",
        machine.threads,
        machine.isa.name(),
        tokens as f64 / spent.as_secs_f64()
    );
}
