//! Was this boot measured? The event logs, and the registers that a measured boot has written.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// Longest firmware event log; real ones have some hundred kilobytes at most.
pub(crate) const FIRMWARE_LOG_BYTES_MAX: usize = 2 << 20;
/// Longest userspace event log.
pub(crate) const USERSPACE_LOG_BYTES_MAX: usize = 1 << 20;
/// Registers that every boot of a signed image writes: Secure Boot state (7), and the UKI by its stub (11).
const MEASURED: [u8; 2] = [7, 11];

/// Bytes of one read.
const CHUNK_BYTES: usize = 64 << 10;

/// The event logs, opened by systemd before it dropped the privileges to do so.
#[derive(Debug)]
pub(crate) struct EventLogs {
    firmware: File,
    userspace: File,
}

/// Why a boot counts as not measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A log cannot be read.
    #[error("cannot read the {log} event log: {cause}")]
    Read { log: &'static str, cause: std::io::Error },
    /// A log has no events.
    #[error("the {log} event log is empty: this boot was not measured; is the TPM enabled?")]
    Empty { log: &'static str },
    /// A log is longer than any real one.
    #[error("the {log} event log has more than {max} bytes")]
    TooLong { log: &'static str, max: usize },
    /// A register was never extended.
    #[error("PCR {pcr} is all zero: this boot was not measured; is the SHA-256 bank enabled?")]
    Unmeasured { pcr: u8 },
}

impl EventLogs {
    /// Takes the inherited descriptors.
    pub(crate) fn new(firmware: OwnedFd, userspace: OwnedFd) -> Self {
        Self { firmware: firmware.into(), userspace: userspace.into() }
    }

    /// The firmware's log as it is now.
    pub(crate) fn firmware(&self) -> Result<Vec<u8>, BootError> {
        read("firmware", &self.firmware, FIRMWARE_LOG_BYTES_MAX)
    }

    /// systemd's log as it is now.
    pub(crate) fn userspace(&self) -> Result<Vec<u8>, BootError> {
        read("userspace", &self.userspace, USERSPACE_LOG_BYTES_MAX)
    }
}

/// Refuses a boot whose registers were never written.
pub(crate) fn check_measured(pcrs: &tpm::Pcrs) -> Result<(), BootError> {
    for pcr in MEASURED {
        if pcrs[usize::from(pcr)] == [0; 32] {
            return Err(BootError::Unmeasured { pcr });
        }
    }
    Ok(())
}

/// Reads to the end from offset 0: files of securityfs have no size and no shared position is disturbed.
fn read(log: &'static str, file: &File, max: usize) -> Result<Vec<u8>, BootError> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let offset = bytes.len() as u64;
        let count =
            file.read_at(&mut chunk, offset).map_err(|cause| BootError::Read { log, cause })?;
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&chunk[..count]);
        if bytes.len() > max {
            return Err(BootError::TooLong { log, max });
        }
    }
    if bytes.is_empty() { Err(BootError::Empty { log }) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    #[test]
    fn a_log_is_read_from_its_start_every_time() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        file.seek(std::io::SeekFrom::End(0)).unwrap();
        for _ in 0..2 {
            assert_eq!(read("firmware", &file, 100_000).unwrap(), [7; 100_000]);
        }
    }

    #[test]
    fn an_empty_log_and_an_endless_one_are_refused() {
        let open = |path| File::open(path).unwrap();
        assert!(matches!(read("firmware", &open("/dev/null"), 9), Err(BootError::Empty { .. })));
        let error = read("firmware", &open("/dev/zero"), 100_000).unwrap_err();
        assert!(matches!(error, BootError::TooLong { max: 100_000, .. }), "{error}");
    }

    #[test]
    fn each_register_that_a_measured_boot_writes_is_needed() {
        let mut pcrs = [[0; 32]; tpm::PCRS];
        assert!(matches!(check_measured(&pcrs), Err(BootError::Unmeasured { pcr: 7 })));
        pcrs[7] = [1; 32];
        assert!(matches!(check_measured(&pcrs), Err(BootError::Unmeasured { pcr: 11 })));
        pcrs[11] = [1; 32];
        check_measured(&pcrs).unwrap();
    }
}
