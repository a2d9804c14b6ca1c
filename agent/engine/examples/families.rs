//! `families FOLDER`: the tiny models of every architecture as FOLDER/CASE.gguf, for a comparison of another engine with
//! `tests/golden/CASE.f32`.
#![allow(clippy::unwrap_used, reason = "the tests' writer of files may panic")]

use std::error::Error;
use std::path::PathBuf;

#[path = "../tests/synthetic/mod.rs"]
mod synthetic;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).map(PathBuf::from).ok_or("usage: families FOLDER")?;
    for case in synthetic::families::CASES {
        let mut file = synthetic::families::golden(case);
        // The tokens are names without a meaning.
        file.text("tokenizer.ggml.model", "none");
        let path = folder.join(format!("{case}.gguf"));
        std::fs::write(&path, file.build())
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
