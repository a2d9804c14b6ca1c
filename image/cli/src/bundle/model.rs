//! `casemate bundle model`.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use evidence::bundle::{IGNORED_ALWAYS, check_name};
use evidence::format::ModelCard;

use crate::output;

/// Longest model id, in bytes.
const MODEL_ID_BYTES_MAX: usize = 64;
/// First bytes of a GGUF file.
const GGUF_MAGIC: [u8; 4] = *b"GGUF";
/// Name of the card; `evidence::format::ModelCard`.
const CARD: &str = "casemate.json";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    weights: Weights,
    /// Name under which clients ask for the model: a-z 0-9 . _ -
    #[arg(long)]
    model_id: String,
    /// Version within that name's line: an appliance that has run one runs none below it
    #[arg(long, default_value_t = 1)]
    version: u64,
    /// Folder to make; must be absent
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Weights {
    /// File with the weights
    #[arg(long)]
    gguf: Option<PathBuf>,
    /// Folder as transformers or sentence-transformers writes it; all of its files but git's own are taken
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// Most files of a folder; the engine is handed as many descriptors at once.
const FILES_MAX: usize = 63;
/// Most folders within folders.
const DEPTH_MAX: usize = 4;

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    check_model_id(&args.model_id)?;
    let said = output::new_folder(&args.out, |out| {
        let (weights, said) = match (&args.weights.gguf, &args.weights.folder) {
            (Some(gguf), None) => copy_gguf(gguf, out)?,
            (None, Some(folder)) => copy_folder(folder, out)?,
            _ => bail!("--gguf or --folder, not both"),
        };
        let card = ModelCard { model_id: args.model_id.clone(), version: args.version, weights };
        let card = serde_json::to_string_pretty(&card)? + "\n";
        output::write_new(&out.join(CARD), card.as_bytes())?;
        Ok(said)
    })?;
    let (out, id) = (args.out.display(), &args.model_id);
    println!("{out}: {said} as {id} version {}", args.version);
    Ok(())
}

/// Copies one file; returns its name and what was copied.
fn copy_gguf(gguf: &Path, out: &Path) -> anyhow::Result<(String, String)> {
    let name = gguf.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{gguf:?} names no file in UTF-8"))?;
    check_name(name)?;
    if name == CARD {
        bail!("the weights cannot be named {CARD}");
    }
    let mut weights = File::open(gguf).with_context(|| gguf.display().to_string())?;
    let mut magic = [0; 4];
    weights.read_exact(&mut magic).with_context(|| gguf.display().to_string())?;
    if magic != GGUF_MAGIC {
        bail!("{} starts with {magic:02x?}; a GGUF file starts with GGUF", gguf.display());
    }
    let bytes = copy(&mut magic.as_slice().chain(weights), &out.join(name))?;
    Ok((name.to_owned(), format!("{name} ({bytes} bytes)")))
}

/// Copies every file of a folder; returns the name of the first weights file and what was copied.
fn copy_folder(folder: &Path, out: &Path) -> anyhow::Result<(String, String)> {
    let mut names = Vec::new();
    list(folder, "", DEPTH_MAX, &mut names)?;
    names.sort();
    let weights = names.iter().find(|name| name.ends_with(".safetensors")).cloned();
    let weights = weights.with_context(|| format!("no *.safetensors in {}", folder.display()))?;
    let mut bytes = 0;
    for name in &names {
        let target = out.join(name);
        fs::create_dir_all(target.parent().unwrap_or(out))?;
        let source = folder.join(name);
        let mut file = File::open(&source).with_context(|| source.display().to_string())?;
        bytes += copy(&mut file, &target)?;
    }
    Ok((weights, format!("{} files ({bytes} bytes)", names.len())))
}

fn copy(from: &mut impl io::Read, to: &Path) -> io::Result<u64> {
    io::copy(from, &mut File::create_new(to)?)
}

