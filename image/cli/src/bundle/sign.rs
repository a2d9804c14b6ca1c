//! `casemate bundle sign`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use evidence::bundle::{
    Claim, PublicKey, SIGNATURE_BYTES_MAX, pae, signature_json, statement_json,
};
use pkcs11::{Signer, URI_BYTES_MAX, Uri};
use sha2::{Digest, Sha256};

use super::folder;
use crate::output;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model folder
    dir: PathBuf,
    /// PKCS#11 URI of the signing key, or a .uri file that holds one
    #[arg(long)]
    key: String,
    /// Signature file to make
    #[arg(long)]
    out: PathBuf,
    /// Sign the statement of another signature, once the folder agrees with it
    #[arg(long, value_name = "OTHER.sig")]
    payload_of: Option<PathBuf>,
    /// PKCS#11 module, if the URI names none
    #[arg(long)]
    module: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let payload = || payload(&args.dir, args.payload_of.as_deref());
    let (uri, payload) = sign(&args.key, args.module.as_deref(), &args.out, payload)?;
    let digest: [u8; 32] = Sha256::digest(&payload).into();
    println!("{}: bundle {} signed by {uri}", args.out.display(), hex::encode(digest));
    Ok(())
}

/// Signs what `payload` gives with the key behind `key`, a URI or a file with one, into the new file `out`. Returns
/// the URI and what was signed.
pub(crate) fn sign(
    key: &str,
    module: Option<&Path>,
    out: &Path,
    payload: impl FnOnce() -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<(Uri, Vec<u8>)> {
    let uri = read_uri(key)?;
    crate::keys::with_token_store(&uri)?;
    if out.exists() {
        bail!("{} exists already", out.display());
    }
    let payload = payload()?;
    let signer = Signer::open(&uri, module)?;
    let signature = signer.sign(&pae(&payload))?;
    let key = PublicKey::from_pem("signer", signer.public_key_pem())?;
    output::write_new(out, &signature_json(&payload, &key, &signature)?)?;
    Ok((uri, payload))
}

pub(crate) fn read_uri(key: &str) -> anyhow::Result<Uri> {
    if key.starts_with("pkcs11:") {
        return Ok(Uri::parse(key)?);
    }
    let text = super::read_text(Path::new(key), URI_BYTES_MAX)
        .context("expected a pkcs11: URI or a file with one")?;
    Ok(Uri::parse(text.trim_end())?)
}

/// The statement over the folder; the other signer's words only if they say the same of its files.
fn payload(dir: &Path, payload_of: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    let found = folder::read(dir)?;
    let Some(other) = payload_of else { return Ok(statement_json(&folder::to_sign(&found))?) };
    let claim = Claim::parse(&super::read(other, SIGNATURE_BYTES_MAX)?)
        .with_context(|| other.display().to_string())?;
    claim.compare(&found).with_context(|| {
        format!("{} is not about {}: not signed", other.display(), dir.display())
    })?;
    Ok(claim.payload().to_vec())
}
