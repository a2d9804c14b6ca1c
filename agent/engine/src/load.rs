//! From sealed descriptors to a model that answers.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use ipc::{Load, ModelInfo};
use kernels::{Isa, Pool, gather_pages};
use sandbox::{SealError, map_sealed};

use crate::blocks::BlockPool;
use crate::checkpoint::{Checkpoint, CheckpointError, Texts};
use crate::cpu::{Cpu, Memory};
use crate::encoder::{self, Embedder, EncoderError, Folder};
use crate::engine::{Engine, Job};
use crate::gguf::{Gguf, GgufError};
use crate::limits::{
    BLOCK_TOKENS, CACHE_BYTES_MAX, JOBS_QUEUED_MAX, MODEL_ID_BYTES_MAX, RUNNING_MAX,
    STEP_TOKENS_MAX, WAITING_MAX, WAITING_PER_PARTITION_MAX,
};
use crate::log;
use crate::model::{Compute, Row, Shape, ShapeError, forward};
use crate::scheduler::{Limits, Scheduler};
use crate::template::{Template, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::weights::{FileBytes, Weights, WeightsError};

/// A model that answers jobs.
#[derive(Debug)]
pub struct Loaded {
    /// What clients may know of it.
    pub info: ModelInfo,
    /// Of which files it is made: [`ipc::model_sha256`].
    pub sha256: String,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template.
    pub template: Template,
    /// Where jobs go.
    pub jobs: SyncSender<Job>,
    /// What it takes beside its weights.
    pub memory: Memory,
    /// Held while a prompt is encoded, so that many large ones take the memory of one.
    pub encoding: Mutex<()>,
}

/// What a bundle holds, one of the two.
#[derive(Debug)]
pub enum Model {
    /// It answers conversations.
    Generator(Loaded),
    /// It makes vectors of texts.
    Encoder(Embedder),
}

impl Model {
    /// What clients may know of it.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        match self {
            Self::Generator(loaded) => &loaded.info,
            Self::Encoder(embedder) => &embedder.info,
        }
    }
}

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Descriptors and announced files differ.
    #[error("{found} descriptors came for {announced} announced files")]
    Descriptors {
        /// Descriptors found.
        found: usize,
        /// Files announced.
        announced: usize,
    },
    /// The bundle's name or digest is not one.
    #[error("{what} {found:?} is not {expected}")]
    Name {
        /// Which.
        what: &'static str,
        /// What was found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// Not exactly one model.
    #[error(
        "the bundle has {gguf} files named *.gguf and {safetensors} named *.safetensors, expected one of the former or some of the latter; with modules.json, one of the latter"
    )]
    Files {
        /// How many of the one kind.
        gguf: usize,
        /// How many of the other.
        safetensors: usize,
    },
    /// A file that belongs to the weights is missing, or there twice.
    #[error("the bundle has no one file named {file} beside its *.safetensors")]
    Beside {
        /// Its name.
        file: &'static str,
    },
    /// What transformers has written is not usable.
    #[error("the checkpoint is not usable: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// The encoder is not usable.
    #[error("the encoder is not usable: {0}")]
    Encoder(#[from] EncoderError),
    /// A descriptor is not what agentd should send.
    #[error("file {name:?}: {cause}")]
    Sealed {
        /// The file.
        name: String,
        /// What is wrong.
        cause: SealError,
    },
    /// The file is damaged.
    #[error("the GGUF file is not usable: {0}")]
    Gguf(#[from] GgufError),
    /// The model is another one than this engine runs.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The tensors are not those of the model.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The vocabulary is not usable.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template is not usable.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// One token's keys and values are larger than the cache.
    #[error("a cache block takes {block_bytes} bytes, the whole cache has {CACHE_BYTES_MAX}")]
    Cache {
        /// Bytes of a block.
        block_bytes: usize,
    },
    /// A trial computation failed.
    #[error(
        "a trial step gave no finite numbers: the weights are damaged or do not suit this engine"
    )]
    Trial,
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// How models are computed on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Kernels.
    pub isa: Isa,
    /// Compute threads.
    pub threads: usize,
}

