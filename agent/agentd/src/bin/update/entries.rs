//! Entries of the boot manager: UKIs in `EFI/Linux` whose names may count tries (`NAME+LEFT-DONE.efi`; UAPI Group, "Boot
//! Loader Specification", "Boot counting").

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::options::Options;
use crate::trial::Trial;
use crate::{esp, say};

/// Folder of the entries.
const FOLDER: &str = "EFI/Linux";
/// Beginning of the names of ours.
const PREFIX: &str = "casemate-";
/// End of an entry's name; the boot manager looks at no other file.
const SUFFIX: &str = ".efi";
/// Most files of the folder.
const ENTRIES_MAX: usize = 256;
/// Longest value of the boot manager's variable.
const VARIABLE_BYTES_MAX: u64 = 1024;

/// An entry's name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name<'a> {
    stem: &'a str,
    /// Tries that are left; `None` once it was healthy.
    left: Option<u32>,
}

impl<'a> Name<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let name = name.strip_suffix(SUFFIX)?;
        let Some((stem, counter)) = name.rsplit_once('+') else {
            return Some(Self { stem: name, left: None });
        };
        let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
        done.parse::<u32>().ok()?;
        Some(Self { stem, left: Some(left.parse().ok()?) })
    }
}

/// The entries in an EFI system partition.
#[derive(Debug)]
pub(crate) struct Entries {
    folder: PathBuf,
}

impl Entries {
    pub(crate) fn of(esp: &Path) -> Self {
        Self { folder: esp.join(FOLDER) }
    }

    /// Whether `stem` was tried until no try was left.
    pub(crate) fn failed(&self, stem: &str) -> anyhow::Result<bool> {
        let names = self.names()?;
        let mut own = names.iter().filter_map(|name| Name::parse(name));
        Ok(own.any(|name| name == Name { stem, left: Some(0) }))
    }

    /// Removes every entry of ours but those of `running`, which must have one.
    pub(crate) fn keep_only(&self, running: &str) -> anyhow::Result<()> {
        let names = self.names()?;
        let is_running = |name: &String| Name::parse(name).is_some_and(|name| name.stem == running);
        ensure!(names.iter().any(is_running), "the running image has no boot entry {running}");
        for name in names.iter().filter(|name| name.starts_with(PREFIX) && !is_running(name)) {
            esp::remove(&self.folder, name).with_context(|| name.clone())?;
        }
        Ok(())
    }

    /// Makes the entry `stem`, to be tried `tries` times: whole or not at all.
    pub(crate) fn add(&self, stem: &str, tries: u32, uki: &[u8]) -> anyhow::Result<()> {
        let name = format!("{stem}+{tries}{SUFFIX}");
        esp::put(&self.folder, &name, uki).with_context(|| name)
    }

    fn names(&self) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        let entries = fs::read_dir(&self.folder);
        for entry in entries.with_context(|| self.folder.display().to_string())? {
            ensure!(names.len() < ENTRIES_MAX, "more than {ENTRIES_MAX} files in {FOLDER}");
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }
}

/// Whether this boot is a try of an image that was not healthy yet.
pub(crate) fn on_trial(options: &Options) -> bool {
    !Trial::of(&options.counted, &options.blessed).is_over()
}

/// Takes the counter off the entry of this boot.
pub(crate) fn bless(options: &Options) -> anyhow::Result<()> {
    let path = counted(options)?;
    let name = path.strip_prefix(&format!("{FOLDER}/"));
    let name = name.with_context(|| format!("the boot entry {path:?} is not in {FOLDER}"))?;
    let Some(Name { stem, left: Some(_) }) = Name::parse(name) else {
        bail!("the boot entry {name:?} counts no tries");
    };
    let folder = options.esp.join(FOLDER);
    let blessed = format!("{stem}{SUFFIX}");
    // A second call, after this was restarted, finds the work done.
    if !folder.join(&blessed).exists() {
        esp::rename(&folder, name, &blessed).with_context(|| name.to_owned())?;
    }
    fs::write(&options.blessed, "").with_context(|| options.blessed.display().to_string())?;
    say(&format!("the new image is healthy: {stem} is blessed"));
    Ok(())
}

