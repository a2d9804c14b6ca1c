//! Exceptions on media: read, judged by the quorum, and waited for when nothing else helps.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use evidence::bundle::Quorum;
use evidence::exception::{ExceptionError, Granted};

use crate::journal::say;
use crate::medium::{Medium, MediumError};

/// How often the medium is looked for.
const TICK: Duration = Duration::from_secs(1);

/// Why a medium's exception is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MediumExceptionError {
    /// The medium.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// No quorum, or no exception.
    #[error(transparent)]
    Exception(#[from] ExceptionError),
}

/// Judges the exception on `medium`, if there is one.
pub(crate) fn read(
    medium: &Medium,
    quorum: &Quorum,
) -> Result<Option<Granted>, MediumExceptionError> {
    let Some(files) = medium.exception()? else { return Ok(None) };
    Ok(Some(Granted::admit(quorum, &files.text, &files.signatures)?))
}

/// Waits until a medium in `folder` has an exception that `fits`; what else it has is said once.
pub(crate) fn wait<E: std::fmt::Display>(
    folder: &Path,
    quorum: &Quorum,
    longest: Duration,
    fits: impl Fn(&Granted) -> Result<(), E>,
) -> Option<Granted> {
    let deadline = Instant::now() + longest;
    let mut said = String::new();
    loop {
        let trouble = match find(folder, quorum) {
            Ok(None) => None,
            Ok(Some(granted)) => match fits(&granted) {
                Ok(()) => return Some(granted),
                Err(error) => Some(error.to_string()),
            },
            Err(error) => Some(error.to_string()),
        };
        if let Some(trouble) = trouble.filter(|trouble| *trouble != said) {
            say(&format!("exception refused: {trouble}"));
            said = trouble;
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(TICK);
    }
}

fn find(folder: &Path, quorum: &Quorum) -> Result<Option<Granted>, MediumExceptionError> {
    match Medium::find(folder)? {
        Some(medium) => read(&medium, quorum),
        None => Ok(None),
    }
}
