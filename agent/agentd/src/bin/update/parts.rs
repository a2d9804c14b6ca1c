//! A partition is written, and then read back from the disk itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, ensure};
use evidence::update::Part;
use rustix::fs::{Advice, FallocateFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::sets::Target;

const CHUNK_BYTES: usize = 1 << 20;

/// Writes a part and zeros behind it, and reads back what the disk holds then.
pub(crate) fn write(target: &Target, mut from: File, part: &Part) -> anyhow::Result<()> {
    let bytes = target.partition.bytes;
    ensure!(
        part.bytes <= bytes,
        "the part has {} bytes, its partition {bytes}; this update is for other disks",
        part.bytes
    );
    let shown = target.node.display();
    let open = OpenOptions::new().read(true).write(true).open(&target.node);
    let device = open.with_context(|| shown.to_string())?;
    let found = copy(&mut from, part.bytes, |chunk, at| device.write_all_at(chunk, at))
        .with_context(|| format!("writing {shown}"))?;
    ensure!(found == part.sha256, "the medium holds another part than was signed");
    zero(&device, part.bytes, bytes).with_context(|| format!("zeroing the end of {shown}"))?;
    device.sync_all().with_context(|| shown.to_string())?;
    // What is read next comes from the disk, not from memory.
    rustix::fs::fadvise(&device, 0, None, Advice::DontNeed)?;
    check(&device, bytes, part).with_context(|| format!("reading {shown} back"))
}

/// Zeros from byte `at` to `end`; disks have a short way for it, some file systems have none.
fn zero(device: &File, mut at: u64, end: u64) -> io::Result<()> {
    if at == end {
        return Ok(());
    }
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(device, flags, at, end - at) {
        Err(Errno::OPNOTSUPP) => {}
        done => return Ok(done?),
    }
    let zeros = vec![0; CHUNK_BYTES];
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        device.write_all_at(&zeros[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

/// Compares what is there with the part and the zeros behind it.
fn check(device: &File, bytes: u64, part: &Part) -> anyhow::Result<()> {
    let mut reader = device.try_clone()?;
    io::Seek::rewind(&mut reader)?;
    let found = copy(&mut reader, part.bytes, |_, _| Ok(()))?;
    ensure!(found == part.sha256, "it holds {found}; {} was written", part.sha256);
    let mut zeros = true;
    copy(&mut reader, bytes - part.bytes, |chunk, _| {
        zeros &= chunk.iter().all(|&byte| byte == 0);
        Ok(())
    })?;
    ensure!(zeros, "its end is not zero");
    Ok(())
}

/// Hands over exactly `bytes`, each chunk with its place; returns their SHA-256, hex.
fn copy(
    from: &mut impl Read,
    bytes: u64,
    mut then: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<String> {
    let (mut hash, mut chunk, mut at) = (Sha256::new(), vec![0; CHUNK_BYTES], 0);
    while at < bytes {
        let length = usize::try_from(bytes - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let chunk = chunk.get_mut(..length).unwrap_or_default();
        from.read_exact(chunk)?;
        hash.update(&*chunk);
        then(chunk, at)?;
        at += length as u64;
    }
    Ok(hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discoverable::ROOT;
    use crate::gpt::Partition;

    fn part(content: &[u8]) -> Part {
        Part { bytes: content.len() as u64, sha256: hex::encode(Sha256::digest(content)) }
    }

    #[test]
    fn a_part_is_written_with_zeros_behind_it_and_a_false_one_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (node, medium) = (folder.path().join("node"), folder.path().join("medium"));
        std::fs::write(&node, vec![0xff; 3 * CHUNK_BYTES]).unwrap();
        let mut content = vec![7; CHUNK_BYTES + 4096];
        content[0] = 1;
        std::fs::write(&medium, &content).unwrap();
        let bytes = 3 * CHUNK_BYTES as u64;
        let (identifier, name) = ([0; 16], [0; 72]);
        let partition = Partition { number: 1, kind: ROOT, identifier, start: 0, bytes, name };
        let target = Target { partition, node: node.clone() };
        let open = || File::open(&medium).unwrap();
        write(&target, open(), &part(&content)).unwrap();
        let found = std::fs::read(&node).unwrap();
        assert_eq!(found[..content.len()], content);
        assert!(found[content.len()..].iter().all(|&byte| byte == 0));

        let error = write(&target, open(), &part(&content[1..])).unwrap_err();
        assert_eq!(error.to_string(), "the medium holds another part than was signed");
        write(&target, open(), &Part { bytes: content.len() as u64 + 1, ..part(&content) })
            .unwrap_err();
        let long = Part { bytes: bytes + 1, ..part(&content) };
        let error = write(&target, open(), &long).unwrap_err();
        assert!(error.to_string().contains("for other disks"), "{error}");
    }

    #[test]
    fn what_the_disk_lost_is_seen() {
        let content = vec![7; 8192];
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&content, 0).unwrap();
        file.set_len(16384).unwrap();
        check(&file, 16384, &part(&content)).unwrap();
        file.write_all_at(&[1], 16383).unwrap();
        check(&file, 16384, &part(&content)).unwrap_err();
        file.write_all_at(&[0], 16383).unwrap();
        file.write_all_at(&[0], 100).unwrap();
        check(&file, 16384, &part(&content)).unwrap_err();
    }
}
