//! `casemate bundle model`.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use evidence::bundle::check_name;
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
    /// File with the weights
    #[arg(long)]
    gguf: PathBuf,
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

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    check_model_id(&args.model_id)?;
    let name = args.gguf.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{:?} names no file in UTF-8", args.gguf))?;
    check_name(name)?;
    if name == CARD {
        bail!("the weights cannot be named {CARD}");
    }
    let mut weights = File::open(&args.gguf).with_context(|| args.gguf.display().to_string())?;
    let mut magic = [0; 4];
    weights.read_exact(&mut magic).with_context(|| args.gguf.display().to_string())?;
    if magic != GGUF_MAGIC {
        bail!("{} starts with {magic:02x?}; a GGUF file starts with GGUF", args.gguf.display());
    }

    let card = ModelCard {
        model_id: args.model_id.clone(),
        version: args.version,
        weights: name.to_owned(),
    };
    let card = serde_json::to_string_pretty(&card)? + "\n";
    let bytes = output::new_folder(&args.out, |folder| {
        let mut copy = File::create_new(folder.join(name))?;
        let bytes = io::copy(&mut magic.as_slice(), &mut copy)
            .and_then(|begun| Ok(begun + io::copy(&mut weights, &mut copy)?))
            .with_context(|| args.out.display().to_string())?;
        output::write_new(&folder.join(CARD), card.as_bytes())?;
        Ok(bytes)
    })?;
    let (out, id) = (args.out.display(), &args.model_id);
    println!("{out}: {name} ({bytes} bytes) as {id} version {}", args.version);
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
    use std::fs;

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
        let args = Args { gguf: gguf.clone(), model_id: "m".into(), version: 2, out };
        run(&args).unwrap();
        assert_eq!(fs::read(args.out.join("w.gguf")).unwrap(), b"GGUF and more");
        let card = fs::read(args.out.join(CARD)).unwrap();
        let card: ModelCard = serde_json::from_slice(&card).unwrap();
        let found = (card.model_id.as_str(), card.version, card.weights.as_str());
        assert_eq!(found, ("m", 2, "w.gguf"));
        assert!(run(&args).is_err(), "overwrote a folder");

        fs::write(&gguf, "ELF!").unwrap();
        let error = run(&Args { out: dir.path().join("other"), ..args }).unwrap_err();
        assert!(error.to_string().contains("starts with GGUF"));
    }
}
