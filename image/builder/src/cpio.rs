//! Writes the initrd archive: cpio "newc", the format of the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst.
//! Invariant: the same entries give the same bytes; owner is root, inode numbers count up from 1.

use std::collections::BTreeMap;

/// Most bytes of one file, far under the format's 32-bit field.
const FILE_BYTES_MAX: usize = 1 << 30;

/// What stands at one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Folder,
    File { bytes: Vec<u8>, executable: bool },
    Link { target: String },
}

/// An archive in the making; paths are relative, without a leading slash.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    nodes: BTreeMap<String, Node>,
}

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CpioError {
    /// A file does not fit.
    #[error("{path} has {bytes} bytes, more than {FILE_BYTES_MAX}")]
    TooLong {
        /// The file.
        path: String,
        /// Its length.
        bytes: usize,
    },
}

impl Archive {
    /// Adds a node and the folders above it; a node that is there already stays.
    pub(crate) fn add(&mut self, path: &str, node: Node) {
        let above = path.match_indices('/').map(|(end, _)| &path[..end]);
        for folder in above {
            self.nodes.entry(folder.to_owned()).or_insert(Node::Folder);
        }
        self.nodes.entry(path.to_owned()).or_insert(node);
    }

    pub(crate) fn contains(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    /// The archive's bytes; every node carries `mtime_s`.
    pub(crate) fn write(&self, mtime_s: u32) -> Result<Vec<u8>, CpioError> {
        let mut out = Vec::new();
        let mut inode = 0;
        for (path, node) in &self.nodes {
            inode += 1;
            let (mode, data): (u32, &[u8]) = match node {
                Node::Folder => (0o040_755, &[]),
                Node::File { bytes, executable: true } => (0o100_755, bytes),
                Node::File { bytes, executable: false } => (0o100_644, bytes),
                Node::Link { target } => (0o120_777, target.as_bytes()),
            };
            record(&mut out, path, inode, mode, mtime_s, data)?;
        }
        record(&mut out, "TRAILER!!!", 0, 0, 0, &[])?;
        Ok(out)
    }
}

fn record(
    out: &mut Vec<u8>,
    path: &str,
    inode: u32,
    mode: u32,
    mtime_s: u32,
    data: &[u8],
) -> Result<(), CpioError> {
    let too_long = || CpioError::TooLong { path: path.to_owned(), bytes: data.len() };
    if data.len() > FILE_BYTES_MAX {
        return Err(too_long());
    }
    let bytes = u32::try_from(data.len()).map_err(|_| too_long())?;
    let path_bytes = u32::try_from(path.len() + 1).map_err(|_| too_long())?;
    let links = if mode >> 12 == 0o04 { 2 } else { 1 };
    let fields = [inode, mode, 0, 0, links, mtime_s, bytes, 0, 0, 0, 0, path_bytes, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive.add("usr/bin/a", Node::File { bytes: b"#!".to_vec(), executable: true });
        archive.add("init", Node::Link { target: "usr/bin/a".into() });
        archive
    }

    #[test]
    fn folders_above_a_file_come_first() {
        let archive = sample();
        let paths: Vec<_> = archive.nodes.keys().map(String::as_str).collect();
        assert_eq!(paths, ["init", "usr", "usr/bin", "usr/bin/a"]);
    }

    #[test]
    fn what_is_there_stays() {
        let mut archive = sample();
        archive.add("init", Node::Folder);
        assert_eq!(archive.nodes["init"], Node::Link { target: "usr/bin/a".into() });
    }

    #[test]
    fn records_are_aligned_and_the_trailer_ends_them() {
        let bytes = sample().write(7).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        let trailer = b"TRAILER!!!\0";
        assert!(bytes.windows(trailer.len()).any(|window| window == trailer));
        assert_eq!(bytes, sample().write(7).unwrap());
    }

    #[test]
    fn gnu_cpio_reads_it() {
        let Ok(mut cpio) = std::process::Command::new("cpio")
            .args(["-it", "--quiet"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
        else {
            eprintln!("skipped: no cpio here");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&sample().write(7).unwrap()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, b"init\nusr\nusr/bin\nusr/bin/a\n");
    }
}
