//! `casemate recovery`: the key by which the data of a machine that is lost can still be read.
//!
//! The holder of the escrow key opens the file that the machine gave out (console, or exchange medium). What comes out
//! is a passphrase of the LUKS2 partition, on any computer: `casemate recovery open … | cryptsetup open DEVICE state`.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use evidence::recovery::{BYTES_MAX, EscrowKey, Recovery, RecoveryError};
use pkcs11::{Agreement, Module, Pkcs11Error, Uri};

use crate::bundle::{self, sign::read_uri};

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the public half of an escrow key, for `recovery_escrow` of site.json; one that its token does not have is
    /// generated there
    Key(Key),
    /// Say of which machine and partition a recovery key is, and which escrow key opens it
    Show(Show),
    /// Print the recovery key to a pipe, or to the terminal if --terminal is given
    Open(Open),
}

#[derive(Debug, clap::Args)]
struct Key {
    /// PKCS#11 URI of the escrow key (EC on P-256, CKA_DERIVE), or a .uri file that holds one
    key: String,
    /// PKCS#11 module, if the URI names none
    #[arg(long)]
    module: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Show {
    /// recovery.json, or the line of the console that holds it
    file: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Open {
    /// recovery.json, or the line of the console that holds it
    file: PathBuf,
    /// PKCS#11 URI of the escrow key, or a .uri file that holds one
    #[arg(long)]
    key: String,
    /// PKCS#11 module, if the URI names none
    #[arg(long)]
    module: Option<PathBuf>,
    /// Print it for everybody before the screen to read
    #[arg(long)]
    terminal: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Key(args) => {
            let uri = read_uri(&args.key)?;
            crate::keys::with_token_store(&uri)?;
            let uri = generate(&uri, args.module.as_deref())?;
            print!("{}", Agreement::open(&uri, args.module.as_deref())?.public_key_pem());
            Ok(())
        }
        Command::Show(args) => {
            println!("{}", describe(&read(&args.file)?));
            Ok(())
        }
        Command::Open(args) => open(args),
    }
}

/// Generates an escrow key unless its token has it; the URI that names it.
pub(crate) fn generate(uri: &Uri, module: Option<&Path>) -> anyhow::Result<Uri> {
    let module = Module::of(uri, module)?;
    if module.has_key(uri)? {
        return Ok(uri.clone());
    }
    let uri = module.generate_agreement(uri)?;
    eprintln!("generated escrow key: {uri}");
    Ok(uri)
}

fn open(args: &Open) -> anyhow::Result<()> {
    let file = read(&args.file)?;
    let uri = read_uri(&args.key)?;
    crate::keys::with_token_store(&uri)?;
    let mut out = io::stdout();
    if out.is_terminal() && !args.terminal {
        bail!(
            "the recovery key opens the partition to whoever reads it: pipe it into `cryptsetup open`, or give --terminal"
        );
    }
    let agreement = Agreement::open(&uri, args.module.as_deref())?;
    let escrow = EscrowKey::from_pem(agreement.public_key_pem())?;
    let key = file.open(&escrow, |point| agreement.agree(point).map_err(OpenError::Token))?;
    eprintln!("{}", describe(&file));
    writeln!(out, "{}", key.expose()).context("standard output")
}

/// Why a recovery key is not given out.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Token(Pkcs11Error),
    #[error(transparent)]
    File(#[from] RecoveryError),
}

/// Reads the file, or the line of a console that holds it.
pub(crate) fn read(path: &Path) -> anyhow::Result<Recovery> {
    // A line of the console begins with who printed it.
    let text = bundle::read(path, BYTES_MAX)?;
    let begin = text.iter().position(|&byte| byte == b'{').unwrap_or_default();
    Recovery::parse(&text[begin..]).with_context(|| path.display().to_string())
}

fn describe(file: &Recovery) -> String {
    let opened = match &file.escrow {
        Some(escrowed) => format!("encrypted to the escrow key {}", escrowed.key_sha256),
        None => "shown on the console at the first boot".to_owned(),
    };
    format!(
        "recovery key of the partition {} of the machine {}: {opened}",
        file.state, file.machine
    )
}
