//! Secure Boot's signature databases, db and dbx: UEFI Specification 2.10, "Signature Database", and the header
//! of an authenticated variable, "Variable Services".
//!
//! Invariant: what is allocated is bounded by the bytes present and by the maxima below, never by a length that
//! the file claims. A [`Database`] proves structure only: nobody's signature over it was checked.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use sha2::{Digest as _, Sha256};

use crate::cursor::{Cursor, Short};

/// Longest file, in bytes; a dbx has 10 to 30 KiB, and firmware keeps it in a flash of some hundred.
pub const DATABASE_BYTES_MAX: usize = 1 << 20;
/// Most signatures; a dbx has some hundred.
pub const SIGNATURES_MAX: usize = 32_768;

/// `EFI_IMAGE_SECURITY_DATABASE_GUID`, {d719b2cb-3d3a-4596-a3bc-dad00e67656f}, as it stands in memory.
pub const EFI_IMAGE_SECURITY_DATABASE: [u8; 16] = [
    0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f,
];
/// `EFI_CERT_SHA256_GUID`, {c1c41626-504c-4092-aca9-41f936934328}: an image, by its Authenticode digest.
pub const CERT_SHA256: [u8; 16] = [
    0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28,
];
/// `EFI_CERT_X509_GUID`, {a5c059a1-94e4-4aa7-87b5-ab155c2bf072}: a certificate, DER.
pub const CERT_X509: [u8; 16] = [
    0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72,
];
/// `EFI_CERT_X509_SHA256_GUID`, {3bd2a492-96c0-4079-b420-fcf98ef103ed}: the digest of a certificate's
/// TBSCertificate, and a time of revocation.
const CERT_X509_SHA256: [u8; 16] = [
    0x92, 0xa4, 0xd2, 0x3b, 0xc0, 0x96, 0x79, 0x40, 0xb4, 0x20, 0xfc, 0xf9, 0x8e, 0xf1, 0x03, 0xed,
];
/// `EFI_CERT_TYPE_PKCS7_GUID`, {4aafd29d-68df-49ee-8aa9-347d375665a7}.
pub(crate) const CERT_TYPE_PKCS7: [u8; 16] = [
    0x9d, 0xd2, 0xaf, 0x4a, 0xdf, 0x68, 0xee, 0x49, 0x8a, 0xa9, 0x34, 0x7d, 0x37, 0x56, 0x65, 0xa7,
];

/// Bytes of `EFI_TIME`.
const TIME_BYTES: usize = 16;
/// Bytes of a GUID, which also begins each `EFI_SIGNATURE_DATA`: its owner.
const GUID_BYTES: usize = 16;
/// Bytes of `EFI_SIGNATURE_LIST` before its signatures.
const LIST_HEADER_BYTES: usize = 28;
/// Bytes of `WIN_CERTIFICATE_UEFI_GUID` before its data.
const CERTIFICATE_HEADER_BYTES: u32 = 24;
/// `wRevision` of a `WIN_CERTIFICATE`.
const CERTIFICATE_REVISION: u16 = 0x0200;
/// `WIN_CERT_TYPE_EFI_GUID`.
const CERTIFICATE_TYPE: u16 = 0x0ef1;
/// First bytes of a certificate or other structure in DER.
const DER_SEQUENCE: u8 = 0x30;

/// Why bytes are no signature database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// No bytes at all.
    #[error(
        "the file is empty; a signature database, or an update of one (.auth, .esl), is expected"
    )]
    Empty,
    /// More bytes than are read.
    #[error("{found} bytes, more than the {DATABASE_BYTES_MAX} that are read")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// More signatures than are read.
    #[error("more than {SIGNATURES_MAX} signatures")]
    TooMany,
    /// A field reaches past the end.
    #[error(
        "signature list {list}: {short}; a file of efivarfs has 4 bytes of attributes in front: cut them off"
    )]
    Cut {
        /// Number of the list, from 0.
        list: usize,
        /// The field.
        short: Short,
    },
    /// The sizes of a list contradict each other.
    #[error(
        "signature list {list} has {bytes} bytes, a header of {header} and signatures of {signature}: \
         not a whole number of signatures"
    )]
    Sizes {
        /// Number of the list, from 0.
        list: usize,
        /// `SignatureListSize`.
        bytes: u32,
        /// `SignatureHeaderSize`.
        header: u32,
        /// `SignatureSize`.
        signature: u32,
    },
    /// The header of an authenticated variable is not one.
    #[error("the header of the update is not one: {problem}")]
    Header {
        /// What was found.
        problem: String,
    },
}

/// The signatures of one type and size: `EFI_SIGNATURE_LIST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureList<'a> {
    /// `SignatureType`, a GUID as it stands in memory.
    pub kind: [u8; 16],
    /// `SignatureHeader`; no type of the specification has one.
    pub header: &'a [u8],
    /// `EFI_SIGNATURE_DATA` each: 16 bytes of owner, then the data.
    pub signatures: Vec<&'a [u8]>,
}

