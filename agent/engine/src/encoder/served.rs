//! An encoder that answers jobs.

use std::sync::Mutex;
use std::sync::mpsc::{SyncSender, sync_channel};

use ipc::{Load, ModelInfo};
use kernels::{Pool, gather_pages};

use super::queue::{Job, Queue};
use super::{Encoder, Folder, Shape, Words};
use crate::limits::JOBS_QUEUED_MAX;
use crate::load::{LoadError, Machine, check_names};
use crate::log;

/// A model that makes vectors.
#[derive(Debug)]
pub struct Embedder {
    /// What clients may know of it.
    pub info: ModelInfo,
    /// What is computed.
    pub shape: Shape,
    /// Its vocabulary.
    pub words: Words,
    /// Where jobs go.
    pub jobs: SyncSender<Job>,
    /// Held while texts are encoded, so that many large ones take the memory of one.
    pub encoding: Mutex<()>,
}

/// Starts the encoder of a folder.
///
/// # Errors
/// If a tensor is missing or has another shape, or a trial gives no numbers.
pub fn open(load: &Load, folder: Folder, machine: Machine) -> Result<Embedder, LoadError> {
    check_names(load)?;
    let pages = if gather_pages(&folder.weights) { "large" } else { "small" };
    log::line(format_args!(
        "memory at most: weights {} MiB (mapped, in {pages} pages), buffers {} MiB",
        folder.weights.len() >> 20,
        Encoder::memory(&folder.shape) >> 20
    ));
    let pool = Pool::new(machine.threads)?;
    let mut encoder = Encoder::new(&folder, machine.isa, pool)?;
    // So that damaged weights are found before a client does.
    let trial = encoder.encode(&[&folder.words.around(&[])]);
    if !trial.iter().flatten().all(|x| x.is_finite()) {
        return Err(LoadError::Trial);
    }
    let (jobs, receiver) = sync_channel(JOBS_QUEUED_MAX);
    let queue = Queue::new(encoder);
    std::thread::Builder::new().name("engine".to_owned()).spawn(move || queue.run(&receiver))?;
    let Folder { shape, words, .. } = folder;
    let info = ModelInfo {
        model_id: load.model_id.clone(),
        bundle_digest: load.bundle_digest.clone(),
        context_tokens_max: u32::try_from(shape.context).unwrap_or(u32::MAX),
        kernels: machine.isa.name().to_owned(),
    };
    Ok(Embedder { info, shape, words, jobs, encoding: Mutex::new(()) })
}
