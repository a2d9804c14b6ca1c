//! Where a PIN comes from: a file that others cannot read, or somebody at the terminal.

use std::fs;
use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _, stderr, stdin};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use cryptoki::types::AuthPin;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::{PIN_BYTES_MAX, Pkcs11Error, Uri};

/// "Other" may neither read nor write a PIN file.
const MODE_OTHER: u32 = 0o007;

/// Room for the longest PIN and one byte more, so that reading moves none of it to and fro in memory.
const CAPACITY: usize = 320;

/// A PIN; [`AuthPin`] wipes it when it is dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    pub(crate) value: AuthPin,
    /// For errors: its file, or the terminal.
    pub(crate) from: String,
}

/// The PIN in the file that `uri` names.
pub(crate) fn from_file(uri: &Uri) -> Result<Option<Pin>, Pkcs11Error> {
    let Some(path) = &uri.pin_source else { return Ok(None) };
    let failed = |reason: String| Pkcs11Error::PinFile { path: PathBuf::from(path), reason };
    let file = fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let metadata = file.metadata().map_err(|error| failed(error.to_string()))?;
    if !metadata.is_file() || metadata.mode() & MODE_OTHER != 0 {
        let mode = metadata.mode() & 0o7777;
        return Err(failed(format!(
            "mode {mode:o}; expected a file that others cannot read (600)"
        )));
    }
    let mut text = String::with_capacity(CAPACITY);
    file.take(PIN_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| failed(error.to_string()))?;
    let value = parse(text).map_err(failed)?;
    Ok(Some(Pin { value, from: path.display().to_string() }))
}

/// Asks at the terminal, without echo; `None` if standard input is none.
pub(crate) fn from_terminal(token: &str) -> Result<Option<Pin>, Pkcs11Error> {
    if !stdin().is_terminal() {
        return Ok(None);
    }
    let mut text = String::with_capacity(CAPACITY);
    {
        let _silent = Silent::start().map_err(Pkcs11Error::Prompt)?;
        eprint!("PIN of token {token:?}: ");
        stderr().flush().map_err(Pkcs11Error::Prompt)?;
        stdin().lock().take(PIN_BYTES_MAX + 1).read_line(&mut text).map_err(Pkcs11Error::Prompt)?;
    }
    eprintln!();
    let value = parse(text).map_err(|reason| Pkcs11Error::Prompt(std::io::Error::other(reason)))?;
    Ok(Some(Pin { value, from: "the terminal".to_owned() }))
}

fn parse(mut text: String) -> Result<AuthPin, String> {
    let bytes = text.len() as u64;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() || bytes > PIN_BYTES_MAX {
        return Err(format!("expected a PIN of 1 to {PIN_BYTES_MAX} bytes"));
    }
    Ok(AuthPin::new(text.into()))
}

/// A terminal that echoes nothing but newlines until this is dropped. An interrupt ends the process before: the
/// shell sets its terminal right then.
struct Silent(Termios);

impl Silent {
    fn start() -> std::io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(stdin(), OptionalActions::Flush, &self.0) {
            eprintln!("the terminal stays without echo ({error}); type: stty echo");
        }
    }
}
