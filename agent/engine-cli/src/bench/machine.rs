//! What the machine has to give: the rate at which it reads, and the memory that the process took.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result};
use engine::gguf::Gguf;

/// Bytes that are read at a time, as often as it takes: more than any processor caches.
const READ_BYTES_MIN: usize = 1 << 30;
/// The fastest of so many counts.
const READS: usize = 3;

/// Bytes per second that `threads` threads read of `file` together, each its own part of it.
pub(super) fn read_rate(file: &[u8], threads: usize) -> f64 {
    let passes = READ_BYTES_MIN.div_ceil(file.len().max(1));
    let read_all = || {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for part in file.chunks(file.len().div_ceil(threads).max(1)) {
                scope.spawn(move || (0..passes).for_each(|_| read(part)));
            }
        });
        (passes * file.len()) as f64 / begin.elapsed().as_secs_f64()
    };
    (0..READS).map(|_| read_all()).fold(0.0, f64::max)
}

fn read(bytes: &[u8]) {
    let mut sums = [0_u64; 16];
    for chunk in bytes.as_chunks::<128>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    black_box(sums);
}

/// Bytes of weights that a step of one token reads: all but the embeddings, unless they are the output too.
pub(super) fn step_bytes(file: &[u8]) -> Result<usize> {
    let gguf = Gguf::parse(file)?;
    let tensors = gguf.tensors();
    let own_output = tensors.contains_key("output.weight");
    let read = tensors.iter().filter(|(name, _)| !own_output || **name != "token_embd.weight");
    Ok(read.map(|(_, tensor)| tensor.extent.len()).sum())
}

/// Most memory that this process ever had at once (proc(5), `/proc/pid/status`).
pub(super) fn peak_bytes() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.map(|kib| kib << 10).context("/proc/self/status has no VmHWM")
}
