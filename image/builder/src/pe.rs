//! Reads PE images as firmware does: sections, and the Authenticode digest that Secure Boot checks and PCR 4 holds.
//! Windows Authenticode Portable Executable Signature Format, "Calculating the PE Image Hash".
//! Invariant: no offset of the file is used before it was checked against the file's length.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

/// Most sections of an image; the format allows 96.
const SECTIONS_MAX: usize = 96;
const SECTION_HEADER_BYTES: usize = 40;
const MAGIC_PE32_PLUS: u16 = 0x20b;
/// Offsets within a PE32+ optional header.
const SIZE_OF_HEADERS: usize = 60;
const CHECKSUM: usize = 64;
const DIRECTORIES: usize = 112;
/// Index of the certificate table among the data directories.
const CERTIFICATE_TABLE: usize = 4;

/// Why bytes are no PE image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeError {
    /// The image ends before what it should hold.
    #[error("PE image of {length} bytes: {what} at {offset}, {bytes} bytes, is outside")]
    Outside {
        /// What was looked for.
        what: &'static str,
        /// Where.
        offset: usize,
        /// How long.
        bytes: usize,
        /// Length of the image.
        length: usize,
    },
    /// A number that marks the format has another value.
    #[error("PE image: {what} is {found:#x}, expected {expected:#x}")]
    Magic {
        /// Which number.
        what: &'static str,
        /// Its value.
        found: u32,
        /// What it should be.
        expected: u32,
    },
    /// More sections than the format allows.
    #[error("PE image: {found} sections, at most {SECTIONS_MAX}")]
    Sections {
        /// How many.
        found: usize,
    },
    /// The certificate table is not at the end of the file.
    #[error("PE image: certificate table ends at {end}, the file at {length}")]
    Certificates {
        /// End of the table.
        end: usize,
        /// End of the file.
        length: usize,
    },
}

/// A PE32+ image.
#[derive(Clone, Debug)]
pub struct Pe<'a> {
    bytes: &'a [u8],
    checksum: Range<usize>,
    certificate_directory: Range<usize>,
    certificates: Range<usize>,
    headers_bytes: usize,
    sections: Vec<Section>,
}

#[derive(Clone, Debug)]
struct Section {
    name: [u8; 8],
    virtual_bytes: usize,
    raw: Range<usize>,
}

impl<'a> Pe<'a> {
    /// Reads the headers.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PeError> {
        let reader = Reader(bytes);
        let pe = reader.u32(0x3c, "e_lfanew")?;
        expect("signature", reader.u32(pe, "signature")?, 0x4550)?;
        let sections_count = reader.u16(pe.saturating_add(6), "NumberOfSections")?;
        let optional_bytes = reader.u16(pe.saturating_add(20), "SizeOfOptionalHeader")?;
        let optional = pe.saturating_add(24);
        let magic = reader.u16(optional, "Magic")?;
        expect("Magic", magic, usize::from(MAGIC_PE32_PLUS))?;
        let headers_bytes =
            reader.u32(optional.saturating_add(SIZE_OF_HEADERS), "SizeOfHeaders")?;
        reader.take(0, headers_bytes, "headers")?;
        let checksum = optional.saturating_add(CHECKSUM);
        let directory = optional.saturating_add(DIRECTORIES + CERTIFICATE_TABLE * 8);
        let table = reader.u32(directory, "certificate table offset")?;
        let table_bytes = reader.u32(directory.saturating_add(4), "certificate table size")?;
        let certificates = certificates(&reader, table, table_bytes)?;
        if sections_count > SECTIONS_MAX {
            return Err(PeError::Sections { found: sections_count });
        }
        let first = optional.saturating_add(optional_bytes);
        let sections = (0..sections_count)
            .map(|index| section(&reader, first.saturating_add(index * SECTION_HEADER_BYTES)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            bytes,
            checksum: checksum..checksum.saturating_add(4),
            certificate_directory: directory..directory.saturating_add(8),
            certificates,
            headers_bytes,
            sections,
        })
    }

    /// Names of the sections in the file's order, without their padding.
    pub fn section_names(&self) -> impl Iterator<Item = &[u8]> {
        self.sections.iter().map(|section| trimmed(&section.name))
    }

    /// Content of the first section of this name as it is in memory: `VirtualSize` bytes.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<Vec<u8>> {
        let section =
            self.sections.iter().find(|section| trimmed(&section.name) == name.as_bytes())?;
        let mut content = self.bytes.get(section.raw.clone())?.to_vec();
        content.resize(section.virtual_bytes, 0);
        Some(content)
    }

    /// Whether there is a certificate table.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        !self.certificates.is_empty()
    }

    /// Where the header says where the certificate table is: offset and length, 32 bits each.
    pub(crate) fn certificate_directory(&self) -> Range<usize> {
        self.certificate_directory.clone()
    }

    /// Where the header's checksum is.
    pub(crate) fn checksum(&self) -> Range<usize> {
        self.checksum.clone()
    }

    /// SHA-256 over the image without its checksum and signatures.
    #[must_use]
    pub fn authenticode(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut add = |range: Range<usize>| hash.update(self.bytes.get(range).unwrap_or_default());
        add(0..self.checksum.start);
        add(self.checksum.end..self.certificate_directory.start);
        add(self.certificate_directory.end..self.headers_bytes);
        let mut raw: Vec<_> = self.sections.iter().map(|section| section.raw.clone()).collect();
        raw.retain(|range| !range.is_empty());
        raw.sort_by_key(|range| range.start);
        let hashed = self.headers_bytes + raw.iter().map(ExactSizeIterator::len).sum::<usize>();
        raw.into_iter().for_each(&mut add);
        // What follows the sections, up to the certificate table, which is the end of the file.
        add(hashed..self.certificates.start);
        hash.finalize().into()
    }
}

