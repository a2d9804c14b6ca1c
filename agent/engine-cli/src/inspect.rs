//! `tokenize` and `logits`: what the model sees and what it says, token by token.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, ensure};
use engine::cpu::Cpu;
use engine::gguf::Gguf;
use engine::limits::{BLOCK_TOKENS, STEP_TOKENS_MAX};
use engine::load::served_context;
use engine::model::{Row, Shape, forward};
use engine::sampler::Logprobs;
use engine::tokenizer::Tokenizer;
use engine::weights::Weights;
use kernels::Pool;
use serde_json::json;

use crate::model::{ModelArgs, read};

/// Likeliest tokens that are shown without --json.
const SHOWN: usize = 5;

#[derive(Debug, clap::Args)]
pub(crate) struct TokenizeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text; control tokens have no meaning in it, and none is added.
    text: String,
    /// Print JSON instead of a line per token.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Token numbers, separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// Print JSON: all logits after each token.
    #[arg(long)]
    json: bool,
}

pub(crate) fn tokenize(args: &TokenizeArgs) -> Result<ExitCode> {
    let file = read(&args.model.model)?;
    let tokenizer = Tokenizer::read(&Gguf::parse(&file)?)?;
    let tokens = tokenizer.encode(&args.text)?;
    let text = |token: &u32| String::from_utf8_lossy(tokenizer.bytes(*token)).into_owned();
    let mut out = std::io::stdout().lock();
    if args.json {
        let pieces: Vec<String> = tokens.iter().map(text).collect();
        writeln!(out, "{}", json!({"token_ids": tokens, "pieces": pieces}))?;
    } else {
        for token in &tokens {
            writeln!(out, "{token}\t{:?}", text(token))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn logits(args: &LogitsArgs) -> Result<ExitCode> {
    let file = Arc::new(read(&args.model.model)?);
    let gguf = Gguf::parse(&file)?;
    let shape = Shape::read(&gguf)?;
    let (tokens, vocabulary) = (&args.tokens, shape.vocabulary);
    // As it is served, since rotations may depend on it.
    let context = served_context(&shape)?;
    ensure!(
        tokens.len() <= context,
        "{} tokens are more than the context of {context} that is served",
        tokens.len()
    );
    let outside = tokens.iter().find(|token| **token as usize >= vocabulary);
    ensure!(outside.is_none(), "token {outside:?} is none of the model's {vocabulary}");
    let weights = Weights::find(&gguf, &shape, Arc::clone(&file) as _)?;
    let blocks = u32::try_from(tokens.len().div_ceil(BLOCK_TOKENS))?;
    let table: Vec<u32> = (0..blocks).collect();
    let machine = args.model.machine()?;
    let pool = Pool::new(machine.threads)?;
    let mut cpu = Cpu::new(machine.isa, pool, shape, weights, blocks, context);
    let row = |(position, token): (usize, &u32)| Row {
        token: *token,
        position,
        table: &table,
        logits: true,
    };
    let rows: Vec<Row<'_>> = tokens.iter().enumerate().map(row).collect();
    let mut all = Vec::new();
    for step in rows.chunks(STEP_TOKENS_MAX) {
        all.extend(forward(&mut cpu, step).chunks_exact(vocabulary).map(<[f32]>::to_vec));
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", json!({"token_ids": tokens, "logits": all}))?;
    } else {
        for (token, logits) in tokens.iter().zip(&all) {
            writeln!(out, "{token}\t{:?}", Logprobs::of(logits, *token, SHOWN).top)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
