//! Writes an image onto a server's disk: `casemate flash`, and the installer stick.
//! Invariants: a disk that is used, or that the operator did not name by its serial number, is never written; a disk
//! that was not written to the end and read back does not boot.

mod buffer;
mod copy;
mod device;
mod disks;
mod image;
pub mod install;
mod progress;

use std::io::{BufRead, IsTerminal as _, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use copy::{CopyError, Failure, SIZES, Target as _};
use device::Device;
use disks::{Disk, Found, Identity, Inventory, Needs, Refusal};
use image::Image;
use progress::{Progress, size};

/// Longest line that is read from a terminal.
const TYPED_BYTES_MAX: u64 = 4096;
/// Most partitions and reasons that the list shows for one disk.
const LINES_MAX: usize = 16;
const FAILED: u8 = 3;
const DIFFERS: u8 = 4;
/// As a shell reports SIGINT.
const INTERRUPTED: u8 = 130;

const HELP: &str = "\
Without DEVICE, lists the disks of this machine and says for each why it may not be overwritten, if so.

With DEVICE, a whole disk, checks the image against the builder's signed statement beside it (provenance.intoto.jsonl), wants the disk's serial number typed, \
clears and writes as many bytes of the disk as the image has, reads all of them back, and writes the partition tables \
last: until everything is verified the disk does not boot. Behind the image only the last MiB of the disk is cleared, \
where old backup tables and RAID labels lie; to get rid of all old data, erase the disk before (`blkdiscard`, \
`nvme format --ses=1`). A disk without a serial number of its own is named by path and size, PATH:BYTES, as the list \
shows it.

Exit codes:
  0    listed; or the disk begins with the image, read back byte for byte
  1    refused, or failed before anything was written
  2    wrong arguments
  3    failed while writing or reading; the disk does not boot, unless the message says otherwise
  4    the disk does not hold what was written; it does not boot, unless the message says otherwise
  130  interrupted; if writing had begun the disk does not boot, and a message says so";

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Disk image: casemate.raw of a build
    #[arg(required_unless_present = "list")]
    image: Option<PathBuf>,
    /// Whole disk to overwrite, such as /dev/nvme0n1 or a link in /dev/disk/by-id
    #[arg(conflicts_with = "list", requires = "key")]
    device: Option<PathBuf>,
    /// Public half of the builder's key (build.pub.pem of the key set), got by another way than the image
    #[arg(long, value_name = "PEM", requires = "device")]
    key: Option<PathBuf>,
    /// Only list disks; with an image, those that are too small for it are marked
    #[arg(long)]
    list: bool,
    /// Do not ask; go on only if this is exactly the disk's serial number (or PATH:BYTES, if it has none)
    #[arg(long, value_name = "SERIAL", requires = "device")]
    yes_serial: Option<String>,
}

/// `casemate flash`; `read_key` reads the builder's public key, PEM.
pub fn run(args: &Args, read_key: fn(&Path) -> anyhow::Result<String>) -> anyhow::Result<()> {
    match (&args.image, &args.device, &args.key) {
        (Some(image), Some(device), Some(key)) => {
            flash(image, device, &read_key(key)?, args.yes_serial.as_deref())
        }
        (image, ..) => {
            let needs = image.as_deref().map(|image| Image::open(image).map(|image| image.needs()));
            let inventory = Inventory::read(Path::new("/"))?;
            list(&inventory, needs.transpose()?, &mut std::io::stdout().lock())
        }
    }
}

/// The exit code of the whole program for `error`, of whatever command.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<Failure>().map(|failure| &failure.error) {
        None => ExitCode::FAILURE,
        Some(CopyError::Differs { .. }) => ExitCode::from(DIFFERS),
        Some(CopyError::Interrupted { .. }) => ExitCode::from(INTERRUPTED),
        Some(_) => ExitCode::from(FAILED),
    }
}

