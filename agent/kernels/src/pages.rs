//! Large pages for weights. A processor's prefetcher stops at the end of a page, so that one thread reads pages of 4 KiB at
//! little more than half the rate of pages of 2 MiB.

/// Bytes of a large page.
const PAGE_BYTES: usize = 2 << 20;

/// Asks the system to gather the memory of `bytes` in large pages, as far as it covers any; nothing of its content changes.
/// Takes place now, a page at a time, and needs no memory beside that page. Returns whether it was done: the
/// system may have no such pages left, or, for a mapped file, the mapping may start at no multiple of their size.
#[cfg(target_os = "linux")]
#[must_use]
pub fn gather_pages(bytes: &[u8]) -> bool {
    let start = bytes.as_ptr().addr().next_multiple_of(PAGE_BYTES);
    let end = (bytes.as_ptr().addr() + bytes.len()) / PAGE_BYTES * PAGE_BYTES;
    if start >= end {
        return false;
    }
    let first = bytes.as_ptr().with_addr(start).cast_mut().cast();
    // SAFETY: the range lies within `bytes`, which is borrowed; MADV_COLLAPSE (madvise(2), Linux 6.1) moves memory to
    // other physical pages and changes no byte of it.
    unsafe { libc::madvise(first, end - start, libc::MADV_COLLAPSE) == 0 }
}

/// Nothing of the kind is known of other systems.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn gather_pages(_: &[u8]) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathered_memory_keeps_its_content() {
        let bytes: Vec<u8> = (0..PAGE_BYTES * 3).map(|i| (i % 251).to_le_bytes()[0]).collect();
        // Whether the system has large pages is its own affair.
        println!("gathered: {}", gather_pages(&bytes));
        assert!(bytes.iter().enumerate().all(|(i, byte)| usize::from(*byte) == i % 251));
        assert!(!gather_pages(&bytes[..PAGE_BYTES - 1]));
        assert!(!gather_pages(&[]));
    }
}