/// Paths of the regular files in `folder`, which is `prefix` of what is listed. Those that no signature covers are left
/// out.
fn list(folder: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name().into_string().ok();
        let name = name.with_context(|| format!("{} is not UTF-8", path.display()))?;
        let name = format!("{prefix}{name}");
        if IGNORED_ALWAYS.contains(&name.as_str()) {
            continue;
        }
        check_name(&name)?;
        match entry.file_type()? {
            kind if kind.is_dir() && depth > 0 => {
                list(&path, &format!("{name}/"), depth - 1, names)?;
            }
            // A link would be read now, and nobody would see to where.
            kind if !kind.is_file() => bail!("{} is no regular file", path.display()),
            _ if name == CARD => bail!("{} is there already; it is written here", path.display()),
            _ if names.len() == FILES_MAX => {
                bail!("{} has more than {FILES_MAX} files", folder.display())
            }
            _ => names.push(name),
        }
    }
    Ok(())
}

fn check_model_id(id: &str) -> anyhow::Result<()> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    if id.is_empty() || id.len() > MODEL_ID_BYTES_MAX || !id.bytes().all(allowed) {
        bail!("model id {id:?}; expected 1 to {MODEL_ID_BYTES_MAX} of a-z 0-9 . _ -");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_ids() {
        for good in ["smollm2-135m", "a", "llama-3.1_8b", &"x".repeat(64)] {
            check_model_id(good).unwrap();
        }
        for bad in ["", "A", "a b", "a/b", "é", &"x".repeat(65)] {
            assert!(check_model_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_folder_is_made_once_and_from_gguf_only() {
        let dir = tempfile::tempdir().unwrap();
        let gguf = dir.path().join("w.gguf");
        fs::write(&gguf, "GGUF and more").unwrap();
        let out = dir.path().join("out");
        let weights = Weights { gguf: Some(gguf.clone()), folder: None };
        let args = Args { weights, model_id: "m".into(), version: 2, out };
        run(&args).unwrap();
        assert_eq!(fs::read(args.out.join("w.gguf")).unwrap(), b"GGUF and more");
        let card = fs::read(args.out.join(CARD)).unwrap();
        let card: ModelCard = serde_json::from_slice(&card).unwrap();
        let found = (card.model_id.as_str(), card.version, card.weights.as_str());
        assert_eq!(found, ("m", 2, "w.gguf"));
        assert!(run(&args).is_err(), "overwrote a folder");

        fs::write(&gguf, "ELF!").unwrap();
        let error = run(&Args { out: dir.path().join("other"), ..args }).unwrap_err();
        assert!(format!("{error:#}").contains("starts with GGUF"));
    }

    #[test]
    fn every_file_of_a_folder_is_taken_and_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("from");
        fs::create_dir_all(folder.join("1_Pooling")).unwrap();
        for name in ["config.json", "1_Pooling/config.json", "model.safetensors", ".gitattributes"]
        {
            fs::write(folder.join(name), name).unwrap();
        }
        let run_to = |name: &str| {
            let weights = Weights { gguf: None, folder: Some(folder.clone()) };
            let args =
                Args { weights, model_id: "m".into(), version: 1, out: dir.path().join(name) };
            run(&args).map(|()| args.out).map_err(|error| format!("{error:#}"))
        };
        let out = run_to("one").unwrap();
        let pooling = fs::read_to_string(out.join("1_Pooling/config.json")).unwrap();
        assert_eq!(pooling, "1_Pooling/config.json");
        assert!(!out.join(".gitattributes").exists());
        let card: ModelCard = serde_json::from_slice(&fs::read(out.join(CARD)).unwrap()).unwrap();
        assert_eq!(card.weights, "model.safetensors");

        std::os::unix::fs::symlink("config.json", folder.join("link")).unwrap();
        assert!(run_to("two").unwrap_err().contains("no regular file"));
        fs::remove_file(folder.join("link")).unwrap();
        fs::remove_file(folder.join("model.safetensors")).unwrap();
        assert!(run_to("three").unwrap_err().contains("no *.safetensors"));
    }
}