fn flash(image: &Path, path: &Path, pem: &str, yes_serial: Option<&str>) -> anyhow::Result<()> {
    let image = Image::open(image)?;
    let inventory = Inventory::read(Path::new("/"))?;
    let disk = permitted(&inventory, path, image.needs())?;
    let identity = inventory.identity(disk);
    // Before the image is read, which takes a while.
    match yes_serial {
        Some(given) => same_identity(&identity, given)?,
        None if !std::io::stdin().is_terminal() => {
            bail!("no terminal to type at: give --yes-serial; nothing was written")
        }
        None => {}
    }
    let device = Device::open(&disk.path())?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let mut progress = Progress::new(Arc::clone(&interrupted));
    let sha256 = image.check(pem, &mut progress)?;
    eprintln!("SHA-256 {}, as the builder signed", hex::encode(sha256));
    if yes_serial.is_none() {
        let mut stderr = std::io::stderr().lock();
        describe(disk, &identity, &mut stderr)?;
        ask(&identity, &mut std::io::stdin().lock(), &mut stderr)?;
    }
    unchanged(disk, &device)?;
    listen(&interrupted)?;
    let shown = disk.path().display().to_string();
    eprintln!("{shown} is overwritten now; it does not boot before this is finished");
    let written = copy::copy(&image, &device, &sha256, SIZES, &mut progress);
    drop((progress, device));
    // After a failure too: what the kernel took for partitions is gone.
    let reread = device::reread_table(&disk.path());
    written.context(shown)?;
    report(disk, &image, sha256, reread);
    Ok(())
}

/// From here on Ctrl-C is only noted. The second one ends at once: a disk that hangs never lets the first be seen.
fn listen(interrupted: &Arc<AtomicBool>) -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(interrupted))
            .and_then(|_| flag::register(signal, Arc::clone(interrupted)))
            .context("cannot listen to Ctrl-C")?;
    }
    Ok(())
}

/// The disk at `path`, if it may be overwritten.
fn permitted<'a>(inventory: &'a Inventory, path: &Path, needs: Needs) -> anyhow::Result<&'a Disk> {
    let shown = path.display();
    let Some(dev) = device::number(path)? else {
        bail!("{shown} is no block device; `casemate flash --list` shows the disks");
    };
    let disk = match inventory.find(&dev) {
        Found::Disk(disk) => disk,
        Found::Partition { name, disk } => bail!(
            "{shown} is the partition {name}; an image takes a whole disk, here {}",
            disk.path().display()
        ),
        Found::NoDisk { name, what } => bail!("{shown} is {name}, {what}, and no disk"),
        Found::Unknown => {
            bail!(
                "{shown}, device {dev}, is no disk with a size; `casemate flash --list` shows the disks"
            )
        }
    };
    let refusals = inventory.refusals(disk, Some(needs));
    if refusals.is_empty() {
        return Ok(disk);
    }
    let reasons: Vec<String> = refusals.iter().take(LINES_MAX).map(Refusal::to_string).collect();
    bail!("{} is not overwritten: {}", disk.path().display(), reasons.join("; "))
}

/// Between the look at the disk and now somebody read and typed: it must still be the same one.
fn unchanged(disk: &Disk, device: &Device) -> anyhow::Result<()> {
    let inventory = Inventory::read(Path::new("/"))?;
    let now = inventory.find(&device.number().context("the disk that was opened")?);
    if now == Found::Disk(disk) && device.bytes() == disk.bytes {
        return Ok(());
    }
    bail!(
        "{} changed, or is another disk now; nothing was written, start again",
        disk.path().display()
    )
}

