//! How much an image is, by a measure that hangs on no file system.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// File systems and disks map in blocks of this.
const BLOCK_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 1 << 20;
/// The directories of PATH, as systemd gives it to services.
const PATH_FOLDERS: &[&str] = &["usr/bin/", "usr/sbin/"];

/// Bytes of a disk image's blocks that are not all zeros: what a medium must carry of it.
pub(crate) fn content_bytes(disk: &Path) -> io::Result<u64> {
    let (mut file, mut chunk) = (File::open(disk)?, vec![0; CHUNK_BYTES]);
    let mut blocks = 0;
    loop {
        let filled = fill(&mut file, &mut chunk)?;
        let is_data = |block: &&[u8]| block.iter().any(|&byte| byte != 0);
        blocks += chunk[..filled].chunks(BLOCK_BYTES).filter(is_data).count() as u64;
        if filled < CHUNK_BYTES {
            return Ok(blocks * BLOCK_BYTES as u64);
        }
    }
}

/// How many of `programs` a command line finds by name.
pub(crate) fn in_path<'a>(programs: impl Iterator<Item = &'a str>) -> usize {
    programs.filter(|path| PATH_FOLDERS.iter().any(|folder| path.starts_with(folder))).count()
}

/// Reads until `chunk` is full or the file ends.
fn fill(file: &mut File, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match file.read(&mut chunk[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn only_blocks_with_content_count_wherever_they_lie() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = file.as_file();
        disk.set_len(3 << 20).unwrap();
        assert_eq!(content_bytes(file.path()).unwrap(), 0);
        // Written zeros are not content; one byte is a block, and the last, short one, too.
        disk.write_all_at(&[0; 8192], 1 << 20).unwrap();
        disk.write_all_at(&[1], (2 << 20) + 5000).unwrap();
        disk.write_all_at(&[1], 3 << 20).unwrap();
        assert_eq!(content_bytes(file.path()).unwrap(), 8192);
    }

    #[test]
    fn the_agent_s_programs_are_in_no_path() {
        let programs = ["usr/bin/mount", "usr/sbin/nft", "usr/lib/casemate/bin/agentd"];
        assert_eq!(in_path(programs.into_iter()), 2);
    }
}
