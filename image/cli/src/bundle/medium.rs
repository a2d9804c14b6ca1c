//! `casemate bundle pack`: the disk image of a bundle medium.
//!
//! GPT with one partition labelled `casemate-bundle`, erofs, holding `model/…` and `signatures/*.sig`, and
//! `exception/…` if something older is allowed; the media of orders are made alike (`casemate-reseal`,
//! `casemate-reset`, `order/…`). With `--seal-…` the files within `model` are encrypted and `sealed/key.json` has their key.
//! The same input gives the same image, but for a sealed one: each has a fresh key, so no two are alike. Packing judges
//! nothing, since the appliance does.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use evidence::bundle::{Claim, Found};
use evidence::sealed::{self, Encryptor};

use super::seal::{self, Seal};
use super::{folder, verify};
use crate::{output, tool};

/// Seeds the GPT's identifiers and names the file system, so that packing is reproducible.
const UUID: &str = "7b1f3c4e-5d0a-4c58-9a3e-0c2b6e0f9d71";

/// A kind of medium.
#[derive(Debug)]
pub(crate) struct Medium {
    /// What udev on the appliance looks for.
    label: &'static str,
    /// Folder with the signed files.
    content: &'static str,
}

impl Medium {
    /// A model bundle.
    const BUNDLE: Self = Self { label: "casemate-bundle", content: "model" };
    /// A reseal order.
    pub(crate) const RESEAL: Self = Self { label: "casemate-reseal", content: "order" };
    /// An update; its files lie at the top.
    const UPDATE: Self = Self { label: evidence::update::LABEL, content: "." };
    /// An order to destroy a state.
    pub(crate) const RESET: Self = Self { label: "casemate-reset", content: "order" };
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model folder
    dir: PathBuf,
    /// Signature files to put on the medium
    #[arg(long)]
    signature: Vec<PathBuf>,
    /// Disk image to make
    #[arg(long)]
    out: PathBuf,
    /// File made by `casemate exception create`, to put on the medium
    #[arg(long, value_name = "FILE", requires = "exception_signature")]
    exception: Option<PathBuf>,
    /// Signatures of the exception
    #[arg(long, value_name = "SIG", requires = "exception")]
    exception_signature: Vec<PathBuf>,
    /// Warn if the signatures do not meet this quorum policy
    #[arg(long)]
    policy: Option<PathBuf>,
    #[command(flatten)]
    seal: seal::Options,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let found = folder::read(&args.dir)?;
    warn(args, &found)?;
    let seal = seal::seal(&args.seal)?;
    make(&Medium::BUNDLE, &args.out, |tree| {
        let to = tree.join(Medium::BUNDLE.content);
        match &seal {
            Some(seal) => {
                encrypt_files(seal, &args.dir, &found, &to)?;
                let folder = tree.join(sealed::FOLDER);
                fs::create_dir(&folder)?;
                output::write_new(&folder.join(sealed::FILE), seal.key_file.as_bytes())?;
            }
            None => copy_files(&args.dir, &found, &to)?,
        }
        copy_signatures(&args.signature, &tree.join("signatures"))?;
        match &args.exception {
            Some(exception) => copy_exception(exception, &args.exception_signature, tree),
            None => Ok(()),
        }
    })?;
    println!("{}: {} files, {} signatures", args.out.display(), found.len(), args.signature.len());
    if let Some(seal) = seal {
        println!("readable by {} alone", seal.shown);
    }
    Ok(())
}

/// Makes the disk image `out` of a folder's files, as they were found, and the signatures.
pub(crate) fn pack(
    medium: &Medium,
    (dir, found): (&Path, &[Found]),
    signatures: &[PathBuf],
    out: &Path,
) -> anyhow::Result<()> {
    make(medium, out, |tree| {
        copy_files(dir, found, &tree.join(medium.content))?;
        copy_signatures(signatures, &tree.join("signatures"))
    })
}

/// Makes the disk image `out` of an exception, without a bundle.
pub(crate) fn pack_exception(
    exception: &Path,
    signatures: &[PathBuf],
    out: &Path,
) -> anyhow::Result<()> {
    make(&Medium::BUNDLE, out, |tree| copy_exception(exception, signatures, tree))
}

/// Makes the disk image `out` of an update, which `fill` lays into a folder.
pub(crate) fn pack_update(
    out: &Path,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    make(&Medium::UPDATE, out, fill)
}

/// Makes the disk image `out` of what `fill` lays into a folder.
fn make(
    medium: &Medium,
    out: &Path,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let out = std::path::absolute(out)?;
    if out.exists() {
        bail!("{} exists already", out.display());
    }
    let beside = out.parent().context("--out names no file")?;
    let staging = tempfile::tempdir_in(beside).with_context(|| beside.display().to_string())?;
    let tree = staging.path().join("tree");
    fs::create_dir(&tree)?;
    fill(&tree)?;
    set_modes(&tree)?;
    let erofs = staging.path().join("medium.erofs");
    make_erofs(medium, &tree, &erofs)?;
    let image = staging.path().join("medium.img");
    make_gpt(medium, staging.path(), &erofs, &image)?;
    fs::rename(&image, &out).with_context(|| out.display().to_string())
}

