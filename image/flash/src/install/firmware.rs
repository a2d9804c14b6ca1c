//! The machine's Secure Boot variables, by efivarfs; UEFI Specification 2.10, sections 3.3 and 32.
//! Invariant: firmware that holds another owner's keys is never written; PK goes last, since with it setup mode ends.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::IFlags;

/// EFI_GLOBAL_VARIABLE.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// EFI_IMAGE_SECURITY_DATABASE_GUID.
const SECURITY: &str = "d719b2cb-3d3a-4596-a3bc-dad00e67656f";
/// In the order in which they are enrolled, each with its vendor.
const VARIABLES: &[(&str, &str)] =
    &[("db", SECURITY), ("dbx", SECURITY), ("KEK", GLOBAL), ("PK", GLOBAL)];
/// NON_VOLATILE, BOOTSERVICE_ACCESS, RUNTIME_ACCESS, TIME_BASED_AUTHENTICATED_WRITE_ACCESS.
const ATTRIBUTES: u32 = 0x27;
/// efivarfs puts the attributes before the content.
const ATTRIBUTES_BYTES: usize = 4;
/// Longest variable, and longest change of one.
const VARIABLE_BYTES_MAX: u64 = 1 << 20;

/// What firmware does about signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// No platform key: the next one that is written is taken.
    Setup,
    /// The owner's keys, enforced.
    Ours,
}

/// Why firmware cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FirmwareError {
    /// A variable or a file of the stick.
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    /// No UEFI, or a strange one.
    #[error(
        "firmware says {found:?} for {name}; expected 0 or 1. The machine must start the stick by UEFI"
    )]
    Value { name: &'static str, found: Option<u8> },
    /// Secure Boot with other keys, or none enforced.
    #[error(
        "firmware has a platform key, and {what}; nothing was written. In the firmware's setup, clear the Secure Boot \
         keys (setup mode), then start the stick again"
    )]
    NotOurs { what: String },
    /// Firmware did not keep a key.
    #[error(
        "firmware does not hold {name} as it was written; clear its Secure Boot keys and start again"
    )]
    NotKept { name: &'static str },
}

type Result<T> = std::result::Result<T, FirmwareError>;

/// The firmware, and the keys for it.
#[derive(Debug)]
pub(super) struct Firmware {
    efivars: PathBuf,
    /// `PK.auth`, `PK.esl` and so on.
    keys: PathBuf,
}

impl Firmware {
    pub(super) fn new(efivars: PathBuf, keys: PathBuf) -> Self {
        Self { efivars, keys }
    }

    /// Whether the owner's keys are to be enrolled or there already; anything else is an error.
    pub(super) fn state(&self) -> Result<State> {
        if self.flag("SetupMode")? {
            return Ok(State::Setup);
        }
        if !self.flag("SecureBoot")? {
            let what = "does not enforce Secure Boot".to_owned();
            return Err(FirmwareError::NotOurs { what });
        }
        // dbx grows by updates of its own.
        for &(name, vendor) in VARIABLES.iter().filter(|(name, _)| *name != "dbx") {
            if self.read(name, vendor)?.as_deref() != Some(&self.list(name)?) {
                let what = format!("its {name} is not this owner's");
                return Err(FirmwareError::NotOurs { what });
            }
        }
        Ok(State::Ours)
    }

    /// Writes the owner's keys, and sees that firmware holds them and has left setup mode.
    pub(super) fn enrol(&self) -> Result<()> {
        for &(name, vendor) in VARIABLES {
            let change = file(&self.keys.join(format!("{name}.auth")))?;
            self.write(name, vendor, &change)?;
        }
        for &(name, vendor) in VARIABLES {
            if self.read(name, vendor)?.as_deref() != Some(&self.list(name)?) {
                return Err(FirmwareError::NotKept { name });
            }
        }
        if self.flag("SetupMode")? {
            return Err(FirmwareError::NotKept { name: "SetupMode" });
        }
        Ok(())
    }

    fn list(&self, name: &str) -> Result<Vec<u8>> {
        file(&self.keys.join(format!("{name}.esl")))
    }

    fn flag(&self, name: &'static str) -> Result<bool> {
        match self.read(name, GLOBAL)?.as_deref() {
            Some([0]) => Ok(false),
            Some([1]) => Ok(true),
            other => {
                let found = other.and_then(|bytes| bytes.first().copied());
                Err(FirmwareError::Value { name, found })
            }
        }
    }

    fn path(&self, name: &str, vendor: &str) -> PathBuf {
        self.efivars.join(format!("{name}-{vendor}"))
    }

