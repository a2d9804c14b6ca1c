//! `embed`: the vectors of texts, as the appliance makes them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;

use anyhow::{Context, Result, bail};
use engine::encoder::queue::{Event, Job};
use engine::encoder::request::{Prepared, prepare};
use engine::encoder::{Embedder, Folder, open, shorten};
use engine::load::Machine;
use engine::sequence::Partition;
use engine::weights::FileBytes;
use ipc::{Embed, EmbedInput, Load, LoadFile};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::model::{machine, read};

/// Whose request it is; there is nobody else here.
const PARTITION: &str = "command-line";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder as sentence-transformers writes it.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Compute threads; without it, as many as there are processors.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=engine::limits::THREADS_MAX as i64))]
    threads: Option<u16>,
    /// Numbers of each vector, if the model allows fewer than its own.
    #[arg(long, value_name = "N")]
    dimensions: Option<u32>,
    /// Print JSON instead of a line per text.
    #[arg(long)]
    json: bool,
    /// The texts; control tokens have no meaning in them.
    #[arg(required = true)]
    text: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let machine = machine(args.threads)?;
    let model = open_folder(&args.model, machine)?;
    let inputs = args.text.iter().map(|text| EmbedInput::Text(text.clone())).collect();
    let embed = Embed { inputs, dimensions: args.dimensions, partition: PARTITION.to_owned() };
    let prepared = prepare(&embed, &model)?;
    let (texts, dimensions) = (prepared.texts.clone(), prepared.dimensions);
    let vectors = vectors(&model, prepared)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let object = json!({
            "embeddings": vectors,
            "token_ids": texts,
            "dimensions": dimensions,
            "kernels": model.info.kernels,
            "threads": machine.threads,
        });
        writeln!(out, "{object}")?;
    } else {
        for vector in &vectors {
            let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
            writeln!(out, "{}", numbers.join(" "))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open_folder(path: &Path, machine: Machine) -> Result<Embedder> {
    let mut files = Vec::new();
    let file = |relative: &'static str| -> Result<Option<FileBytes>> {
        let path = path.join(relative);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read(&path)?;
        let sha256 = hex::encode(Sha256::digest(&bytes));
        files.push(LoadFile { name: relative.to_owned(), bytes: bytes.len() as u64, sha256 });
        Ok(Some(Arc::new(bytes)))
    };
    let folder = Folder::read(file).with_context(|| format!("{} is not usable", path.display()))?;
    let model_id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let model_id = if model_id.is_empty() { "encoder".to_owned() } else { model_id };
    let bundle_digest = ipc::model_sha256(&files);
    open(&Load { model_id, bundle_digest, files }, folder, machine)
        .with_context(|| format!("{} is not usable", path.display()))
}

fn vectors(model: &Embedder, prepared: Prepared) -> Result<Vec<Vec<f32>>> {
    let (events, receiver) = channel();
    let Prepared { texts, dimensions } = prepared;
    let count = texts.len();
    let partition = Partition::from(PARTITION);
    let cancelled = Arc::new(AtomicBool::new(false));
    let job = Job { texts, partition, events, cancelled };
    model.jobs.send(job).ok().context("the engine has stopped")?;
    let mut vectors = Vec::new();
    for event in receiver {
        match event {
            Event::Accepted => {}
            Event::Vector(mut vector) => {
                shorten(&mut vector, dimensions);
                vectors.push(vector);
            }
            Event::Overloaded => bail!("the waiting queue is full"),
            Event::Failed => bail!("a vector is not finite: the weights do not suit this engine"),
        }
    }
    anyhow::ensure!(vectors.len() == count, "the engine has stopped");
    Ok(vectors)
}
