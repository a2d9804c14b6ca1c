//! `state recovery`.

use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, ensure};
use evidence::recovery::{self, EscrowKey, FILE, Recovery, RecoveryError, RecoveryKey};
use rustix::rand::{GetRandomFlags, getrandom};
use tpm::{AttestationKey, Tpm};
use zeroize::{Zeroize as _, Zeroizing};

use crate::journal::say;
use crate::options::{self, Options};
use crate::{files, luks, site};

/// Draws of an ephemeral key; one of them fails in four thousand million cases.
const DRAWS_MAX: u32 = 3;

pub(crate) fn run(options: &Options, paths: &options::Recovery) -> anyhow::Result<()> {
    let escrow = site::read(&paths.site)?.1.escrow_key()?;
    let slots = luks::slots(&options.device)?;
    let kept = kept(&paths.kept)?;
    if slots.recovery().len() == 1 && kept.is_some_and(|it| it.fits(slots.uuid(), escrow.as_ref()))
    {
        return Ok(());
    }
    let machine = machine(&options.tcti)?;
    let key = enroll(&options.device, &paths.cryptenroll)?;
    let after = luks::slots(&options.device)?;
    ensure!(after.recovery().len() == 1, "the new recovery key is not the only one in the header");
    let file = match &escrow {
        Some(escrow) => escrowed(&machine, after.uuid(), &key, escrow)?,
        None => {
            // Before it is remembered: what was not seen is made anew.
            show(&key).context("cannot show the recovery key on the console")?;
            Recovery::shown(&machine, after.uuid())
        }
    };
    let text = file.to_json()?;
    files::replace(&paths.kept, FILE, 0o644, text.as_bytes())
        .with_context(|| paths.kept.join(FILE).display().to_string())?;
    match &escrow {
        Some(_) => say(&format!("recovery key, encrypted to the escrow key: {}", text.trim_end())),
        None => say("recovery key shown on the console; it is not shown again"),
    }
    Ok(())
}

/// What is known of a key made before. A file that is none is as good as no file: the key is made anew.
fn kept(folder: &Path) -> anyhow::Result<Option<Recovery>> {
    let path = folder.join(FILE);
    let text = match files::read_bounded(&path, recovery::BYTES_MAX as u64) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let read = Recovery::parse(&text);
    if let Err(error) = &read {
        say(&format!("the recovery key is made anew: {error}"));
    }
    Ok(read.ok())
}

/// Name of this machine's attestation key. The TPM is closed again afterwards, so that systemd-cryptenroll may open it.
fn machine(tcti: &str) -> anyhow::Result<String> {
    let mut tpm = Tpm::open(tcti)?;
    Ok(hex::encode(AttestationKey::create(&mut tpm)?.name()))
}

/// A new recovery key in place of any other. The volume key comes from the TPM, by the slot of the present state.
fn enroll(device: &Path, program: &Path) -> anyhow::Result<RecoveryKey> {
    let mut command = luks::cryptenroll(program);
    command.args(["--unlock-tpm2-device=auto", "--recovery-key", "--wipe-slot=recovery"]);
    let mut printed = luks::run(command.arg(device))?;
    let key = str::from_utf8(&printed).context("systemd-cryptenroll").and_then(|text| {
        RecoveryKey::parse(text).context("systemd-cryptenroll printed something else")
    });
    printed.zeroize();
    key
}

fn escrowed(
    machine: &str,
    state: &str,
    key: &RecoveryKey,
    escrow: &EscrowKey,
) -> anyhow::Result<Recovery> {
    let mut drawn = Zeroizing::new([0; 32]);
    for _ in 0..DRAWS_MAX {
        let filled = getrandom(drawn.as_mut_slice(), GetRandomFlags::empty())
            .context("no random numbers")?;
        ensure!(filled == drawn.len(), "{filled} random bytes of {}", drawn.len());
        match Recovery::escrow(machine, state, key, escrow, &drawn) {
            Err(RecoveryError::Draw) => {}
            done => return Ok(done?),
        }
    }
    Err(RecoveryError::Draw.into())
}

/// Standard output is the console here, and not the journal.
fn show(key: &RecoveryKey) -> io::Result<()> {
    let key = key.expose();
    let text = Zeroizing::new(format!(
        "\r\n  RECOVERY KEY of the state partition. Shown once; write it down and lock it away.\r\n  \
         CLÉ DE RECOUVREMENT de la partition d'état. Affichée une seule fois ; à noter et à mettre sous clé.\r\n\r\n    \
         {key}\r\n\r\n"
    ));
    let mut console = io::stdout().lock();
    console.write_all(text.as_bytes())?;
    console.flush()
}
