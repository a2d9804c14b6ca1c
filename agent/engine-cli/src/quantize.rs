//! `quantize`: a model in blocks of 4 or 8 bits, from plain floats.
//!
//! The file appears whole or not at all: it is written aside, in the same folder, and takes its name last.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use engine::checkpoint::{Checkpoint, Texts};
use engine::quantise::{Kind, Written, quantise_checkpoint, quantise_gguf};
use engine::weights::FileBytes;
use tempfile::NamedTempFile;

use crate::model::read;

/// Weights files of a folder; a whole DeepSeek-V3 has 163.
const FILES_MAX: usize = 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// GGUF file in F32, F16 or BF16, or a folder with `*.safetensors`, `config.json` and `tokenizer.json`. It is read
    /// into memory whole.
    #[arg(long, value_name = "FILE or FOLDER")]
    model: PathBuf,
    /// File to make; must be absent.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// What matrices become. With q4_0, embedding and output become Q8_0.
    #[arg(long, value_enum)]
    format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    /// 8.5 bits a number.
    #[value(name = "q8_0")]
    Q8_0,
    /// 4.5 bits a number.
    #[value(name = "q4_0")]
    Q4_0,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // Found again at the end; here before much work is done.
    let taken = args.out.symlink_metadata().is_ok();
    ensure!(!taken, "{} is there already; it is not overwritten", args.out.display());
    let folder = match args.out.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let cannot_write = || format!("cannot write {}", args.out.display());
    // As any file that one makes, less what the umask takes.
    let mode = fs::Permissions::from_mode(0o666);
    let aside = tempfile::Builder::new().permissions(mode).tempfile_in(folder);
    let aside = aside.with_context(cannot_write)?;
    let written = write(args, &aside)?;
    aside.as_file().sync_all().with_context(cannot_write)?;
    aside.persist_noclobber(&args.out).with_context(cannot_write)?;
    println!(
        "{}: {} tensors, {} of them quantised, {} bytes",
        args.out.display(),
        written.tensors,
        written.quantised,
        written.bytes
    );
    Ok(ExitCode::SUCCESS)
}

fn write(args: &Args, aside: &NamedTempFile) -> Result<Written> {
    let kind = match args.format {
        Format::Q8_0 => Kind::Q8_0,
        Format::Q4_0 => Kind::Q4_0,
    };
    let mut out = BufWriter::with_capacity(1 << 20, aside.as_file());
    let written = if args.model.is_dir() {
        let checkpoint = checkpoint(&args.model)?;
        quantise_checkpoint(&checkpoint, kind, &mut out)
    } else {
        let file: FileBytes = Arc::new(read(&args.model)?);
        quantise_gguf(&file, kind, &mut out)
    };
    let written = written.with_context(|| format!("{} is not usable", args.model.display()))?;
    out.flush().with_context(|| format!("cannot write {}", args.out.display()))?;
    Ok(written)
}

/// What transformers wrote into `folder`.
fn checkpoint(folder: &Path) -> Result<Checkpoint> {
    let cannot_read = || format!("cannot read {}", folder.display());
    let mut weights = Vec::new();
    for entry in fs::read_dir(folder).with_context(cannot_read)? {
        let path = entry.with_context(cannot_read)?.path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            weights.push(path);
        }
        ensure!(weights.len() <= FILES_MAX, "more than {FILES_MAX} files of weights");
    }
    weights.sort();
    let files = weights.iter().map(|path| Ok(Arc::new(read(path)?) as FileBytes));
    let files = files.collect::<Result<Vec<_>>>()?;
    let beside = |name: &str| {
        let path = folder.join(name);
        path.exists().then(|| read(&path)).transpose()
    };
    let (more, template) = (beside("tokenizer_config.json")?, beside("chat_template.jinja")?);
    let texts = Texts {
        config: &read(&folder.join("config.json"))?,
        tokenizer: &read(&folder.join("tokenizer.json"))?,
        tokenizer_config: more.as_deref(),
        chat_template: template.as_deref(),
    };
    Checkpoint::read(&texts, files)
        .with_context(|| format!("the checkpoint {} is not usable", folder.display()))
}