/// What a checkpoint's weights have beside them.
const BESIDE: [&str; 4] =
    ["chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json"];

/// What makes a folder an encoder's.
const MODULES: &str = "modules.json";

/// Maxima of a served model's scheduler.
pub const LIMITS: Limits = Limits {
    step_tokens: STEP_TOKENS_MAX,
    running: RUNNING_MAX,
    waiting: WAITING_MAX,
    waiting_per_partition: WAITING_PER_PARTITION_MAX,
};

/// Maps the bundle's model and starts its engine: one GGUF file, what transformers writes, or, if there is a
/// `modules.json`, what sentence-transformers writes.
///
/// # Errors
/// If anything about the bundle is not as it must be; nothing of it stays.
pub fn load(load: &Load, fds: &[OwnedFd], machine: Machine) -> Result<Model, LoadError> {
    if fds.len() != load.files.len() {
        return Err(LoadError::Descriptors { found: fds.len(), announced: load.files.len() });
    }
    let named = |ends: &dyn Fn(&str) -> bool| -> Result<Vec<FileBytes>, LoadError> {
        let files = load.files.iter().zip(fds).filter(|(file, _)| ends(&file.name));
        let mapped = files.map(|(file, fd)| {
            let sealed = map_sealed(fd.as_fd(), file.bytes);
            let sealed =
                sealed.map_err(|cause| LoadError::Sealed { name: file.name.clone(), cause })?;
            Ok(Arc::new(sealed) as FileBytes)
        });
        mapped.collect()
    };
    let models = named(&|name| name.ends_with(".gguf"))?;
    let weights = named(&|name| name.ends_with(".safetensors"))?;
    let folder = |name: &str| {
        let folder = name.strip_suffix(MODULES)?;
        (folder.is_empty() || folder.ends_with('/')).then(|| folder.to_owned())
    };
    let encoder = load.files.iter().find_map(|file| folder(&file.name));
    match (&models[..], &weights[..], encoder) {
        ([model], [], None) => {
            let load = made_of(load, |name| name.ends_with(".gguf"));
            open(&load, Arc::clone(model), machine).map(Model::Generator)
        }
        ([], [_, ..], None) => checkpoint(load, weights, &named, machine).map(Model::Generator),
        ([], [_], Some(folder)) => {
            let file = |relative: &str| {
                let path = format!("{folder}{relative}");
                Ok::<_, LoadError>(named(&|name| name == path)?.pop())
            };
            encoder::open(load, Folder::read(file)?, machine).map(Model::Encoder)
        }
        _ => Err(LoadError::Files { gguf: models.len(), safetensors: weights.len() }),
    }
}

/// Files by a condition on their names.
type Named<'a> = dyn Fn(&dyn Fn(&str) -> bool) -> Result<Vec<FileBytes>, LoadError> + 'a;

fn checkpoint(
    load: &Load,
    weights: Vec<FileBytes>,
    named: &Named<'_>,
    machine: Machine,
) -> Result<Loaded, LoadError> {
    let only = |wanted: &str| -> Result<Option<FileBytes>, LoadError> {
        let mut found = named(&|name| name.rsplit('/').next() == Some(wanted))?;
        Ok(found.pop().filter(|_| found.is_empty()))
    };
    let needed = |file| only(file)?.ok_or(LoadError::Beside { file });
    let (config, tokenizer) = (needed("config.json")?, needed("tokenizer.json")?);
    let (more, template) = (only("tokenizer_config.json")?, only("chat_template.jinja")?);
    let texts = Texts {
        config: &config,
        tokenizer: &tokenizer,
        tokenizer_config: more.as_deref().map(|file| &**file),
        chat_template: template.as_deref().map(|file| &**file),
    };
    let load = made_of(load, |name| {
        name.ends_with(".safetensors")
            || name.rsplit('/').next().is_some_and(|name| BESIDE.contains(&name))
    });
    open_checkpoint(&load, &Checkpoint::read(&texts, weights)?, machine)
}

/// `load` with the files that answers depend on: what else is in a bundle, such as its card, makes no answer.
fn made_of(load: &Load, of: impl Fn(&str) -> bool) -> Load {
    let files = load.files.iter().filter(|file| of(&file.name)).cloned().collect();
    Load { files, ..load.clone() }
}

