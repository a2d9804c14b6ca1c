//! `casemate update`: one file that brings machines from an older image to the one of a build.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use evidence::provenance::{ENVELOPE, ENVELOPE_BYTES_MAX};
use evidence::update::{LABEL, UPDATE_BYTES_MAX, UPDATE_FILE, Update, approve};

use crate::bundle::{self, medium};
use crate::{tool, verify_build};

/// Most bytes of a medium before its partition: what systemd-repart aligns to.
const PARTITION_OFFSET: &str = "1048576";

/// Arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the disk image of a medium from a build, which has the signature over it already
    Create(Create),
    /// Check the signature and every part of such an image
    Verify(Verify),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Folder that `casemate build` wrote
    dir: PathBuf,
    /// Disk image to make
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Verify {
    /// Disk image made by `casemate update create`
    file: PathBuf,
    /// Public half of the builder's key (build.pub.pem of the key set), got by another way than the image
    #[arg(long, value_name = "PEM")]
    key: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Create(args) => create(args),
        Command::Verify(args) => verify(args),
    }
}

fn create(args: &Create) -> anyhow::Result<()> {
    let mut made = None;
    medium::pack_update(&args.out, |tree| {
        made = Some(builder::lay_out_update(&args.dir, tree)?);
        Ok(())
    })?;
    let update = made.context("nothing was packed")?;
    println!("{}: {}", args.out.display(), shown(&update));
    Ok(())
}

fn verify(args: &Verify) -> anyhow::Result<()> {
    let key = verify_build::key(&args.key)?;
    let staging = tempfile::tempdir()?;
    let tree = staging.path().join("tree");
    unpack(&args.file, &tree)?;
    let read = |name: &str, bytes_max| bundle::read(&tree.join(name), bytes_max);
    let (envelope, statement) =
        (read(ENVELOPE, ENVELOPE_BYTES_MAX)?, read(UPDATE_FILE, UPDATE_BYTES_MAX)?);
    let approved = approve(&envelope, &statement, &key)?;
    builder::check_update(&tree, approved.update())?;
    println!("verified: {}", shown(approved.update()));
    Ok(())
}

/// Unpacks the medium's file system, which nobody has vouched for, in user space.
fn unpack(image: &Path, tree: &Path) -> anyhow::Result<()> {
    let head = std::fs::File::open(image).and_then(|file| {
        let mut head = vec![0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut head, 0).map(|()| head)
    });
    let head = head.with_context(|| image.display().to_string())?;
    let label: Vec<u8> = LABEL.encode_utf16().flat_map(u16::to_le_bytes).collect();
    if !head.windows(label.len()).any(|window| window == label) {
        bail!("{} is no medium with a partition {LABEL}", image.display());
    }
    let mut extract = std::ffi::OsString::from("--extract=");
    extract.push(tree);
    let offset = format!("--offset={PARTITION_OFFSET}").into();
    tool::run("fsck.erofs", &[extract, offset, image.as_os_str().to_owned()])
}

fn shown(update: &Update) -> String {
    let Update { image_id, image_version, profile, version_index, root_hash, .. } = update;
    format!("{image_id} {image_version} ({profile}), version {version_index}, root {root_hash}")
}
