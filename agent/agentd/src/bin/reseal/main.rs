//! Seals the state partition to a state of the machine that a signed order foresees, and to the key that signs the
//! policies of the image where that was rotated.
//!
//! `accept` runs when a medium with an order appears: without privileges, confined before it reads a byte of the
//! medium, it keeps what the quorum signed. `apply` runs early in the next boot, while the image's signed policy
//! lets the TPM release the key (`enter-initrd:leave-initrd`): as root it judges the kept order again, and adds or
//! wipes key slots through systemd-cryptenroll. An image by a new key of PCR policies opened the state by a signature of
//! the key before, which it carries too: then a slot is added for the new key, and the first image without the old
//! signature wipes the old slot.
//!
//! Invariants: nothing that `accept` wrote is trusted by `apply`; a slot is added for an approved order of this
//! machine in its present state alone, or for the key of the image that
//! opened the state; whatever fails, the slots are as they were and the boot goes on.

mod accept;
mod apply;
#[path = "../../files.rs"]
mod files;
#[path = "../../journal.rs"]
mod journal;
mod keep;
#[path = "../../luks.rs"]
mod luks;
mod options;
#[path = "../../policy.rs"]
mod policy;
#[path = "../../signed.rs"]
mod signed;
mod slots;

use std::process::ExitCode;

use clap::Parser as _;
use evidence::bundle::Quorum;
use tpm::{AttestationKey, Tpm};

use journal::say;
use options::{Command, Options};

/// PCR of Secure Boot's variables.
const PCR_SECURE_BOOT: usize = 7;

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.command {
        Command::Accept(paths) => accept::run(&options, paths),
        Command::Apply(paths) => apply::run(&options, paths),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{}: {error:#}", options.command.failure()));
            ExitCode::FAILURE
        }
    }
}

/// This machine in this boot.
#[derive(Debug)]
struct Machine {
    /// TPM Name of the attestation key, hex.
    ak_name: String,
    /// PCR 7.
    pcr7: [u8; 32],
}

impl Machine {
    /// Asks the TPM; it is closed again afterwards, so that systemd-cryptenroll may open it.
    fn ask(tcti: &str) -> anyhow::Result<Self> {
        let mut tpm = Tpm::open(tcti)?;
        let ak_name = hex::encode(AttestationKey::create(&mut tpm)?.name());
        Ok(Self { ak_name, pcr7: tpm.pcrs()?[PCR_SECURE_BOOT] })
    }
}

fn quorum(options: &Options) -> anyhow::Result<Quorum> {
    Ok(Quorum::parse(&policy::read(&options.policy)?.1)?)
}
