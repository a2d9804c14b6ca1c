//! `bench`: speed and memory through the engine's own loop: scheduler, cache blocks, sampler and text included.
//!
//! Shapes are those of llama.cpp's `llama-bench`: `pp N` is a prompt of N tokens in an empty cache, up to the logits
//! after it; `tg N` is N tokens computed one after the other from an empty cache.

mod machine;
mod several;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use engine::request::Prepared;
use engine::sampler::Sampling;
use engine::sequence::Partition;
use ipc::Finish;
use serde_json::{Map, Value, json};

use crate::model::{Model, ModelArgs};

/// Tokens of the pass that comes before all measures.
const WARM: usize = 64;
/// Where the prompt's tokens begin in the vocabulary: behind the control tokens.
const FIRST_TOKEN: u32 = 3;
/// Longest prompt or answer of one sequence.
const TOKENS_MAX: i64 = 4096;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What is measured.
    #[arg(long, value_enum, default_value_t = Part::Speed)]
    part: Part,
    /// Prompt lengths of `speed`; those that the context has no room for are left out.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values = ["64", "512"], value_parser = clap::value_parser!(u16).range(1..=TOKENS_MAX))]
    prefill: Vec<u16>,
    /// Answer length of `speed`.
    #[arg(long, value_name = "TOKENS", default_value = "64", value_parser = clap::value_parser!(u16).range(1..=TOKENS_MAX))]
    decode: u16,
    /// Print one line of JSON per test.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Part {
    /// One sequence; what the machine reads; memory.
    Speed,
    /// Several sequences at once, and the scheduler's share of their steps.
    Batched,
    /// Chats that begin alike, with and without the prefix cache.
    Prefix,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let model = args.model.open()?;
    let bench = Bench { model: &model, json: args.json };
    // Faults in weights and cache, as llama-bench's own first pass does.
    bench.time(&Partition::from("warm"), bench.prompt(WARM.min(bench.context() / 2), 0), 2)?;
    match args.part {
        Part::Speed => speed(&bench, args)?,
        Part::Batched => several::batched(&bench)?,
        Part::Prefix => several::prefix(&bench)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn speed(bench: &Bench<'_>, args: &Args) -> Result<()> {
    let rate = |tokens: usize, spent: Duration| tokens as f64 / spent.as_secs_f64();
    for tokens in args.prefill.iter().map(|tokens| usize::from(*tokens)) {
        if tokens < bench.context() {
            let alone = Partition::from(format!("pp{tokens}").as_str());
            let spent = bench.time(&alone, bench.prompt(tokens, 0), 1)?;
            bench.report(&format!("pp{tokens}"), &[("tokens_per_s", rate(tokens, spent))]);
        }
    }
    let tokens = usize::from(args.decode);
    if tokens < bench.context() {
        let spent = bench.time(&Partition::from("tg"), bench.prompt(1, 0), tokens)?;
        bench.report(&format!("tg{tokens}"), &[("tokens_per_s", rate(tokens, spent))]);
    }
    let peak = machine::peak_bytes()?;
    let weights = machine::step_bytes(&bench.model.file)?;
    let read = machine::read_rate(&bench.model.file, bench.model.machine.threads);
    bench.report("read", &[("bytes_per_s", read), ("step_bytes", weights as f64)]);
    let cache = bench.model.loaded.memory.cache_bytes;
    let sizes =
        [("peak_bytes", peak), ("file_bytes", bench.model.file.len()), ("cache_bytes", cache)];
    bench.report("memory", &sizes.map(|(name, bytes)| (name, bytes as f64)));
    Ok(())
}

/// A model, and how results are shown.
struct Bench<'a> {
    model: &'a Model,
    json: bool,
}

impl Bench<'_> {
    /// Tokens of the longest sequence.
    fn context(&self) -> usize {
        self.model.loaded.info.context_tokens_max as usize
    }

    /// Different tokens, as far as there are, so that no two rows of a step are alike; another `number` gives others.
    fn prompt(&self, tokens: usize, number: u32) -> Vec<u32> {
        let last = u32::try_from(self.model.loaded.tokenizer.vocabulary()).unwrap_or(u32::MAX);
        let first = if last > 2000 { 1000 } else { FIRST_TOKEN };
        (first..last).cycle().skip(number as usize * 61).take(tokens).collect()
    }

    /// A request whose answer does not end before `answer_max` tokens.
    fn request(&self, partition: &Partition, prompt: Vec<u32>, answer_max: usize) -> Prepared {
        let ends = self.model.loaded.tokenizer.ends();
        let mut sampling = Sampling::greedy();
        sampling.logit_bias = ends.iter().map(|end| (*end, -100.0)).collect();
        Prepared {
            prompt,
            partition: partition.clone(),
            priority: 0,
            answer_max,
            sampling,
            stops: Vec::new(),
            format: None,
            constraint: None,
            logprobs: None,
        }
    }

    /// From the request to its end; as many tokens are computed as `prompt` and `answer` have together, less one.
    fn time(&self, partition: &Partition, prompt: Vec<u32>, answer: usize) -> Result<Duration> {
        let request = self.request(partition, prompt, answer);
        let begin = Instant::now();
        let finish = self.model.answer(request, |_| ())?.finish;
        ensure!(finish == Some(Finish::Length), "an answer ended before {answer} tokens");
        Ok(begin.elapsed())
    }

    fn report(&self, test: &str, numbers: &[(&str, f64)]) {
        let (threads, kernels) = (self.model.machine.threads, self.model.machine.isa.name());
        if self.json {
            let mut line = json!({"test": test, "threads": threads, "kernels": kernels});
            let more = numbers.iter().map(|(name, number)| ((*name).to_owned(), json!(number)));
            if let Value::Object(line) = &mut line {
                line.extend(more.collect::<Map<_, _>>());
            }
            println!("{line}");
        } else {
            let shown = numbers.iter().map(|(name, number)| format!("{number:.4} {name}"));
            let shown = shown.collect::<Vec<_>>().join(", ");
            println!("{test:9} {shown}  ({threads} threads, {kernels} kernels)");
        }
    }
}