/// The contents of db or dbx, or what is added to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Database<'a> {
    /// The lists, in order.
    pub lists: Vec<SignatureList<'a>>,
    content: &'a [u8],
}

impl<'a> Database<'a> {
    /// Reads a whole variable as it is measured. A variable that does not exist is measured with no bytes.
    ///
    /// # Errors
    /// If it is cut, too long, or inconsistent.
    pub fn parse(content: &'a [u8]) -> Result<Self, DatabaseError> {
        if content.len() > DATABASE_BYTES_MAX {
            return Err(DatabaseError::TooLong { found: content.len() });
        }
        let (mut cursor, mut lists, mut signatures) = (Cursor::new(content), Vec::new(), 0_usize);
        while !cursor.is_empty() {
            let list = read_list(&mut cursor, lists.len())?;
            signatures = signatures.saturating_add(list.signatures.len());
            if signatures > SIGNATURES_MAX {
                return Err(DatabaseError::TooMany);
            }
            lists.push(list);
        }
        Ok(Self { lists, content })
    }

    /// Reads a file as vendors and the UEFI Forum give it out: signature lists, or those behind the header of an
    /// authenticated variable (`dbxupdate_x64.bin`, `.auth`), whose signature firmware checks and this does not.
    ///
    /// # Errors
    /// As for [`Self::parse`], and if there is nothing in it.
    pub fn parse_file(file: &'a [u8]) -> Result<Self, DatabaseError> {
        if file.is_empty() {
            return Err(DatabaseError::Empty);
        }
        if file.len() > DATABASE_BYTES_MAX {
            return Err(DatabaseError::TooLong { found: file.len() });
        }
        let database = Self::parse(without_header(file)?)?;
        if database.lists.is_empty() { Err(DatabaseError::Empty) } else { Ok(database) }
    }

    /// The exact bytes of the lists: what is measured of the variable.
    #[must_use]
    pub fn content(&self) -> &'a [u8] {
        self.content
    }

    /// Number of signatures.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lists.iter().map(|list| list.signatures.len()).sum()
    }

    /// Whether there is no signature.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this exact signature of this type is there, its owner included.
    #[must_use]
    pub fn has(&self, kind: &[u8; 16], signature: &[u8]) -> bool {
        self.of_kind(kind).any(|known| known == signature)
    }

    /// Number of signatures that `other` has and this has not.
    #[must_use]
    pub fn lacks_of(&self, other: &Self) -> usize {
        let mut own: Vec<_> = self.all().collect();
        own.sort_unstable();
        other.all().filter(|signature| own.binary_search(signature).is_err()).count()
    }

    /// The content after `EFI_VARIABLE_APPEND_WRITE` of `update`: signatures that are there already, owner included,
    /// are dropped (UEFI Specification 2.10, "SetVariable()"); list by list, as EDK II does it.
    #[must_use]
    pub fn appended(&self, update: &Self) -> Vec<u8> {
        let mut own: Vec<_> = self.all().collect();
        own.sort_unstable();
        let mut content = self.content.to_vec();
        for list in &update.lists {
            let new: Vec<&[u8]> = list
                .signatures
                .iter()
                .filter(|&&signature| own.binary_search(&(list.kind, signature)).is_err())
                .copied()
                .collect();
            if let Some(first) = new.first() {
                let (count, each) = (new.len(), first.len());
                let bytes = LIST_HEADER_BYTES
                    .saturating_add(list.header.len())
                    .saturating_add(count.saturating_mul(each));
                content.extend(list.kind);
                for size in [bytes, list.header.len(), each] {
                    // No size is above DATABASE_BYTES_MAX, which the update was read within.
                    content.extend(u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
                }
                content.extend(list.header);
                content.extend(new.concat());
            }
        }
        content
    }

    /// Whether, as dbx, it forbids an image by its Authenticode digest (SHA-256).
    #[must_use]
    pub fn forbids_image(&self, authenticode: &[u8; 32]) -> bool {
        self.of_kind(&CERT_SHA256).any(|signature| data(signature) == authenticode)
    }

    /// Whether, as dbx, it forbids images that this certificate (DER) verifies: it holds the certificate, or the
    /// SHA-256 digest of its signed part, whatever the time of the revocation.
    #[must_use]
    pub fn forbids_certificate(&self, certificate: &[u8]) -> bool {
        let revoked = tbs(certificate).map(Sha256::digest);
        self.of_kind(&CERT_X509).any(|signature| data(signature) == certificate)
            || revoked.is_some_and(|digest| {
                self.of_kind(&CERT_X509_SHA256)
                    .any(|signature| data(signature).starts_with(&digest[..]))
            })
    }

    fn of_kind<'s>(&'s self, kind: &'s [u8; 16]) -> impl Iterator<Item = &'a [u8]> + 's {
        let lists = self.lists.iter().filter(move |list| list.kind == *kind);
        lists.flat_map(|list| list.signatures.iter().copied())
    }

    fn all(&self) -> impl Iterator<Item = ([u8; 16], &'a [u8])> + '_ {
        self.lists
            .iter()
            .flat_map(|list| list.signatures.iter().map(|&signature| (list.kind, signature)))
    }
}

