//! The kernel's configuration: what the fragments ask for, what Kconfig made of it.
//! Invariant: an option without a reason does not parse, and one that Kconfig dropped is an error, never a silence.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::Kernel;
use crate::reasoned::{self, ListError};

/// Folder of the repository with fragments and lists.
const FOLDER: &str = "kernel-config";
/// Below it, what the kernel for NVIDIA's driver has otherwise.
pub(crate) const NVIDIA_FOLDER: &str = "kernel-config/gpu-nvidia";
/// Longest resolved configuration; a distribution's has 300 KiB.
const RESOLVED_BYTES_MAX: usize = 1 << 20;
/// As many differences as an error lists.
const SHOWN_MAX: usize = 40;
const HEADER: &str = "\
# What Kconfig made of the fragments: all that is set, in its order; anything else is off. Written by
# `casemate kernel --update`; a build compares, so a changed fragment, source or compiler is seen here.
";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A fragment is wrong.
    #[error(transparent)]
    List(#[from] ListError),
    /// A file could not be read.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// There are no fragments.
    #[error("{folder} has no NN-name.config")]
    NoFragments {
        /// The folder.
        folder: PathBuf,
    },
    /// A line is no option.
    #[error("{path}: `{found}`, expected CONFIG_NAME=value")]
    Option {
        /// The file.
        path: PathBuf,
        /// The line's first word.
        found: String,
    },
    /// Two fragments ask for one option.
    #[error("{path}: {option} was asked for before in this folder; once is enough")]
    Twice {
        /// The second fragment.
        path: PathBuf,
        /// The option.
        option: String,
    },
    /// The configuration is longer than any of ours.
    #[error("{path} has {bytes} bytes, at most {RESOLVED_BYTES_MAX}")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Kconfig did not do what the fragments say.
    #[error("Kconfig did not take {} options of the fragments; a dependency is missing:\n{}", lines.len(), shown(lines))]
    Dropped {
        /// Option, asked, got.
        lines: Vec<String>,
    },
    /// The configuration opens what must stay shut.
    #[error("the kernel's configuration has what no kernel of ours may have:\n{}", shown(lines))]
    Open {
        /// Option and what it lets in.
        lines: Vec<String>,
    },
    /// The configuration is not the one that was agreed to.
    #[error(
        "the kernel's configuration is not {}:\n{}\nif this is meant, run `casemate kernel --kernel {} --update` and commit the result",
        resolved_file(*kernel),
        shown(lines),
        kernel.name()
    )]
    Changed {
        /// Which kernel's.
        kernel: Kernel,
        /// Option, expected, found.
        lines: Vec<String>,
    },
}

fn shown(lines: &[String]) -> String {
    let more = lines.len().saturating_sub(SHOWN_MAX);
    let mut text = lines.iter().take(SHOWN_MAX).map(|line| format!("  {line}")).collect::<Vec<_>>();
    if more > 0 {
        text.push(format!("  and {more} more"));
    }
    text.join("\n")
}

/// One option of a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Without `CONFIG_`.
    pub(crate) option: String,
    pub(crate) value: String,
    pub(crate) reason: String,
}

/// What Kconfig made of a kernel's fragments, as it was last agreed to.
pub(crate) fn resolved_file(kernel: Kernel) -> &'static str {
    match kernel {
        Kernel::Nvidia => "kernel-config/gpu-nvidia/resolved.config",
        Kernel::Own | Kernel::Debian => "kernel-config/resolved.config",
    }
}

/// What a kernel of ours is asked to be: kernel-config/NN-name.config in order; what stands in gpu-nvidia, too, is said
/// there for the kernel with NVIDIA's driver.
pub(crate) fn fragments(source: &Path, kernel: Kernel) -> Result<Vec<Asked>, ConfigError> {
    let mut asked = fragments_in(&source.join(FOLDER))?;
    if kernel == Kernel::Nvidia {
        let own = fragments_in(&source.join(NVIDIA_FOLDER))?;
        asked.retain(|one| own.iter().all(|other| other.option != one.option));
        asked.extend(own);
    }
    Ok(asked)
}

