//! No secret lies in a key set for releases.

use std::fs;
use std::path::Path;

use super::{FILE_BYTES_MAX, KeysError, read_uri};

/// What a private key in PEM holds, whatever its kind.
const PRIVATE_PEM: &[u8] = b"PRIVATE KEY-----";
/// Deepest folder of a key set.
const DEPTH_MAX: usize = 8;

/// Refuses a folder with a private key, or with the PIN of a URI in it.
pub(super) fn refuse(folder: &Path) -> Result<(), KeysError> {
    below(folder, folder, 0)
}

fn below(folder: &Path, set: &Path, depth: usize) -> Result<(), KeysError> {
    let error = |cause| KeysError::Read { path: folder.to_owned(), cause };
    if depth > DEPTH_MAX {
        return Err(error(std::io::Error::other(format!("deeper than {DEPTH_MAX} folders"))));
    }
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let error = |cause| KeysError::Read { path: path.clone(), cause };
        // Of what a link leads to: that is what a build would read.
        let metadata = fs::metadata(&path).map_err(error)?;
        if metadata.is_dir() {
            below(&path, set, depth + 1)?;
            continue;
        }
        // What cannot be looked through does not pass unseen.
        if metadata.len() > FILE_BYTES_MAX {
            return Err(KeysError::TooLong { path, bytes: metadata.len() });
        }
        let bytes = fs::read(&path).map_err(error)?;
        if bytes.windows(PRIVATE_PEM.len()).any(|window| window == PRIVATE_PEM) {
            return Err(KeysError::Secret { path, what: "a private key" });
        }
        if path.extension().is_some_and(|extension| extension == "uri") {
            let pin = read_uri(&path)?.pin_source;
            if let Some(pin) = pin.filter(|pin| pin.starts_with(set)) {
                return Err(KeysError::Secret { path: pin, what: "the PIN of a token" });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_or_a_pin_anywhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let set = folder.path();
        fs::create_dir_all(set.join("site/old")).unwrap();
        fs::write(set.join("site/ca.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
        fs::write(set.join("db.uri"), "pkcs11:token=a?pin-source=file:/run/pin\n").unwrap();
        refuse(set).unwrap();
        for kind in ["", "RSA ", "EC ", "ENCRYPTED "] {
            let key = set.join("site/old/x.bak");
            fs::write(&key, format!("note\n-----BEGIN {kind}PRIVATE KEY-----\n")).unwrap();
            let error = refuse(set).unwrap_err().to_string();
            assert!(error.contains("x.bak is a private key"), "{error}");
            fs::remove_file(key).unwrap();
        }
        let uri = format!("pkcs11:token=a?pin-source=file:{}/pin\n", set.display());
        fs::write(set.join("db.uri"), uri).unwrap();
        let error = refuse(set).unwrap_err().to_string();
        assert!(error.contains("pin is the PIN of a token"), "{error}");
        fs::write(set.join("db.uri"), vec![b'x'; (1 << 20) + 1]).unwrap();
        assert!(matches!(refuse(set), Err(KeysError::TooLong { .. })));
    }
}