/// What follows the owner of a signature.
fn data(signature: &[u8]) -> &[u8] {
    signature.get(GUID_BYTES..).unwrap_or_default()
}

fn read_list<'a>(
    cursor: &mut Cursor<'a>,
    number: usize,
) -> Result<SignatureList<'a>, DatabaseError> {
    let cut = |short| DatabaseError::Cut { list: number, short };
    let mut kind = [0; 16];
    kind.copy_from_slice(cursor.take(GUID_BYTES).map_err(cut)?);
    let bytes = cursor.u32_le().map_err(cut)?;
    let header_bytes = cursor.u32_le().map_err(cut)?;
    let signature_bytes = cursor.u32_le().map_err(cut)?;
    let sizes = || DatabaseError::Sizes {
        list: number,
        bytes,
        header: header_bytes,
        signature: signature_bytes,
    };
    let [bytes, header_bytes, each] =
        [bytes, header_bytes, signature_bytes].map(|size| usize::try_from(size).ok());
    let (Some(bytes), Some(header_bytes), Some(each)) = (bytes, header_bytes, each) else {
        return Err(sizes());
    };
    let body = bytes
        .checked_sub(LIST_HEADER_BYTES)
        .and_then(|rest| rest.checked_sub(header_bytes))
        .ok_or_else(sizes)?;
    // An owner without data would be no signature, and a size of 0 would be any number of them.
    if each <= GUID_BYTES || body.checked_rem(each) != Some(0) {
        return Err(sizes());
    }
    let header = cursor.take(header_bytes).map_err(cut)?;
    let signatures = cursor.take(body).map_err(cut)?.chunks_exact(each).collect();
    Ok(SignatureList { kind, header, signatures })
}

/// Cuts off `EFI_VARIABLE_AUTHENTICATION_2`, if the file begins with one.
fn without_header(file: &[u8]) -> Result<&[u8], DatabaseError> {
    let cut = |short| DatabaseError::Cut { list: 0, short };
    let mut cursor = Cursor::new(file);
    cursor.take(TIME_BYTES).map_err(cut)?;
    let length = cursor.u32_le().map_err(cut)?;
    let (revision, kind) = (cursor.u16_le().map_err(cut)?, cursor.u16_le().map_err(cut)?);
    // A signature list would have a header of 250 MB here, and none has a header.
    if (revision, kind) != (CERTIFICATE_REVISION, CERTIFICATE_TYPE) {
        return Ok(file);
    }
    let guid = cursor.take(GUID_BYTES).map_err(cut)?;
    if guid != CERT_TYPE_PKCS7 {
        let problem = format!("its certificate is of type {}, not PKCS#7", hex::encode(guid));
        return Err(DatabaseError::Header { problem });
    }
    let rest = length.checked_sub(CERTIFICATE_HEADER_BYTES).and_then(|n| usize::try_from(n).ok());
    let Some(rest) = rest else {
        let problem = format!("its certificate claims {length} bytes");
        return Err(DatabaseError::Header { problem });
    };
    cursor.take(rest).map_err(cut)?;
    cursor.take(cursor.left()).map_err(cut)
}

/// `TBSCertificate` of an X.509 certificate (RFC 5280, section 4.1), its own tag and length included.
fn tbs(certificate: &[u8]) -> Option<&[u8]> {
    let (start, _) = der_sequence(certificate)?;
    let body = certificate.get(start..)?;
    let (_, end) = der_sequence(body)?;
    body.get(..end)
}