    /// The content of a variable, if firmware has it.
    fn read(&self, name: &str, vendor: &str) -> Result<Option<Vec<u8>>> {
        match file(&self.path(name, vendor)) {
            Ok(bytes) => Ok(bytes.get(ATTRIBUTES_BYTES..).map(<[u8]>::to_vec)),
            Err(FirmwareError::File { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn write(&self, name: &str, vendor: &str, change: &[u8]) -> Result<()> {
        let path = self.path(name, vendor);
        let error = |cause| FirmwareError::File { path: path.clone(), cause };
        if path.exists() {
            mutable(&path).map_err(error)?;
        }
        // One write is one SetVariable().
        let bytes = [&ATTRIBUTES.to_le_bytes(), change].concat();
        let mut file =
            File::options().write(true).create(true).truncate(false).open(&path).map_err(error)?;
        let written = file.write(&bytes).map_err(error)?;
        if written != bytes.len() {
            return Err(error(io::ErrorKind::WriteZero.into()));
        }
        Ok(())
    }
}

/// efivarfs protects variables from an `rm -r`; Documentation/filesystems/efivarfs.rst.
fn mutable(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let flags = match rustix::fs::ioctl_getflags(&file) {
        Ok(flags) => flags,
        // Another file system, in a test.
        Err(rustix::io::Errno::NOTTY | rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if flags.contains(IFlags::IMMUTABLE) {
        rustix::fs::ioctl_setflags(&file, flags - IFlags::IMMUTABLE)?;
    }
    Ok(())
}

fn file(path: &Path) -> Result<Vec<u8>> {
    let error = |cause| FirmwareError::File { path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(error)?;
    file.take(VARIABLE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > VARIABLE_BYTES_MAX {
        return Err(error(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> (Self, Firmware) {
            let machine = Self(tempfile::tempdir().unwrap());
            let (efivars, keys) = (machine.0.path().join("efivars"), machine.0.path().join("keys"));
            fs::create_dir(&efivars).unwrap();
            fs::create_dir(&keys).unwrap();
            for (name, _) in VARIABLES {
                fs::write(keys.join(format!("{name}.esl")), name).unwrap();
                // Not a real change: here nobody strips a signature.
                fs::write(keys.join(format!("{name}.auth")), name).unwrap();
            }
            (machine, Firmware::new(efivars, keys))
        }

        fn set(&self, name: &str, vendor: &str, content: &[u8]) {
            let path = self.0.path().join(format!("efivars/{name}-{vendor}"));
            fs::write(path, [&[7, 0, 0, 0], content].concat()).unwrap();
        }

        fn flags(&self, setup: u8, secure: u8) {
            self.set("SetupMode", GLOBAL, &[setup]);
            self.set("SecureBoot", GLOBAL, &[secure]);
        }
    }

    #[test]
    fn setup_mode_and_our_own_keys_are_taken_and_nothing_else() {
        let (machine, firmware) = Machine::new();
        let refused = || firmware.state().unwrap_err().to_string();
        assert!(refused().contains("must start the stick by UEFI"), "no variables at all");
        machine.flags(1, 0);
        assert_eq!(firmware.state().unwrap(), State::Setup);
        machine.flags(0, 0);
        assert!(refused().contains("does not enforce"));
        machine.flags(0, 1);
        assert!(refused().contains("its db is not this owner's"));
        for &(name, vendor) in VARIABLES {
            machine.set(name, vendor, name.as_bytes());
        }
        machine.set("dbx", SECURITY, b"dbx and more");
        assert_eq!(firmware.state().unwrap(), State::Ours);
        machine.set("PK", GLOBAL, b"theirs");
        assert!(refused().contains("its PK is not this owner's"));
        machine.flags(2, 1);
        assert!(refused().contains("Some(2) for"));
    }

    #[test]
    fn enrolment_is_seen_to_hold() {
        let (machine, firmware) = Machine::new();
        machine.flags(1, 0);
        // This firmware stays in setup mode.
        let error = firmware.enrol().unwrap_err();
        assert!(matches!(error, FirmwareError::NotKept { name: "SetupMode" }), "{error}");
        machine.flags(0, 1);
        firmware.enrol().unwrap();
        let written = fs::read(firmware.path("PK", GLOBAL)).unwrap();
        assert_eq!(written, b"\x27\0\0\0PK");
        // This one keeps something else.
        fs::write(machine.0.path().join("keys/KEK.auth"), "other").unwrap();
        let error = firmware.enrol().unwrap_err();
        assert!(matches!(error, FirmwareError::NotKept { name: "KEK" }), "{error}");
    }
}
