//! The one program of the installer stick; see `flash::install`.

use std::process::ExitCode;

fn main() -> ExitCode {
    if flash::install::run() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
