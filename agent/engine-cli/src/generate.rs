//! `generate`: a text continued, or a request answered as the appliance answers it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use engine::receipt::{answered, question};
use engine::request::{Prepared, prepare};
use gateway::openai::request as api;
use ipc::{Chat, Message, Role, Sampling};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::model::{Answer, Model, ModelArgs, finish_reason, read};

/// Whose blocks they are; there is nobody else here.
const PARTITION: &str = "command-line";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    asked: Asked,
    /// Make the prompt one user's turn of the model's chat template.
    #[arg(long, conflicts_with = "request")]
    chat: bool,
    /// 0 takes the likeliest token each time.
    #[arg(long, default_value_t = 0.0, conflicts_with = "request")]
    temperature: f32,
    /// Draw from so many of the likeliest tokens; 0 draws from all.
    #[arg(long, default_value_t = 0, conflicts_with = "request")]
    top_k: u32,
    /// Draw from the likeliest tokens that have this probability together.
    #[arg(long, default_value_t = 1.0, conflicts_with = "request")]
    top_p: f32,
    /// Draw from the tokens with at least this share of the likeliest one's probability.
    #[arg(long, default_value_t = 0.0, conflicts_with = "request")]
    min_p: f32,
    /// Subtracted from the logits of tokens that the answer has.
    #[arg(long, default_value_t = 0.0, allow_hyphen_values = true, conflicts_with = "request")]
    presence_penalty: f32,
    /// Subtracted once for each time that the answer has the token.
    #[arg(long, default_value_t = 0.0, allow_hyphen_values = true, conflicts_with = "request")]
    frequency_penalty: f32,
    /// Divides the positive logits of tokens of prompt and answer, and multiplies the others.
    #[arg(long, default_value_t = 1.0, conflicts_with = "request")]
    repetition_penalty: f32,
    /// Added to a token's logit; may be given several times.
    #[arg(long, value_name = "ID=BIAS", value_parser = bias, conflicts_with = "request")]
    logit_bias: Vec<(u32, f32)>,
    /// Most tokens of the answer.
    #[arg(long, default_value_t = 128, conflicts_with = "request")]
    max_tokens: u32,
    /// The answer ends before this text; may be given several times.
    #[arg(long, conflicts_with = "request")]
    stop: Vec<String>,
    /// Seed of the sampler; for a request, if it has none.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// With --json, the likeliest tokens of each step.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=20))]
    top_logprobs: u8,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Write a receipt of the request.
    #[arg(long, value_name = "FILE", requires = "request")]
    receipt: Option<PathBuf>,
    /// Digest of the bundle that the model came in, for the receipt.
    #[arg(long, value_name = "HEX", requires = "receipt")]
    bundle_digest: Option<String>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Asked {
    /// Text to continue; control tokens have no meaning in it.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Body of a chat completions request, as a client sends it.
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let model = args.model.open()?;
    let (mut prepared, receipt) = match (&args.asked.request, &args.asked.prompt) {
        (Some(path), _) => {
            let body = read(path)?;
            let prepared = from_request(&model, &body, args.seed)?;
            let receipt = question(
                &model.loaded,
                args.bundle_digest.clone(),
                hex::encode(Sha256::digest(&body)),
                &prepared,
            );
            (prepared, Some(receipt))
        }
        (None, prompt) => (from_prompt(args, &model, prompt.as_deref().unwrap_or_default())?, None),
    };
    let prompt = prepared.prompt.clone();
    let mut out = std::io::stdout().lock();
    prepared.logprobs = args.json.then_some(usize::from(args.top_logprobs));
    let answer = model.answer(prepared, |text| {
        if !args.json {
            // A reader that left wants no more; the receipt may still be wanted.
            drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
        }
    })?;
    let shown =
        if args.json { object(args, &model, &prompt, &answer).to_string() } else { String::new() };
    writeln!(out, "{shown}")?;
    if let (Some(path), Some(receipt)) = (&args.receipt, receipt) {
        let receipt = answered(receipt, answer.token_ids.clone());
        let text = serde_json::to_string_pretty(&receipt)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the appliance makes of a request's body.
pub(crate) fn from_request(model: &Model, body: &[u8], seed: u64) -> Result<Prepared> {
    let request = api::parse(body).context("the request is not acceptable")?;
    let context = model.loaded.info.context_tokens_max;
    let chat = request.chat(context, seed, PARTITION.to_owned())?;
    Ok(prepare(chat, &model.loaded)?)
}

fn from_prompt(args: &Args, model: &Model, prompt: &str) -> Result<Prepared> {
    let chat = Chat {
        messages: vec![Message { role: Role::User, content: prompt.to_owned() }],
        max_tokens: args.max_tokens,
        sampling: sampling(args),
        logprobs: None,
        format: None,
        stop: args.stop.clone(),
        partition: PARTITION.to_owned(),
        priority: 0,
        receipt: None,
    };
    // Checked as a conversation in any case: bounds are the same.
    let mut prepared = prepare(chat, &model.loaded)?;
    if !args.chat {
        let tokenizer = &model.loaded.tokenizer;
        let mut tokens: Vec<u32> = tokenizer.start().into_iter().collect();
        tokens.extend(tokenizer.encode(prompt)?);
        anyhow::ensure!(!tokens.is_empty(), "the prompt is empty");
        let left = (model.loaded.info.context_tokens_max as usize).saturating_sub(tokens.len());
        anyhow::ensure!(left > 0, "the prompt has {} tokens, which leaves no room", tokens.len());
        prepared.answer_max = left.min(args.max_tokens as usize);
        prepared.prompt = tokens;
    }
    Ok(prepared)
}

fn sampling(args: &Args) -> Sampling {
    Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        repetition_penalty: args.repetition_penalty,
        logit_bias: args.logit_bias.iter().copied().collect(),
        seed: args.seed,
    }
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let pair = text
        .split_once('=')
        .and_then(|(token, bias)| Some((token.parse().ok()?, bias.parse().ok()?)));
    pair.ok_or_else(|| format!("found {text:?}, expected a token's number, = and its bias"))
}

fn object(args: &Args, model: &Model, prompt: &[u32], answer: &Answer) -> serde_json::Value {
    let logprobs: Vec<f32> = answer.logprobs.iter().map(|l| l.logprob).collect();
    let mut object = json!({
        "text": answer.text,
        "token_ids": answer.token_ids,
        "logprobs": logprobs,
        "finish_reason": finish_reason(answer.finish),
        "prompt_token_ids": prompt,
        "kernels": model.loaded.info.kernels,
        "threads": model.machine.threads,
        "model_sha256": model.loaded.sha256,
    });
    if args.top_logprobs > 0 {
        let pair = |(token, logprob): &(u32, f32)| json!({"token_id": token, "logprob": logprob});
        let top: Vec<Vec<_>> =
            answer.logprobs.iter().map(|l| l.top.iter().map(pair).collect()).collect();
        object["top_logprobs"] = json!(top);
    }
    object
}
