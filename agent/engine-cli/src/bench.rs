//! `bench`: tokens per second through the engine's own loop: scheduler, cache blocks, sampler and text included.
//!
//! Shapes are those of llama.cpp's `llama-bench`: `pp N` is a prompt of N tokens in an empty cache, up to the logits
//! after it; `tg N` is N tokens computed one after the other from an empty cache.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use engine::request::Prepared;
use engine::sampler::Sampling;
use engine::sequence::Partition;
use ipc::Finish;
use serde_json::json;

use crate::model::{Model, ModelArgs};

/// Prompt lengths.
const PREFILL: [usize; 2] = [64, 512];
/// Answer length.
const DECODE: usize = 64;
/// First tokens that are tried for one whose answer does not end early.
const DECODE_TRIALS_MAX: u32 = 64;
/// Where the prompt's tokens begin in the vocabulary: behind the control tokens.
const FIRST_TOKEN: u32 = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Print one line of JSON per test.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let model = args.model.open()?;
    let context = model.loaded.info.context_tokens_max as usize;
    // Faults in weights and cache, as llama-bench's own first pass does.
    time(&model, prompt(&model, DECODE.min(context / 2)), 2)?;
    for tokens in PREFILL.into_iter().filter(|tokens| *tokens < context) {
        let (spent, _) = time(&model, prompt(&model, tokens), 1)?;
        report(args, &model, "pp", tokens, spent);
    }
    if DECODE < context {
        let (spent, _) = time(&model, vec![endless(&model)?], DECODE)?;
        report(args, &model, "tg", DECODE, spent);
    }
    Ok(ExitCode::SUCCESS)
}

/// A token after which the model goes on for long enough.
fn endless(model: &Model) -> Result<u32> {
    for token in prompt(model, DECODE_TRIALS_MAX as usize) {
        if time(model, vec![token], DECODE)?.1 == Finish::Length {
            return Ok(token);
        }
    }
    anyhow::bail!("each of {DECODE_TRIALS_MAX} answers ended before {DECODE} tokens")
}

/// Different tokens, as far as there are, so that no two rows of a step are alike.
fn prompt(model: &Model, tokens: usize) -> Vec<u32> {
    let last = u32::try_from(model.loaded.tokenizer.vocabulary()).unwrap_or(u32::MAX);
    let first = if last > 2000 { 1000 } else { FIRST_TOKEN };
    (first..last).cycle().take(tokens).collect()
}

/// From the request to its end; as many tokens are computed as `prompt` and `answer` have together, less one.
fn time(model: &Model, prompt: Vec<u32>, answer_max: usize) -> Result<(Duration, Finish)> {
    let begin = Instant::now();
    let prepared = Prepared {
        prompt,
        // Its own, so that no prompt finds another's beginning in the cache.
        partition: Partition::from(format!("{begin:?}").as_str()),
        priority: 0,
        answer_max,
        sampling: Sampling::greedy(),
        stops: Vec::new(),
        format: None,
        constraint: None,
        logprobs: None,
    };
    let finish = model.answer(prepared, |_| ())?.finish;
    Ok((begin.elapsed(), finish.context("an answer did not end")?))
}

fn report(args: &Args, model: &Model, what: &str, tokens: usize, spent: Duration) {
    let (threads, kernels) = (model.machine.threads, model.machine.isa.name());
    let speed = tokens as f64 / spent.as_secs_f64();
    if args.json {
        let test = format!("{what}{tokens}");
        println!(
            "{}",
            json!({"test": test, "threads": threads, "kernels": kernels, "tokens_per_s": speed})
        );
    } else {
        println!("{what}{tokens:<4} {speed:9.1} tokens/s  ({threads} threads, {kernels} kernels)");
    }
}
