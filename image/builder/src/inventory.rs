//! What is in an image: the one source of its SBOM, its provenance and its report.
//! Invariant: everything here is read from the finished root tree and from what it was made of, so that two builds
//! of the same inputs have the same inventory.

mod crates;
mod licences;
mod packages;
mod system;

use std::path::{Path, PathBuf};

use crate::bootstrap::Bootstrap;
use crate::kernel::config::{self, ConfigError};
use crate::kernel::{Kernel, nvidia};
use crate::lock::{Lock, LockError, Target};
use crate::reasoned::{self, ListError};
use crate::tool::ToolError;

pub(crate) use crates::Crate;
pub(crate) use licences::{Licence, expression};
pub(crate) use packages::DebianPackage;
pub(crate) use system::{Program, Unit, User};

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The kernel's fragments are wrong.
    #[error(transparent)]
    Kernel(#[from] ConfigError),
    /// A configuration list is wrong.
    #[error(transparent)]
    List(#[from] ListError),
    /// The lock is wrong.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A tool's answer is not what it should be.
    #[error("{tool} answered {found:?}; expected {expected}")]
    Answer {
        /// The tool.
        tool: &'static str,
        /// What it said, cut short.
        found: String,
        /// What it should have.
        expected: &'static str,
    },
    /// A file could not be read.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Packages or crates of which nobody says under which licence they are.
    #[error("no licence is known, see {}:\n  {}", licences::LIST, unlicensed.join("\n  "))]
    Licences {
        /// Each with what is missing.
        unlicensed: Vec<String>,
    },
    /// A folder is nested too deep.
    #[error("{path} is deeper than {} folders", system::DEPTH_MAX)]
    TooDeep {
        /// The folder.
        path: PathBuf,
    },
}

type Result<T> = std::result::Result<T, InventoryError>;

/// An entry of a configuration list, and why it is there.
#[derive(Clone, Debug)]
pub(crate) struct Reasoned {
    pub(crate) entry: String,
    pub(crate) reason: String,
}

/// What is in an image.
#[derive(Debug)]
pub(crate) struct Inventory {
    /// Debian packages of which a file is in the image, by name.
    pub(crate) packages: Vec<DebianPackage>,
    /// Crates in the agent's programs, by name.
    pub(crate) crates: Vec<Crate>,
    /// Files in PATH and the agent's programs.
    pub(crate) programs: Vec<Program>,
    /// Services, by name.
    pub(crate) units: Vec<Unit>,
    /// `ListenStream=` and the like that are no paths: what the network reaches.
    pub(crate) ports: Vec<String>,
    /// set-user-ID and set-group-ID files.
    pub(crate) setid: Vec<String>,
    pub(crate) users: Vec<User>,
    /// Words of the kernel command line.
    pub(crate) kernel_options: Vec<Reasoned>,
    /// What the fragments of our own kernel ask for; empty where the kernel is Debian's.
    pub(crate) kernel_config: Vec<Reasoned>,
    /// Kernel modules that are named; their dependencies follow.
    pub(crate) modules: Vec<Reasoned>,
    /// Bytes of all files of the root tree.
    pub(crate) root_bytes: u64,
}

impl Inventory {
    /// Programs that a name alone finds; the agent's are not among them.
    pub(crate) fn programs_in_path(&self) -> usize {
        crate::size::in_path(self.programs.iter().map(|program| program.path.as_str()))
    }
}

/// What an inventory is made from.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) bootstrap: &'a Bootstrap,
    /// The finished root tree.
    pub(crate) tree: &'a Path,
    /// Repository with image/config, kernel-config and systemd.
    pub(crate) source: &'a Path,
    /// Whether the agent is in the tree.
    pub(crate) agent: bool,
    pub(crate) logs: &'a Path,
}

impl Inputs<'_> {
    /// Looks at everything once.
    pub(crate) fn inventory(&self) -> Result<Inventory> {
        let lock = Lock::read(self.source, Target::Image)?;
        let files = system::walk(self.tree)?;
        let kernel = self.bootstrap.kernel_kind;
        // What our own kernels need themselves is built in.
        let modules = match kernel {
            Kernel::Debian => self.reasons("kernel-config/modules.list", "module stage")?,
            Kernel::Own => Vec::new(),
            Kernel::Nvidia => self.reasons(nvidia::MODULES_FILE, "module stage")?,
        };
        Ok(Inventory {
            packages: packages::read(self, &lock, &files)?,
            crates: if self.agent { crates::read(self.source, self.logs)? } else { Vec::new() },
            programs: system::programs(&files),
            units: system::units(self.tree, self.logs)?,
            ports: system::ports(self.tree)?,
            setid: system::setid(&files),
            users: system::users(&read_text(&self.tree.join("etc/passwd"))?),
            kernel_options: self.reasons("kernel-config/cmdline", "word")?,
            kernel_config: match kernel {
                Kernel::Debian => Vec::new(),
                Kernel::Own | Kernel::Nvidia => kernel_config(self.source, kernel)?,
            },
            modules,
            root_bytes: files.iter().map(|file| file.bytes).sum(),
        })
    }

    fn reasons(&self, list: &str, meaning: &'static str) -> Result<Vec<Reasoned>> {
        let entries = reasoned::read(&self.source.join(list), meaning)?;
        let reasoned = |entry: reasoned::Entry| Reasoned {
            entry: entry.fields.first().cloned().unwrap_or_default(),
            reason: entry.reason,
        };
        Ok(entries.into_iter().map(reasoned).collect())
    }
}

fn kernel_config(source: &Path, kernel: Kernel) -> Result<Vec<Reasoned>> {
    let reasoned = |one: config::Asked| Reasoned {
        entry: format!("CONFIG_{}={}", one.option, one.value),
        reason: one.reason,
    };
    Ok(config::fragments(source, kernel)?.into_iter().map(reasoned).collect())
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|cause| InventoryError::File { path: path.to_owned(), cause })
}