/// Lays an exception and its signatures into `tree`.
fn copy_exception(exception: &Path, signatures: &[PathBuf], tree: &Path) -> anyhow::Result<()> {
    let to = tree.join("exception");
    copy_signatures(signatures, &to)?;
    let mut copy = File::create_new(to.join(evidence::exception::FILE))?;
    io::copy(&mut folder::open(exception)?, &mut copy)?;
    Ok(())
}

/// Testers pack bad bundles on purpose; everybody else wants to know before the medium travels.
fn warn(args: &Args, found: &[Found]) -> anyhow::Result<()> {
    let signatures = super::read_signatures(&args.signature)?;
    for (path, signature) in args.signature.iter().zip(&signatures) {
        let problem = match Claim::parse(signature) {
            Ok(claim) => claim.compare(found).err().map(|differences| differences.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            eprintln!("warning: {}: {problem}", path.display());
        }
    }
    if let Some(policy) = &args.policy {
        if let Err(error) = verify::by_policy(policy, &signatures) {
            eprintln!("warning: an appliance with this policy refuses the bundle: {error:#}");
        }
    } else if signatures.is_empty() {
        eprintln!("warning: no signature; every appliance refuses this bundle");
    }
    Ok(())
}

fn copy_files(from: &Path, found: &[Found], to: &Path) -> anyhow::Result<()> {
    each_file(from, found, to, |_, mut source, target| io::copy(&mut source, target))
}

fn encrypt_files(seal: &Seal, from: &Path, found: &[Found], to: &Path) -> anyhow::Result<()> {
    each_file(from, found, to, |name, source, target| {
        io::copy(&mut Encryptor::new(&seal.content_key, name, source), target)
    })
}

/// Makes each file in `to` by `write`, which has its name, the file found and the one to be.
fn each_file(
    from: &Path,
    found: &[Found],
    to: &Path,
    write: impl Fn(&str, File, &mut File) -> io::Result<u64>,
) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for Found { name, .. } in found {
        let target = to.join(name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        let source = folder::open(&from.join(name))?;
        write(name, source, &mut File::create_new(&target)?).context(name.clone())?;
    }
    Ok(())
}

fn copy_signatures(from: &[PathBuf], to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for path in from {
        let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
        if path.extension().is_none_or(|extension| extension != "sig") {
            bail!("{}: the appliance reads signatures/*.sig; give it that ending", path.display());
        }
        let mut copy = File::create_new(to.join(name))
            .with_context(|| format!("two signatures are named {}", name.display()))?;
        io::copy(&mut folder::open(path)?, &mut copy)?;
    }
    Ok(())
}

/// Modes do not depend on the packer's umask: everybody reads, nobody writes.
fn set_modes(tree: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(tree)? {
        let path = entry?.path();
        if path.is_dir() {
            set_modes(&path)?;
        } else {
            fs::set_permissions(&path, Permissions::from_mode(0o444))?;
        }
    }
    fs::set_permissions(tree, Permissions::from_mode(0o755)).context("mode")
}

fn make_erofs(medium: &Medium, tree: &Path, erofs: &Path) -> anyhow::Result<()> {
    let options =
        ["--quiet", "-T0", "--all-root", "-x-1", "-b4096", "-U", UUID, "-L", medium.label];
    let mut args: Vec<_> = options.map(Into::into).to_vec();
    args.extend([erofs.as_os_str().to_owned(), tree.as_os_str().to_owned()]);
    tool::run("mkfs.erofs", &args)
}

fn make_gpt(medium: &Medium, staging: &Path, erofs: &Path, image: &Path) -> anyhow::Result<()> {
    let definitions = staging.join("repart.d");
    fs::create_dir(&definitions)?;
    let erofs = erofs.to_str().with_context(|| format!("{erofs:?} is not UTF-8"))?;
    // A percent sign would start a specifier.
    let partition = format!(
        "[Partition]\nType=linux-generic\nLabel={}\nCopyBlocks={}\n",
        medium.label,
        erofs.replace('%', "%%")
    );
    fs::write(definitions.join("10-medium.conf"), partition)?;
    let seed = format!("--seed={UUID}");
    let options =
        ["--offline=yes", "--empty=create", "--size=auto", "--dry-run=no", "--no-pager", &seed];
    let mut args: Vec<_> = options.map(Into::into).to_vec();
    args.push(format!("--definitions={}", definitions.display()).into());
    args.push(image.as_os_str().to_owned());
    tool::run("systemd-repart", &args)
}
