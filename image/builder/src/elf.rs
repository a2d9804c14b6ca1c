//! The libraries that a program needs, resolved inside a tree as its dynamic linker would.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use goblin::elf::Elf;

/// Debian's multiarch library folders; the dynamic linker's own search path.
const LIBRARY_FOLDERS: &[&str] = &["usr/lib/x86_64-linux-gnu", "usr/lib"];
/// The dynamic linker, named by every program's `PT_INTERP`.
const INTERPRETER: &str = "usr/lib64/ld-linux-x86-64.so.2";
/// Most files in one closure.
const CLOSURE_FILES_MAX: usize = 1000;
const MAGIC: &[u8] = b"\x7fELF";

/// Why a program could not run in the tree.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// A file could not be read.
    #[error("{path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A file is not a usable ELF object.
    #[error("{path}: {cause}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: goblin::error::Error,
    },
    /// A library is not in the tree.
    #[error(
        "{program} needs {library}, which is not in the image; \
         add the Debian package that holds it to image/config/packages.list"
    )]
    LibraryMissing {
        /// Who needs it.
        program: String,
        /// Its soname.
        library: String,
    },
    /// More files than any closure of ours has.
    #[error("more than {CLOSURE_FILES_MAX} files are needed by {program}")]
    TooMany {
        /// The program.
        program: String,
    },
}

/// Names and search folders that one ELF file asks for.
#[derive(Debug, PartialEq, Eq)]
struct Needs {
    interpreter: bool,
    libraries: Vec<String>,
    folders: Vec<String>,
}

/// Returns every file that `program` (a path relative to `tree`) loads when it starts, itself not included;
/// paths are relative to `tree` and may be symbolic links.
pub(crate) fn closure(tree: &Path, program: &str) -> Result<BTreeSet<String>, ElfError> {
    let mut found = BTreeSet::new();
    let mut queue = VecDeque::from([program.to_owned()]);
    while let Some(path) = queue.pop_front() {
        let Some(needs) = read(&tree.join(&path))? else { continue };
        if needs.interpreter && found.insert(INTERPRETER.to_owned()) {
            queue.push_back(INTERPRETER.to_owned());
        }
        for library in needs.libraries {
            // The dynamic linker goes breadth first and takes a library that is loaded already by its name.
            if found.iter().any(|path| path.rsplit('/').next() == Some(library.as_str())) {
                continue;
            }
            let resolved = resolve(tree, &library, &needs.folders).ok_or_else(|| {
                ElfError::LibraryMissing { program: path.clone(), library: library.clone() }
            })?;
            if found.insert(resolved.clone()) {
                queue.push_back(resolved);
            }
        }
        if found.len() > CLOSURE_FILES_MAX {
            return Err(ElfError::TooMany { program: program.to_owned() });
        }
    }
    Ok(found)
}

fn resolve(tree: &Path, library: &str, folders: &[String]) -> Option<String> {
    let own = folders.iter().map(String::as_str);
    own.chain(LIBRARY_FOLDERS.iter().copied())
        .map(|folder| format!("{folder}/{library}"))
        .find(|path| tree.join(path).exists())
}

/// `None` if the file is no ELF file.
fn read(path: &Path) -> Result<Option<Needs>, ElfError> {
    let bytes =
        std::fs::read(path).map_err(|cause| ElfError::Read { path: path.to_owned(), cause })?;
    if !bytes.starts_with(MAGIC) {
        return Ok(None);
    }
    let elf =
        Elf::parse(&bytes).map_err(|cause| ElfError::Parse { path: path.to_owned(), cause })?;
    let folders = elf.runpaths.iter().chain(&elf.rpaths).flat_map(|list| list.split(':'));
    Ok(Some(Needs {
        interpreter: elf.interpreter.is_some(),
        libraries: elf.libraries.iter().map(|&name| name.to_owned()).collect(),
        folders: folders.map(|folder| folder.trim_start_matches('/').to_owned()).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_needs_nothing() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("script"), "#!/bin/sh\n").unwrap();
        assert!(closure(tree.path(), "script").unwrap().is_empty());
    }

    #[test]
    fn a_library_outside_the_tree_is_missing() {
        let tree = tempfile::tempdir().unwrap();
        let test_program = std::env::current_exe().unwrap();
        std::fs::copy(test_program, tree.path().join("program")).unwrap();
        std::fs::create_dir_all(tree.path().join("usr/lib64")).unwrap();
        std::fs::write(tree.path().join(INTERPRETER), "").unwrap();
        let error = closure(tree.path(), "program").unwrap_err();
        assert!(matches!(error, ElfError::LibraryMissing { .. }), "{error}");
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("program"), b"\x7fELF\x02\x01\x01").unwrap();
        let error = closure(tree.path(), "program").unwrap_err();
        assert!(matches!(error, ElfError::Parse { .. }), "{error}");
    }
}
