//! `casemate exception`: what a quorum allows one machine once, against the rule that nothing goes back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use evidence::bundle::Quorum;
use evidence::exception::{Allow, BYTES_MAX, EXCEPTION_SCHEMA, Exception, Granted, payload};
use evidence::format::Machine;

use crate::bundle::{self, medium, sign, verify};
use crate::output;

/// Longest `machine.json`.
const MACHINE_BYTES_MAX: usize = 64 << 10;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write an exception, to be signed
    Create(Create),
    /// Say what an exception allows, and sign it with one key behind PKCS#11
    Sign(Sign),
    /// Check an exception against signatures and a quorum policy
    Verify(Verify),
    /// Pack an exception and its signatures into the disk image of a medium, without a bundle
    Pack(Pack),
}

/// Machine and counter are on the machine's console: "attestation key …", "the TPM's counter shows …".
#[derive(Debug, clap::Args)]
struct Create {
    /// Name of the machine's attestation key, or its machine.json
    #[arg(long, value_name = "NAME|FILE")]
    machine: String,
    #[command(flatten)]
    counter: Counter,
    #[command(flatten)]
    allowed: Allowed,
    /// Why; goes into the machine's ledger
    #[arg(long)]
    reason: String,
    /// File to make
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Counter {
    /// What the machine's counter shows
    #[arg(long, value_name = "N")]
    counter: Option<u64>,
    /// The machine says that its counter is gone, or not the counter
    #[arg(long)]
    no_counter: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Allowed {
    /// Go on with the state that is there, older or empty as it may be
    #[arg(long)]
    state: bool,
    /// Lowest image version from now on
    #[arg(long, value_name = "N")]
    image: Option<u64>,
    /// Lowest version of the site configuration from now on
    #[arg(long, value_name = "N")]
    site: Option<u64>,
    /// Lowest bundle version of a model from now on
    #[arg(long, value_name = "MODEL=N", value_parser = parse_bundle)]
    bundle: Vec<(String, u64)>,
}

#[derive(Debug, clap::Args)]
struct Sign {
    /// The exception
    file: PathBuf,
    /// PKCS#11 URI of the signing key, or a .uri file that holds one
    #[arg(long)]
    key: String,
    /// Signature file to make
    #[arg(long)]
    out: PathBuf,
    /// PKCS#11 module, if the URI names none
    #[arg(long)]
    module: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Verify {
    /// The exception
    file: PathBuf,
    /// Signature file
    #[arg(long, required = true)]
    signature: Vec<PathBuf>,
    /// Quorum policy that the signatures must meet
    #[arg(long)]
    policy: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Pack {
    /// The exception
    file: PathBuf,
    /// Signature files
    #[arg(long, required = true)]
    signature: Vec<PathBuf>,
    /// Disk image to make
    #[arg(long)]
    out: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Create(args) => create(args),
        Command::Sign(args) => sign_one(args),
        Command::Verify(args) => verify_all(args),
        Command::Pack(args) => {
            read(&args.file)?;
            medium::pack_exception(&args.file, &args.signature, &args.out)?;
            println!("{}: {} signatures", args.out.display(), args.signature.len());
            Ok(())
        }
    }
}

fn create(args: &Create) -> anyhow::Result<()> {
    let Allowed { state, image, site, bundle } = &args.allowed;
    let bundles: BTreeMap<_, _> = bundle.iter().cloned().collect();
    if bundles.len() < bundle.len() {
        bail!("a model is named twice");
    }
    let exception = Exception {
        schema: EXCEPTION_SCHEMA.to_owned(),
        machine: machine(&args.machine)?,
        counter: args.counter.counter,
        allow: Allow { state: *state, image: *image, site: *site, bundles },
        reason: args.reason.clone(),
    };
    output::write_new(&args.out, exception.to_json()?.as_bytes())?;
    println!("{}: {}", args.out.display(), describe(&exception));
    Ok(())
}

fn sign_one(args: &Sign) -> anyhow::Result<()> {
    let (text, exception) = read(&args.file)?;
    // Before the PIN is given: whoever signs reads what it is.
    println!("{}", describe(&exception));
    let module = args.module.as_deref();
    let (uri, _) = sign::sign(&args.key, module, &args.out, || Ok(payload(&text)?))?;
    println!("{}: signed by {uri}", args.out.display());
    Ok(())
}

fn verify_all(args: &Verify) -> anyhow::Result<()> {
    let (text, _) = read(&args.file)?;
    let quorum = Quorum::parse(&verify::policy(&args.policy)?)?;
    let granted = Granted::admit(&quorum, &text, &bundle::read_signatures(&args.signature)?)?;
    println!(
        "verified: {}, signed by {}",
        describe(granted.exception()),
        granted.signers().join(", ")
    );
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<(Vec<u8>, Exception)> {
    let text = bundle::read(path, BYTES_MAX)?;
    let exception = Exception::parse(&text).with_context(|| path.display().to_string())?;
    Ok((text, exception))
}

/// The Name that was given, or the one in the file that was.
fn machine(argument: &str) -> anyhow::Result<String> {
    let is_name = |text: &str| text.len() == 68 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if is_name(argument) {
        return Ok(argument.to_ascii_lowercase());
    }
    let text = bundle::read(Path::new(argument), MACHINE_BYTES_MAX)
        .context("--machine takes 68 hex digits or a machine.json")?;
    let machine: Machine = serde_json::from_slice(&text).with_context(|| argument.to_owned())?;
    if !is_name(&machine.ak_name) {
        bail!("{argument}: ak_name {:?} is not 68 hex digits", machine.ak_name);
    }
    Ok(machine.ak_name.to_ascii_lowercase())
}

fn describe(exception: &Exception) -> String {
    let Allow { state, image, site, bundles } = &exception.allow;
    let mut allowed = Vec::new();
    if *state {
        allowed.push("to go on with the state that is there".to_owned());
    }
    allowed.extend(image.map(|version| format!("image {version}")));
    allowed.extend(site.map(|version| format!("site {version}")));
    allowed.extend(bundles.iter().map(|(model, version)| format!("{model} {version}")));
    let counter = exception.counter.map_or_else(|| "gone".to_owned(), |count| count.to_string());
    format!(
        "allows the machine {} once, while its counter is {counter}: {}; because {:?}",
        exception.machine,
        allowed.join(", "),
        exception.reason
    )
}

fn parse_bundle(text: &str) -> Result<(String, u64), String> {
    let (model, version) = text.split_once('=').ok_or("expected MODEL=N")?;
    let version = version.parse().map_err(|error| format!("{version:?}: {error}"))?;
    Ok((model.to_owned(), version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_a_name_or_a_file_with_one() {
        let name = format!("000b{}", "Ab".repeat(32));
        assert_eq!(machine(&name).unwrap(), name.to_ascii_lowercase());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("machine.json");
        let write = |ak_name: &str| {
            std::fs::write(&file, format!(r#"{{"ak_name":"{ak_name}"}}"#)).unwrap();
            machine(file.to_str().unwrap())
        };
        assert_eq!(write(&name).unwrap(), name.to_ascii_lowercase());
        assert!(write("000b").is_err());
        assert!(machine("000b").is_err());
    }

    #[test]
    fn a_bundle_is_a_model_and_a_version() {
        assert_eq!(parse_bundle("m=2"), Ok(("m".to_owned(), 2)));
        assert!(parse_bundle("m").is_err() && parse_bundle("m=-1").is_err());
    }
}