fn trimmed(name: &[u8; 8]) -> &[u8] {
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    &name[..end]
}

fn expect(what: &'static str, found: usize, expected: usize) -> Result<(), PeError> {
    let number = |value| u32::try_from(value).unwrap_or(u32::MAX);
    if found == expected {
        Ok(())
    } else {
        Err(PeError::Magic { what, found: number(found), expected: number(expected) })
    }
}

fn certificates(reader: &Reader<'_>, table: usize, bytes: usize) -> Result<Range<usize>, PeError> {
    let length = reader.0.len();
    if bytes == 0 {
        return Ok(length..length);
    }
    reader.take(table, bytes, "certificate table")?;
    match table.saturating_add(bytes) {
        end if end == length => Ok(table..end),
        end => Err(PeError::Certificates { end, length }),
    }
}

fn section(reader: &Reader<'_>, header: usize) -> Result<Section, PeError> {
    let mut name = [0; 8];
    name.copy_from_slice(reader.take(header, 8, "section name")?);
    let virtual_bytes = reader.u32(header.saturating_add(8), "VirtualSize")?;
    let raw_bytes = reader.u32(header.saturating_add(16), "SizeOfRawData")?;
    let raw = reader.u32(header.saturating_add(20), "PointerToRawData")?;
    reader.take(raw, raw_bytes, "section")?;
    Ok(Section { name, virtual_bytes, raw: raw..raw.saturating_add(raw_bytes) })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&self, offset: usize, bytes: usize, what: &'static str) -> Result<&'a [u8], PeError> {
        let outside = PeError::Outside { what, offset, bytes, length: self.0.len() };
        self.0.get(offset..offset.saturating_add(bytes)).ok_or(outside)
    }

    fn u16(&self, offset: usize, what: &'static str) -> Result<usize, PeError> {
        let bytes = self.take(offset, 2, what)?;
        Ok(usize::from(bytes[0]) | usize::from(bytes[1]) << 8)
    }

    fn u32(&self, offset: usize, what: &'static str) -> Result<usize, PeError> {
        let low = self.u16(offset, what)?;
        Ok(low | self.u16(offset.saturating_add(2), what)? << 16)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const OPTIONAL_BYTES: usize = 240;
    const PE: usize = 0x80;

    fn le16(number: usize) -> [u8; 2] {
        u16::try_from(number).unwrap().to_le_bytes()
    }

    fn le32(number: usize) -> [u8; 4] {
        u32::try_from(number).unwrap().to_le_bytes()
    }

    /// An image with the given sections, 512 bytes aligned in the file, without a signature.
    pub(crate) fn image(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let first = PE + 24 + OPTIONAL_BYTES;
        let headers = (first + sections.len() * SECTION_HEADER_BYTES).next_multiple_of(512);
        let mut image = vec![0; headers];
        let put = |image: &mut Vec<u8>, at: usize, bytes: &[u8]| {
            image[at..at + bytes.len()].copy_from_slice(bytes)
        };
        put(&mut image, 0x3c, &le32(PE));
        put(&mut image, PE, b"PE\0\0");
        put(&mut image, PE + 6, &le16(sections.len()));
        put(&mut image, PE + 20, &le16(OPTIONAL_BYTES));
        put(&mut image, PE + 24, &MAGIC_PE32_PLUS.to_le_bytes());
        put(&mut image, PE + 24 + SIZE_OF_HEADERS, &le32(headers));
        for (index, (name, content)) in sections.iter().enumerate() {
            let header = first + index * SECTION_HEADER_BYTES;
            let (raw, raw_bytes) = (image.len(), content.len().next_multiple_of(512));
            put(&mut image, header, name.as_bytes());
            put(&mut image, header + 8, &le32(content.len()));
            put(&mut image, header + 16, &le32(raw_bytes));
            put(&mut image, header + 20, &le32(raw));
            image.extend_from_slice(content);
            image.resize(raw + raw_bytes, 0);
        }
        image
    }

    fn with_signature(image: &[u8], signature: &[u8]) -> Vec<u8> {
        let mut signed = image.to_vec();
        let directory = PE + 24 + DIRECTORIES + CERTIFICATE_TABLE * 8;
        signed[directory..directory + 4].copy_from_slice(&le32(image.len()));
        signed[directory + 4..directory + 8].copy_from_slice(&le32(signature.len()));
        signed.extend_from_slice(signature);
        signed
    }

    #[test]
    fn sections_have_their_virtual_size() {
        let image = image(&[(".linux", b"kernel"), (".cmdline", b"a=b")]);
        let pe = Pe::parse(&image).unwrap();
        assert_eq!(pe.section(".linux").unwrap(), b"kernel");
        assert_eq!(pe.section(".cmdline").unwrap(), b"a=b");
        assert_eq!(pe.section(".initrd"), None);
        assert!(pe.section_names().eq([&b".linux"[..], b".cmdline"]));
    }

    #[test]
    fn a_signature_does_not_change_the_digest_and_content_does() {
        let plain = image(&[(".linux", b"kernel")]);
        let signed = with_signature(&plain, &[7; 16]);
        let digest = |bytes: &[u8]| Pe::parse(bytes).unwrap().authenticode();
        assert_eq!(digest(&plain), digest(&signed));
        let mut changed = signed.clone();
        changed[PE + 24 + CHECKSUM] ^= 1;
        assert_eq!(digest(&signed), digest(&changed), "checksum is not hashed");
        let last = plain.len() - 1;
        changed[last] ^= 1;
        assert_ne!(digest(&signed), digest(&changed));
    }

    #[test]
    fn the_digest_is_that_of_the_hashed_ranges() {
        let mut plain = image(&[(".linux", b"kernel")]);
        plain.extend_from_slice(b"trailing");
        let directory = PE + 24 + DIRECTORIES + CERTIFICATE_TABLE * 8;
        let checksum = PE + 24 + CHECKSUM;
        let ranges = [&plain[..checksum], &plain[checksum + 4..directory], &plain[directory + 8..]];
        let expected: [u8; 32] = Sha256::digest(ranges.concat()).into();
        assert_eq!(Pe::parse(&plain).unwrap().authenticode(), expected);
    }

    #[test]
    fn every_truncation_is_an_error_or_a_shorter_trailer() {
        let image = image(&[(".linux", b"kernel")]);
        for length in 0..image.len() {
            assert!(Pe::parse(&image[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_certificate_table_in_the_middle_is_refused() {
        let mut signed = with_signature(&image(&[(".linux", b"kernel")]), &[7; 16]);
        signed.push(0);
        assert!(matches!(Pe::parse(&signed), Err(PeError::Certificates { .. })));
    }
}