fn fragments_in(folder: &Path) -> Result<Vec<Asked>, ConfigError> {
    let mut asked: Vec<Asked> = Vec::new();
    for path in fragment_files(folder)? {
        for entry in reasoned::read(&path, "CONFIG_NAME=value")? {
            let word = entry.fields.concat();
            let (option, value) = option(&word)
                .ok_or_else(|| ConfigError::Option { path: path.clone(), found: word.clone() })?;
            if asked.iter().any(|before| before.option == option) {
                return Err(ConfigError::Twice { path, option: option.to_owned() });
            }
            asked.push(Asked {
                option: option.to_owned(),
                value: value.to_owned(),
                reason: entry.reason,
            });
        }
    }
    if asked.is_empty() {
        return Err(ConfigError::NoFragments { folder: folder.to_owned() });
    }
    Ok(asked)
}

fn fragment_files(folder: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let error = |cause| ConfigError::File { path: folder.to_owned(), cause };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(|first: char| first.is_ascii_digit()) && name.ends_with(".config") {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

/// `CONFIG_NAME=value`, without `CONFIG_`.
fn option(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!name.is_empty() && !value.is_empty() && name.bytes().all(is_name)).then_some((name, value))
}

/// What `make allnoconfig` reads: all that is to be set. What is to be off, is off without it.
pub(crate) fn input(asked: &[Asked]) -> String {
    let mut text = String::new();
    for Asked { option, value, .. } in asked.iter().filter(|one| one.value != "n") {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "CONFIG_{option}={value}");
    }
    text
}

/// A configuration: all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    lines: Vec<(String, String)>,
}

const MODULES: &str = "MODULES";
/// With these, no module is loaded that the key of the kernel's own build did not sign.
const SIGNED: &[&str] = &["MODULE_SIG", "MODULE_SIG_FORCE"];

/// Doors that no fragment may open, whatever else changes: option, where `*` at the end stands for any more, and what it
/// would let in. The fragments say so too; here no fragment can change it.
const SHUT: &[(&str, &str)] = &[
    (MODULES, "code that no PCR describes"),
    ("KEXEC*", "another kernel than the measured one"),
    ("HIBERNATION", "memory of the sealed machine on a disk"),
    ("SUSPEND", "a machine that wakes up and was not measured"),
    ("SWAP", "memory of the sealed machine on a disk"),
    ("PROC_KCORE", "the kernel's memory, to be read"),
    ("DEVMEM", "the machine's memory, to be read and written"),
    ("DEBUG_FS", "interfaces for debugging"),
    ("KPROBES", "code that changes while it runs"),
    ("IO_URING", "system calls past seccomp"),
    ("WIRELESS", "a network that nobody plugged in"),
    ("WLAN", "a network that nobody plugged in"),
    ("CFG80211", "a network that nobody plugged in"),
    ("MAC80211", "a network that nobody plugged in"),
    ("BT", "a radio"),
    ("NFC", "a radio"),
    ("USB_NET*", "a stick that is a network card"),
    ("USB_USBNET", "a stick that is a network card"),
    ("USB_SERIAL", "a stick that is a serial line"),
    ("USB_HID", "a stick that is a keyboard"),
];