/// Path of this boot's entry in the EFI system partition, as the boot manager left it: attributes (4 bytes), then
/// UTF-16; efivarfs, and systemd's "Automatic Boot Assessment".
fn counted(options: &Options) -> anyhow::Result<String> {
    let shown = options.counted.display();
    let bytes = crate::files::read_bounded(&options.counted, VARIABLE_BYTES_MAX)
        .with_context(|| shown.to_string())?;
    let text = bytes.get(4..).with_context(|| format!("{shown} is empty"))?;
    let units = text.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let units: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
    let path = String::from_utf16(&units).with_context(|| format!("{shown} is no text"))?;
    Ok(path.trim_start_matches('\\').replace('\\', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Command;

    fn esp(names: &[&str]) -> tempfile::TempDir {
        let esp = tempfile::tempdir().unwrap();
        fs::create_dir_all(esp.path().join(FOLDER)).unwrap();
        for name in names {
            fs::write(esp.path().join(FOLDER).join(name), name).unwrap();
        }
        esp
    }

    fn names(esp: &tempfile::TempDir) -> Vec<String> {
        let mut names = Entries::of(esp.path()).names().unwrap();
        names.sort_unstable();
        names
    }

    #[test]
    fn names_count_tries() {
        let name = |stem, left| Some(Name { stem, left });
        assert_eq!(Name::parse("casemate-1-ab.efi"), name("casemate-1-ab", None));
        assert_eq!(Name::parse("casemate-1-ab+3.efi"), name("casemate-1-ab", Some(3)));
        assert_eq!(Name::parse("casemate-1-ab+0-3.efi"), name("casemate-1-ab", Some(0)));
        for other in ["casemate-1-ab", "x+a.efi", "x+1-b.efi", "casemate-1+3.efi.new"] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn an_update_takes_the_place_of_every_entry_but_the_running_one() {
        let esp = esp(&["casemate-1-a.efi", "casemate-0-b.efi", "casemate-2-c+0-3.efi", "x.efi"]);
        let entries = Entries::of(esp.path());
        assert!(entries.failed("casemate-2-c").unwrap());
        assert!(!entries.failed("casemate-1-a").unwrap());
        entries.keep_only("casemate-9-z").unwrap_err();
        assert_eq!(names(&esp).len(), 4);
        entries.keep_only("casemate-1-a").unwrap();
        assert_eq!(names(&esp), ["casemate-1-a.efi", "x.efi"]);
        entries.add("casemate-3-d", 3, b"uki").unwrap();
        assert_eq!(names(&esp), ["casemate-1-a.efi", "casemate-3-d+3.efi", "x.efi"]);
    }

    #[test]
    fn the_entry_of_this_boot_is_blessed_once() {
        let esp = esp(&["casemate-2-c+2-1.efi", "casemate-1-a.efi"]);
        let (counted, blessed) = (esp.path().join("variable"), esp.path().join("blessed"));
        let options = Options {
            esp: esp.path().to_owned(),
            counted: counted.clone(),
            blessed: blessed.clone(),
            command: Command::Bless,
        };
        assert!(!on_trial(&options));
        let variable = |path: &str| {
            let units = path.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
            let bytes: Vec<u8> = [6, 0, 0, 0].into_iter().chain(units).collect();
            fs::write(&counted, bytes).unwrap();
        };
        for path in ["\\casemate-2-c+2-1.efi", "\\EFI\\Linux\\casemate-1-a.efi", ""] {
            variable(path);
            bless(&options).unwrap_err();
        }
        assert!(on_trial(&options));
        variable("\\EFI\\Linux\\casemate-2-c+2-1.efi");
        bless(&options).unwrap();
        assert_eq!(names(&esp), ["casemate-1-a.efi", "casemate-2-c.efi"]);
        assert!(!on_trial(&options));
        bless(&options).unwrap();
    }
}