/// Where the content of a DER sequence begins, and where it ends.
fn der_sequence(bytes: &[u8]) -> Option<(usize, usize)> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if tag != DER_SEQUENCE {
        return None;
    }
    let (start, length) = match first {
        0..=0x7f => (2_usize, usize::from(first)),
        // A certificate with a longer length does not fit a database.
        0x81..=0x83 => {
            let count = usize::from(first & 0x7f);
            let length = rest.get(..count)?;
            let length = length.iter().fold(0_usize, |sum, &byte| sum << 8 | usize::from(byte));
            (count.checked_add(2)?, length)
        }
        _ => return None,
    };
    let end = start.checked_add(length)?;
    (end <= bytes.len()).then_some((start, end))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::fixture::log::{authenticated, signature_list};

    const OWNER: [u8; 16] = [0x11; 16];

    fn hashes(hashes: &[[u8; 32]]) -> Vec<u8> {
        signature_list(CERT_SHA256, OWNER, &hashes.iter().map(|h| &h[..]).collect::<Vec<_>>())
    }

    #[test]
    fn lists_are_read_and_hold_what_they_forbid() {
        let certificate = [&[0x30, 6][..], &[0x30, 2, 5, 0], &[5, 0]].concat();
        let revoked = [&Sha256::digest([0x30, 2, 5, 0])[..], &[0; TIME_BYTES]].concat();
        let bytes =
            [hashes(&[[1; 32], [2; 32]]), signature_list(CERT_X509_SHA256, OWNER, &[&revoked])]
                .concat();
        let dbx = Database::parse(&bytes).unwrap();
        assert_eq!((dbx.len(), dbx.lists.len(), dbx.content()), (3, 2, &bytes[..]));
        assert!(dbx.forbids_image(&[2; 32]) && !dbx.forbids_image(&[3; 32]));
        assert!(dbx.forbids_certificate(&certificate) && !dbx.forbids_certificate(&[0x30, 0]));
        let whole = signature_list(CERT_X509, OWNER, &[&certificate]);
        assert!(Database::parse(&whole).unwrap().forbids_certificate(&certificate));
        assert!(Database::parse(&[]).unwrap().is_empty(), "an absent variable has no bytes");
    }

    #[test]
    fn the_header_of_an_authenticated_variable_is_cut_off() {
        let lists = hashes(&[[1; 32]]);
        let file = authenticated(&lists);
        assert_eq!(Database::parse_file(&file).unwrap().content(), lists);
        assert_eq!(Database::parse_file(&lists).unwrap().content(), lists);
        for length in 0..file.len() {
            assert!(Database::parse_file(&file[..length]).is_err(), "{length} bytes");
        }
        let mut other = file.clone();
        other[24] ^= 1;
        let error = Database::parse_file(&other).unwrap_err();
        assert!(matches!(error, DatabaseError::Header { .. }), "{error}");
        let mut short = file;
        short[16..20].copy_from_slice(&23_u32.to_le_bytes());
        let error = Database::parse_file(&short).unwrap_err();
        assert!(matches!(error, DatabaseError::Header { .. }), "{error}");
    }

    #[test]
    fn an_appended_update_adds_what_is_new() {
        let old = hashes(&[[1; 32], [2; 32]]);
        let update = [hashes(&[[2; 32], [3; 32]]), hashes(&[[1; 32]])].concat();
        let old = Database::parse(&old).unwrap();
        let update = Database::parse(&update).unwrap();
        let new = old.appended(&update);
        assert_eq!(new, [old.content(), &hashes(&[[3; 32]])].concat());
        let new = Database::parse(&new).unwrap();
        assert_eq!((old.lacks_of(&new), new.lacks_of(&old)), (1, 0));
        assert_eq!(new.appended(&update), new.content(), "once is enough");
        // The same digest of another owner is another signature.
        let foreign = signature_list(CERT_SHA256, [9; 16], &[&[1; 32]]);
        let appended = old.appended(&Database::parse(&foreign).unwrap());
        assert_eq!(appended, [old.content(), &foreign].concat());
    }

    #[test]
    fn sizes_that_contradict_each_other_are_errors() {
        let list = hashes(&[[1; 32]]);
        for (at, size) in [(16, 27_u32), (16, 75), (16, 77), (20, 1), (24, 0), (24, 16), (24, 47)] {
            let mut bad = list.clone();
            bad[at..at + 4].copy_from_slice(&size.to_le_bytes());
            let error = Database::parse(&bad).unwrap_err();
            assert!(matches!(error, DatabaseError::Sizes { .. }), "{at}: {size}: {error}");
        }
        let mut lying = list;
        lying[16..20].copy_from_slice(&(28 + 48 * 1_000_000_u32).to_le_bytes());
        assert!(matches!(Database::parse(&lying), Err(DatabaseError::Cut { list: 0, .. })));
    }

    #[test]
    fn limits_hold() {
        assert_eq!(Database::parse_file(&[]), Err(DatabaseError::Empty));
        let found = DATABASE_BYTES_MAX + 1;
        let long = vec![0; found];
        assert_eq!(Database::parse(&long), Err(DatabaseError::TooLong { found }));
        assert_eq!(Database::parse_file(&long), Err(DatabaseError::TooLong { found }));
        let tiny: Vec<&[u8]> = vec![&[0]; SIGNATURES_MAX + 1];
        let many = signature_list(CERT_SHA256, OWNER, &tiny);
        assert_eq!(Database::parse(&many), Err(DatabaseError::TooMany));
        assert_eq!(Database::parse_file(&authenticated(&[])), Err(DatabaseError::Empty));
    }
}