impl Resolved {
    /// Reads a `.config`, or the file of the repository.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ConfigError::File { path: path.to_owned(), cause })?;
        Self::parse(path, &text)
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        if text.len() > RESOLVED_BYTES_MAX {
            return Err(ConfigError::TooLong { path: path.to_owned(), bytes: text.len() });
        }
        let parse = |line: &str| match option(line) {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(ConfigError::Option { path: path.to_owned(), found: line.to_owned() }),
        };
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(Self { lines: lines.map(parse).collect::<Result<_, _>>()? })
    }

    /// Text of the file in the repository.
    pub(crate) fn text(&self) -> String {
        let mut text = HEADER.to_owned();
        for (name, value) in &self.lines {
            let _infallible = writeln!(text, "CONFIG_{name}={value}");
        }
        text
    }

    pub(super) fn values(&self) -> BTreeMap<&str, &str> {
        self.lines.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// Checks that every option of the fragments really landed.
    pub(crate) fn check_asked(&self, asked: &[Asked]) -> Result<(), ConfigError> {
        let values = self.values();
        let dropped = |one: &Asked| {
            let got = values.get(one.option.as_str()).copied().unwrap_or("n");
            (got != one.value).then(|| format!("{}: asked {}, got {got}", one.option, one.value))
        };
        let lines: Vec<String> = asked.iter().filter_map(dropped).collect();
        if lines.is_empty() { Ok(()) } else { Err(ConfigError::Dropped { lines }) }
    }

    /// Checks that no door of [`SHUT`] is open. The kernel for NVIDIA's driver loads modules, but only signed ones.
    pub(crate) fn check_shut(&self, kernel: Kernel) -> Result<(), ConfigError> {
        let signed = kernel == Kernel::Nvidia
            && SIGNED.iter().all(|option| self.values().get(option) == Some(&"y"));
        let matches = |pattern: &str, option: &str| match pattern.strip_suffix('*') {
            Some(start) => option.starts_with(start),
            None => option == pattern,
        };
        let open = |(option, value): &(String, String)| {
            let (_, lets_in) = SHUT.iter().find(|(pattern, _)| matches(pattern, option))?;
            if signed && option == MODULES {
                return None;
            }
            Some(format!("{option}={value}: lets in {lets_in}"))
        };
        let lines: Vec<String> = self.lines.iter().filter_map(open).collect();
        if lines.is_empty() { Ok(()) } else { Err(ConfigError::Open { lines }) }
    }

    /// Checks that this is the configuration that was agreed to.
    pub(crate) fn check_same(&self, agreed: &Self, kernel: Kernel) -> Result<(), ConfigError> {
        let (found, expected) = (self.values(), agreed.values());
        let names: std::collections::BTreeSet<&str> =
            found.keys().chain(expected.keys()).copied().collect();
        let value = |values: &BTreeMap<&str, &str>, name: &str| -> String {
            values.get(name).copied().unwrap_or("n").to_owned()
        };
        let lines: Vec<String> = names
            .into_iter()
            .map(|name| (name, value(&expected, name), value(&found, name)))
            .filter(|(_, expected, found)| expected != found)
            .map(|(name, expected, found)| format!("{name}: expected {expected}, found {found}"))
            .collect();
        if lines.is_empty() { Ok(()) } else { Err(ConfigError::Changed { kernel, lines }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This repository.
    fn source() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    const OURS: [Kernel; 2] = [Kernel::Own, Kernel::Nvidia];

    fn resolved(kernel: Kernel) -> Resolved {
        Resolved::read(&source().join(resolved_file(kernel))).unwrap()
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(FOLDER)).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(FOLDER).join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn every_option_of_the_fragments_landed() {
        for kernel in OURS {
            resolved(kernel).check_asked(&fragments(&source(), kernel).unwrap()).unwrap();
        }
    }

    #[test]
    fn fragments_are_numbered_and_say_what_they_are_for() {
        let files = [FOLDER, NVIDIA_FOLDER].map(|folder| fragment_files(&source().join(folder)));
        for path in files.into_iter().flat_map(Result::unwrap) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let (number, rest) = name.split_at(2);
            assert!(number.parse::<u8>().is_ok() && rest.starts_with('-'), "{name}");
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("# "), "{name} does not begin with what it is for");
        }
    }

    #[test]
    fn an_option_that_kconfig_dropped_is_named() {
        let files = folder(&[
            ("10-a.config", "# a\nCONFIG_A=y # first\n"),
            ("20-b.config", "# b\nCONFIG_B=n # second\nCONFIG_C=7 # third\n"),
        ]);
        let asked = fragments(files.path(), Kernel::Own).unwrap();
        assert_eq!(input(&asked), "CONFIG_A=y\nCONFIG_C=7\n");
        let config = |text: &str| Resolved::parse(Path::new("x"), text).unwrap();
        config("# CONFIG_B is not set\nCONFIG_A=y\nCONFIG_C=7\n").check_asked(&asked).unwrap();
        let error = config("CONFIG_B=y\nCONFIG_C=7\n").check_asked(&asked).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("A: asked y, got n") && text.contains("B: asked n, got y"), "{text}");
        assert!(!text.contains("C:"), "{text}");
    }

    #[test]
    fn a_fragment_without_reason_or_name_or_with_a_second_value_is_refused() {
        let error = |first: &str, second: &str| {
            let files = folder(&[("10-a.config", first), ("20-b.config", second)]);
            fragments(files.path(), Kernel::Own).unwrap_err()
        };
        assert!(matches!(error("CONFIG_A=y\n", ""), ConfigError::List(_)));
        assert!(matches!(error("A=y # reason\n", ""), ConfigError::Option { .. }));
        assert!(matches!(error("CONFIG_A= # reason\n", ""), ConfigError::Option { .. }));
        assert!(matches!(error("CONFIG_A=y # 1\n", "CONFIG_A=n # 2\n"), ConfigError::Twice { .. }));
        assert!(matches!(error("", ""), ConfigError::NoFragments { .. }));
    }

    #[test]
    fn a_door_that_a_fragment_opens_is_named() {
        let parse = |text: &str| Resolved::parse(Path::new("x"), text).unwrap();
        let opened = "CONFIG_KEXEC_CORE=y\nCONFIG_USB_NET_CDCETHER=m\n";
        let text = format!("{}{opened}", resolved(Kernel::Own).text());
        let error = parse(&text).check_shut(Kernel::Own).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("KEXEC_CORE=y: lets in another kernel"), "{text}");
        assert!(text.contains("USB_NET_CDCETHER=m: lets in a stick"), "{text}");
        let options = ["MODULES", "HIBERNATION", "DEBUG_FS", "IO_URING", "WIRELESS", "BT", "SWAP"];
        for option in options {
            let text = format!("CONFIG_{option}=y\n");
            for kernel in OURS {
                parse(&text).check_shut(kernel).unwrap_err();
            }
        }
        // Another option that begins like one.
        let other = parse("CONFIG_BTREE=y\nCONFIG_MODULES_USE_ELF_RELA=y\n");
        other.check_shut(Kernel::Own).unwrap();
    }

    #[test]
    fn only_the_kernel_with_nvidias_driver_loads_modules_and_only_signed_ones() {
        for kernel in OURS {
            resolved(kernel).check_shut(kernel).unwrap();
        }
        let with_driver = resolved(Kernel::Nvidia);
        let error = with_driver.check_shut(Kernel::Own).unwrap_err().to_string();
        assert!(error.contains("MODULES=y: lets in code"), "{error}");
        let unsigned =
            with_driver.text().replace("CONFIG_MODULE_SIG_FORCE=y", "CONFIG_MODULE_SIG_FORCE=n");
        let unsigned = Resolved::parse(Path::new("x"), &unsigned).unwrap();
        unsigned.check_shut(Kernel::Nvidia).unwrap_err();
    }

    #[test]
    fn a_changed_configuration_is_shown_by_option() {
        let config = |text: &str| Resolved::parse(Path::new("x"), text).unwrap();
        let agreed = config("CONFIG_A=y\nCONFIG_B=1\n");
        agreed.check_same(&config(&agreed.text()), Kernel::Own).unwrap();
        let changed = config("CONFIG_A=y\nCONFIG_B=2\nCONFIG_D=y\n");
        let error = changed.check_same(&agreed, Kernel::Own).unwrap_err();
        let text = error.to_string();
        for expected in ["B: expected 1, found 2", "D: expected n, found y", "--update"] {
            assert!(text.contains(expected), "{expected:?} is not in: {text}");
        }
    }
}
