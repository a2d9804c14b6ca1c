//! A model file, opened as the appliance opens it once it was admitted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, bail};
use engine::engine::{Event, Job};
use engine::load::{Loaded, Machine, open};
use engine::pack::pack;
use engine::request::Prepared;
use engine::sampler::Logprobs;
use engine::weights::FileBytes;
use ipc::{Finish, Load, LoadFile};
use kernels::Isa;
use sha2::{Digest, Sha256};

/// Which model, on how many threads.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// GGUF file.
    #[arg(long, value_name = "FILE")]
    pub(crate) model: PathBuf,
    /// Compute threads; without it, as many as there are processors.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=engine::limits::THREADS_MAX as i64))]
    pub(crate) threads: Option<u16>,
}

/// A model that answers.
pub(crate) struct Model {
    pub(crate) loaded: Loaded,
    pub(crate) machine: Machine,
    /// As it lies in memory, packed.
    pub(crate) file: FileBytes,
}

/// A complete answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// The token that ends the answer included.
    pub(crate) token_ids: Vec<u32>,
    pub(crate) logprobs: Vec<Logprobs>,
    /// `None` until it is complete.
    pub(crate) finish: Option<Finish>,
    pub(crate) cached_tokens: usize,
}

impl ModelArgs {
    pub(crate) fn machine(&self) -> Result<Machine> {
        machine(self.threads)
    }

    pub(crate) fn open(&self) -> Result<Model> {
        let mut bytes = read(&self.model)?;
        let sha256 = hex::encode(Sha256::digest(&bytes));
        pack(&mut bytes).with_context(|| format!("{} is not usable", self.model.display()))?;
        let model_id = self.model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = self.model.to_string_lossy().into_owned();
        let file = LoadFile { name, bytes: bytes.len() as u64, sha256: sha256.clone() };
        let load = Load { model_id, bundle_digest: sha256, files: vec![file] };
        let machine = self.machine()?;
        let file: FileBytes = Arc::new(bytes);
        let loaded = open(&load, Arc::clone(&file), machine)
            .with_context(|| format!("{} is not usable", self.model.display()))?;
        Ok(Model { loaded, machine, file })
    }
}

impl Model {
    /// Hands one request to the engine, which tells what happens to it.
    pub(crate) fn submit(&self, prepared: Prepared) -> Result<Receiver<Event>> {
        let (events, receiver) = channel();
        let job = Job {
            prompt: prepared.prompt,
            answer_max: prepared.answer_max,
            partition: prepared.partition,
            priority: prepared.priority,
            sampling: prepared.sampling,
            stops: prepared.stops,
            constraint: prepared.constraint,
            logprobs: prepared.logprobs,
            events,
            cancelled: Arc::new(AtomicBool::new(false)),
        };
        self.loaded.jobs.send(job).ok().context("the engine has stopped")?;
        Ok(receiver)
    }

    /// Runs one request to its end; `told` gets each piece of text as it comes.
    pub(crate) fn answer(&self, prepared: Prepared, mut told: impl FnMut(&str)) -> Result<Answer> {
        let receiver = self.submit(prepared)?;
        let mut answer = Answer::default();
        for event in receiver {
            match event {
                Event::Accepted => {}
                Event::Token { token, logprobs, shown } => {
                    told(&shown.text);
                    answer.text.push_str(&shown.text);
                    answer.token_ids.push(token);
                    answer.logprobs.extend(logprobs);
                }
                Event::Done { shown, finish, cached, .. } => {
                    told(&shown.text);
                    answer.text.push_str(&shown.text);
                    (answer.finish, answer.cached_tokens) = (Some(finish), cached);
                    return Ok(answer);
                }
                Event::Overloaded => bail!("the waiting queue is full"),
                Event::Failed(message) => bail!("{message}"),
            }
        }
        bail!("the engine has stopped")
    }
}

/// This machine, with as many threads as there are processors if none are named.
pub(crate) fn machine(threads: Option<u16>) -> Result<Machine> {
    let threads = match threads {
        Some(threads) => usize::from(threads),
        None => std::thread::available_parallelism()?.get().min(engine::limits::THREADS_MAX),
    };
    Ok(Machine { isa: Isa::detect(), threads })
}

/// Reads a file, naming it if that fails.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// `finish_reason` of the API.
pub(crate) fn finish_reason(finish: Option<Finish>) -> Option<&'static str> {
    finish.map(gateway::openai::answer::finish_reason)
}
