//! `replay`: the request of a receipt, run again.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use engine::receipt::question;
use ipc::Receipt;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::generate::from_request;
use crate::model::{ModelArgs, read};
use crate::receipt::{Difference, RECEIPT_BYTES_MAX, check, same_answer, same_question};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The receipt.
    receipt: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// The request's body, byte for byte as it was sent.
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Digest of the bundle that the model came in; must be the receipt's. Without it only the model file is compared.
    #[arg(long, value_name = "HEX")]
    bundle_digest: Option<String>,
    /// Print JSON instead of a line.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let receipt = load(&args.receipt)?;
    let body = read(&args.request)?;
    let model = args.model.open()?;
    // A receipt holds the seed that was used, whoever chose it.
    let prepared = from_request(&model, &body, receipt.sampling.seed)?;
    let bundle = args.bundle_digest.clone().or_else(|| receipt.bundle_digest.clone());
    let asked = question(&model.loaded, bundle, hex::encode(Sha256::digest(&body)), &prepared);
    let differs = |difference: Difference| tell(args, &asked, &receipt, Some(&difference));
    if let Err(difference) = check(&receipt).and_then(|()| same_question(&receipt, &asked)) {
        return differs(difference);
    }
    let answer = model.answer(prepared, |_| ())?;
    match same_answer(&receipt, &answer.token_ids) {
        Ok(()) => tell(args, &asked, &receipt, None),
        Err(difference) => differs(difference),
    }
}

fn load(path: &PathBuf) -> Result<Receipt> {
    let bytes =
        std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    ensure!(
        bytes <= RECEIPT_BYTES_MAX,
        "{} has {bytes} bytes, a receipt has at most {RECEIPT_BYTES_MAX}",
        path.display()
    );
    serde_json::from_slice(&read(path)?)
        .with_context(|| format!("{} is no receipt", path.display()))
}

fn tell(
    args: &Args,
    asked: &Receipt,
    receipt: &Receipt,
    difference: Option<&Difference>,
) -> Result<ExitCode> {
    let line = match difference {
        None => format!(
            "equal: {} tokens, {} kernels then, {} now; receipt {}",
            receipt.output_tokens,
            receipt.kernels,
            asked.kernels,
            receipt.digest()?
        ),
        Some(difference) => format!("different: {difference}"),
    };
    if args.json {
        let position = match difference {
            Some(Difference::Token { position, .. }) => Some(position),
            _ => None,
        };
        let reason = difference.map(ToString::to_string);
        println!(
            "{}",
            json!({
                "equal": difference.is_none(),
                "first_difference": position,
                "reason": reason,
                "receipt_sha256": receipt.digest()?,
            })
        );
    } else {
        println!("{line}");
    }
    Ok(if difference.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