fn ask(
    identity: &Identity,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> anyhow::Result<()> {
    match identity {
        Identity::Serial(_) => {
            write!(output, "Type the serial number of this disk to overwrite it: ")?;
        }
        Identity::PathAndSize(text) => {
            write!(output, "It has no serial number of its own. Type {text} to overwrite it: ")?;
        }
    }
    output.flush()?;
    let mut typed = String::new();
    input.take(TYPED_BYTES_MAX).read_line(&mut typed).context("cannot read what was typed")?;
    same_identity(identity, typed.trim())
}

fn same_identity(identity: &Identity, given: &str) -> anyhow::Result<()> {
    if given == identity.text() {
        return Ok(());
    }
    bail!("{given:?} is another disk than this one, with {identity}; nothing was written")
}

fn list(
    inventory: &Inventory,
    needs: Option<Needs>,
    output: &mut impl Write,
) -> anyhow::Result<()> {
    if inventory.disks.is_empty() {
        writeln!(output, "no disk")?;
    }
    for disk in &inventory.disks {
        describe(disk, &inventory.identity(disk), output)?;
        let refusals = inventory.refusals(disk, needs);
        if refusals.is_empty() {
            if device::is_busy(&disk.path()) {
                writeln!(output, "  NOT to be overwritten: it {}", device::BUSY)?;
            } else {
                writeln!(output, "  may be overwritten")?;
            }
        }
        for refusal in refusals.iter().take(LINES_MAX) {
            writeln!(output, "  NOT to be overwritten: {refusal}")?;
        }
    }
    Ok(())
}

fn describe(disk: &Disk, identity: &Identity, output: &mut impl Write) -> anyhow::Result<()> {
    let model = disk.model.as_deref().unwrap_or("unknown model");
    let removable = if disk.is_removable { ", removable" } else { "" };
    let (path, transport) = (disk.path(), disk.transport);
    writeln!(output, "{}: {model}, {transport}{removable}", path.display())?;
    writeln!(output, "  {identity}")?;
    writeln!(output, "  {} ({} bytes)", size(disk.bytes), disk.bytes)?;
    match (&disk.table, disk.content.len()) {
        (None, 0) => writeln!(output, "  no partitions or file systems that this machine knows")?,
        (Some(table), count) => writeln!(output, "  {table} partition table, {count} in use")?,
        (None, _) => writeln!(output, "  holds")?,
    }
    for content in disk.content.iter().take(LINES_MAX) {
        let label =
            content.label.as_ref().map_or_else(String::new, |label| format!(" \"{label}\""));
        let filesystem = content.filesystem.as_deref().unwrap_or("unknown content");
        writeln!(output, "    {}{label}, {filesystem}, {}", content.name, size(content.bytes))?;
    }
    if disk.content.len() > LINES_MAX {
        writeln!(output, "    and {} more", disk.content.len() - LINES_MAX)?;
    }
    Ok(())
}

fn report(disk: &Disk, image: &Image, sha256: [u8; 32], reread: anyhow::Result<()>) {
    let bytes = image.needs().bytes;
    if let Err(error) = reread {
        // What is on the disk is right; only this machine's view of it is old.
        eprintln!(
            "this machine sees the new partitions once the disk is attached again: {error:#}"
        );
    }
    println!(
        "{}: holds the image, {} of which {} are data, SHA-256 {}, read back",
        disk.path().display(),
        size(bytes),
        size(image.data_bytes()),
        hex::encode(sha256)
    );
    if disk.bytes > bytes {
        println!(
            "the {} behind it keep what they held, but for the last MiB; the first boot makes the encrypted state there",
            size(disk.bytes - bytes)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_serial_number_is_taken() {
        let identity = Identity::Serial("S64GNE0R".to_owned());
        let typed = |text: &str| ask(&identity, &mut text.as_bytes(), &mut Vec::new());
        assert!(typed("S64GNE0R\n").is_ok() && typed("S64GNE0R").is_ok());
        for wrong in
            ["", "\n", "y\n", "yes\n", "s64gne0r\n", "S64GNE0\n", "S64GNE0RX\n", "S64 GNE0R\n"]
        {
            let error = typed(wrong).unwrap_err().to_string();
            assert!(error.contains("nothing was written"), "{error}");
        }
    }

    #[test]
    fn a_disk_without_a_serial_number_says_what_to_type() {
        let identity = Identity::PathAndSize("/dev/loop0:1048576".to_owned());
        let mut said = Vec::new();
        ask(&identity, &mut &b"/dev/loop0:1048576\n"[..], &mut said).unwrap();
        assert!(String::from_utf8(said).unwrap().contains("Type /dev/loop0:1048576 to overwrite"));
        assert!(ask(&identity, &mut &b"/dev/loop0\n"[..], &mut Vec::new()).is_err());
    }

    #[test]
    fn scripts_can_tell_failures_apart() {
        let failure = |error| {
            let failure = Failure { error, remains: copy::Remains::NoTable };
            format!("{:?}", exit_code(&anyhow::Error::new(failure).context("/dev/sda")))
        };
        let code = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(failure(CopyError::Differs { offset: 0, found: 0, expected: 1 }), code(4));
        assert_eq!(failure(CopyError::Interrupted { offset: 0 }), code(130));
        assert_eq!(
            failure(CopyError::Changed { expected: String::new(), found: String::new() }),
            code(3)
        );
        assert_eq!(format!("{:?}", exit_code(&anyhow::anyhow!("refused"))), code(1));
    }
}
