//! Memory for direct transfers, which bypass the page cache and want addresses of their own.

/// Memory at an address that every disk accepts for direct transfers.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Buffer {
    /// Largest sector of a disk, and the size of a page.
    const ALIGN: usize = 4096;

    pub(crate) fn new(bytes: usize) -> Self {
        let memory = vec![0; bytes + Self::ALIGN];
        let start = memory.as_ptr().align_offset(Self::ALIGN).min(Self::ALIGN);
        Self { memory, start, bytes }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.bytes]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_lie_on_pages() {
        for bytes in [1, 512, 4096, 10_000] {
            let mut buffer = Buffer::new(bytes);
            assert_eq!(buffer.bytes_mut().len(), bytes);
            assert_eq!(buffer.bytes().as_ptr().align_offset(Buffer::ALIGN), 0);
        }
    }
}