/// Starts the engine of a GGUF file that is in memory.
///
/// # Errors
/// As [`load`].
pub fn open(load: &Load, file: FileBytes, machine: Machine) -> Result<Loaded, LoadError> {
    let gguf = Gguf::parse(&file)?;
    start(load, &gguf, vec![Arc::clone(&file)], machine)
}

/// Starts the engine of what transformers has written.
///
/// # Errors
/// As [`load`].
pub fn open_checkpoint(
    load: &Load,
    checkpoint: &Checkpoint,
    machine: Machine,
) -> Result<Loaded, LoadError> {
    start(load, &checkpoint.view(), checkpoint.files(), machine)
}

fn start(
    load: &Load,
    gguf: &Gguf<'_>,
    files: Vec<FileBytes>,
    machine: Machine,
) -> Result<Loaded, LoadError> {
    check_names(load)?;
    let shape = Shape::read(gguf)?;
    let tokenizer = Arc::new(Tokenizer::read(gguf)?);
    let template = Template::new(gguf.text("tokenizer.chat_template")?)?;
    let weights_bytes: usize = files.iter().map(|file| file.len()).sum();
    let gathered = files.iter().filter(|file| gather_pages(file)).count() == files.len();
    let weights = Weights::find_in(gguf, &shape, files)?;
    let (blocks, context) = cache(&shape)?;
    let memory = Cpu::memory(&shape, blocks, context);
    let pages = if gathered { "large" } else { "small" };
    log::line(format_args!(
        "memory at most: weights {} MiB (mapped, in {pages} pages), cache {} MiB ({blocks} blocks of \
         {BLOCK_TOKENS} tokens), buffers {} MiB",
        weights_bytes >> 20,
        memory.cache_bytes >> 20,
        memory.buffer_bytes >> 20
    ));
    let pool = Pool::new(machine.threads)?;
    let mut cpu = Cpu::new(machine.isa, pool, shape, weights, blocks, context);
    try_step(&mut cpu)?;
    let pool = BlockPool::new(blocks, BLOCK_TOKENS);
    let scheduler = Scheduler::new(LIMITS, pool);
    let engine = Engine::new(Box::new(cpu), scheduler, Arc::clone(&tokenizer));
    let (jobs, receiver) = sync_channel(JOBS_QUEUED_MAX);
    std::thread::Builder::new().name("engine".to_owned()).spawn(move || engine.run(&receiver))?;
    let info = ModelInfo {
        model_id: load.model_id.clone(),
        bundle_digest: load.bundle_digest.clone(),
        context_tokens_max: u32::try_from(context).unwrap_or(u32::MAX),
        kernels: machine.isa.name().to_owned(),
    };
    let sha256 = ipc::model_sha256(&load.files);
    Ok(Loaded { info, sha256, tokenizer, template, jobs, memory, encoding: Mutex::new(()) })
}

pub(crate) fn check_names(load: &Load) -> Result<(), LoadError> {
    let name = |what, found: &str, expected| {
        Err(LoadError::Name { what, found: found.to_owned(), expected })
    };
    let id = &load.model_id;
    if id.is_empty() || id.len() > MODEL_ID_BYTES_MAX || id.chars().any(char::is_control) {
        return name("model_id", id, "a name of 1 to 128 bytes");
    }
    let digest = &load.bundle_digest;
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if digest.len() != 64 || !digest.bytes().all(hex) {
        return name("bundle_digest", digest, "64 lower-case hex digits");
    }
    Ok(())
}

/// Tokens of the longest sequence that this engine serves of a model.
///
/// # Errors
/// If one block is larger than the cache.
pub fn served_context(shape: &Shape) -> Result<usize, LoadError> {
    Ok(cache(shape)?.1)
}

