//! `update apply`.
//!
//! The order is what keeps the machine bootable at every moment: entries of images that do not run go first, then their
//! partitions are written and read back, then identified, and the new entry appears last, by a rename.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use evidence::bundle::KEY_PEM_BYTES_MAX;
use evidence::update::{PARTS, Part, Running, Step, TRIES, Update, entry_name};
use sha2::{Digest as _, Sha256};

use crate::discoverable::identifiers;
use crate::entries::{self, Entries};
use crate::image::{Image, OS_RELEASE_BYTES_MAX};
use crate::medium::Medium;
use crate::options::{Apply, Options};
use crate::sets::Sets;
use crate::{esp, files, parts, say};

/// `IMAGE_ID` of what this program is part of.
const IMAGE_ID: &str = "casemate";
/// Folder and file of what firmware starts by itself.
const BOOT_MANAGER: [&str; 2] = ["EFI/BOOT", "BOOTX64.EFI"];

pub(crate) fn run(options: &Options, paths: &Apply) -> anyhow::Result<()> {
    let image = Image::parse(&text(&paths.os_release, OS_RELEASE_BYTES_MAX)?)?;
    let key = text(&paths.key, KEY_PEM_BYTES_MAX as u64)?;
    let mut sets = Sets::find(paths)?;
    let medium = Medium::open(&paths.medium)?;
    let approved = medium.approve(&key)?;
    let update = approved.update();
    let running = Running {
        image_id: IMAGE_ID,
        profile: &image.profile,
        version_index: image.index,
        root_hash: &sets.running,
    };
    if approved.judge(running)? == Step::Runs {
        say(&format!("the update is version {}, which runs already", image.index));
        return Ok(());
    }
    ensure!(
        !entries::on_trial(options),
        "version {} runs for the first time and was not healthy yet; plug the medium again later",
        image.index
    );
    sets.check_esp(&options.esp)?;
    let entries = Entries::of(&options.esp);
    if entries.failed(&update.entry())? {
        bail!("version {} was tried {TRIES} times and was never healthy", update.version_index);
    }
    say(&format!(
        "update accepted: {} version {} beside {} version {}; writing",
        update.image_version, update.version_index, image.version, image.index
    ));
    entries.keep_only(&entry_name(image.index, &sets.running))?;
    write(&medium, &mut sets, update)?;
    write_programs(&medium, &options.esp, update)?;
    say(&format!("update written: restart, and version {} is tried", update.version_index));
    Ok(())
}

/// The partitions of the set that does not run, and then their identifiers, by which the new image finds them.
fn write(medium: &Medium, sets: &mut Sets, update: &Update) -> anyhow::Result<()> {
    let [root, verity, _, _] = PARTS;
    let identifiers = identifiers(&update.root_hash).context("the root hash is none")?;
    let targets = [(&sets.root, root, &update.root), (&sets.verity, verity, &update.verity)];
    for (target, name, part) in targets {
        parts::write(target, medium.file(name)?, part).with_context(|| name.to_owned())?;
    }
    let numbers = [sets.root.partition.number, sets.verity.partition.number];
    for (number, identifier) in numbers.into_iter().zip(identifiers) {
        sets.table.identify(number, identifier)?;
    }
    Ok(sets.table.write(&sets.disk, || sets.disk.sync_all())?)
}

/// The boot manager, if it is another one, and the entry.
fn write_programs(medium: &Medium, system: &Path, update: &Update) -> anyhow::Result<()> {
    let [_, _, uki, boot_manager] = PARTS;
    let program = |name: &str, part: &Part| {
        let bytes = files::read_all(medium.file(name)?, part.bytes).context(name.to_owned())?;
        let found = hex::encode(Sha256::digest(&bytes));
        ensure!(found == part.sha256, "{name} on the medium is another one than was signed");
        Ok(bytes)
    };
    let (new, uki) = (program(boot_manager, &update.boot_manager)?, program(uki, &update.uki)?);
    let [folder, name] = BOOT_MANAGER;
    let folder = system.join(folder);
    let old = files::read_bounded(&folder.join(name), evidence::update::PART_BYTES_MAX);
    if old.with_context(|| name.to_owned())? != new {
        esp::put(&folder, name, &new).with_context(|| name.to_owned())?;
    }
    Entries::of(system).add(&update.entry(), TRIES, &uki)
}

fn text(path: &Path, bytes_max: u64) -> anyhow::Result<String> {
    let shown = path.display();
    let bytes = files::read_bounded(path, bytes_max).with_context(|| shown.to_string())?;
    String::from_utf8(bytes).with_context(|| format!("{shown} is not UTF-8"))
}