/// Blocks of the cache and the longest sequence that fits it.
fn cache(shape: &Shape) -> Result<(u32, usize), LoadError> {
    let block_bytes = shape.cache_token_bytes() * BLOCK_TOKENS;
    let useful = shape.context.div_ceil(BLOCK_TOKENS) * RUNNING_MAX;
    let blocks = (CACHE_BYTES_MAX / block_bytes).min(useful);
    if blocks == 0 {
        return Err(LoadError::Cache { block_bytes });
    }
    Ok((u32::try_from(blocks).unwrap_or(u32::MAX), shape.context.min(blocks * BLOCK_TOKENS)))
}

/// Computes one token, so that damaged weights are found before a client does.
fn try_step(cpu: &mut Cpu) -> Result<(), LoadError> {
    let row = Row { token: 0, position: 0, table: &[0], logits: true };
    let finite = forward(cpu, &[row]).iter().all(|logit| logit.is_finite());
    cpu.zero(0);
    if finite { Ok(()) } else { Err(LoadError::Trial) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::synthetic::{self, File};
    use ipc::LoadFile;
    use std::os::fd::OwnedFd;

    pub(crate) fn message(files: &[(&str, usize)]) -> Load {
        let files = files.iter();
        let file = |(name, bytes): &(&str, usize)| LoadFile {
            name: (*name).into(),
            bytes: *bytes as u64,
            sha256: "cd".repeat(32),
        };
        Load {
            model_id: "tiny".to_owned(),
            bundle_digest: "ab".repeat(32),
            files: files.map(file).collect(),
        }
    }

    pub(crate) fn machine(threads: usize) -> Machine {
        Machine { isa: Isa::detect(), threads }
    }

    fn refusal(change: impl FnOnce(&mut File) -> &mut File) -> String {
        let mut file = synthetic::model();
        change(&mut file);
        open(&message(&[]), Arc::new(file.build()), machine(1)).unwrap_err().to_string()
    }

    #[test]
    fn a_model_is_opened() {
        let loaded = open(&message(&[]), Arc::new(synthetic::model().build()), machine(1)).unwrap();
        assert_eq!((loaded.info.context_tokens_max, loaded.info.model_id.as_str()), (128, "tiny"));
    }

    #[test]
    fn damaged_models_are_refused_with_a_reason() {
        let missing = refusal(|f| f.rename_tensor("blk.1.attn_q.weight", "blk.1.attn_x.weight"));
        assert!(missing.contains("lacks tensor \"blk.1.attn_q.weight\""), "{missing}");
        let extra = refusal(|f| f.tensor("blk.0.attn_q.bias", kernels::Format::F32, &[1], &[0; 4]));
        assert!(extra.contains("blk.0.attn_q.bias"), "{extra}");
        let shape = refusal(|f| f.replace_u32("llama.feed_forward_length", 128));
        assert!(shape.contains("expected 128 of 64"), "{shape}");
        let nan = refusal(|f| {
            f.rename_tensor("output_norm.weight", "output.weight.old");
            let nan: Vec<u8> = [f32::NAN; 64].iter().flat_map(|v| v.to_le_bytes()).collect();
            f.tensor("output_norm.weight", kernels::Format::F32, &[64], &nan);
            f.remove_tensor("output.weight.old")
        });
        assert!(nan.contains("no finite numbers"), "{nan}");
        assert!(refusal(|f| f.remove("tokenizer.chat_template")).contains("chat_template"));
    }

    #[test]
    fn unsealed_or_miscounted_files_are_refused() {
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        let one = message(&[("model/x.gguf", 7)]);
        let error = load(&one, std::slice::from_ref(&file), machine(1)).unwrap_err().to_string();
        assert!(error.contains("model/x.gguf") && error.contains("seals"), "{error}");
        let error = load(&one, &[], machine(1)).unwrap_err().to_string();
        assert!(error.contains("0 descriptors came for 1"), "{error}");
        let error = load(&message(&[("a.txt", 7)]), &[file], machine(1)).unwrap_err().to_string();
        assert!(error.contains("0 files named *.gguf and 0"), "{error}");
        let mut bad = message(&[]);
        bad.bundle_digest = "AB".repeat(32);
        let file = Arc::new(synthetic::model().build());
        assert!(open(&bad, file, machine(1)).unwrap_err().to_string().contains("lower-case hex"));
    }
}
