//! GUIDs as firmware has them; UEFI Specification, Appendix A.

/// An EFI GUID in its text form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guid {
    text: String,
    bytes: [u8; 16],
}

impl Guid {
    /// Parses `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lengths: Vec<usize> = text.split('-').map(str::len).collect();
        if lengths != [8, 4, 4, 4, 12] {
            return None;
        }
        let mut bytes = [0; 16];
        hex::decode_to_slice(text.replace('-', ""), &mut bytes).ok()?;
        // UEFI Specification, Appendix A: the first three fields are little-endian.
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        Some(Self { text: text.to_owned(), bytes })
    }

    /// Bytes of a GUID that stands in this crate; tests parse them all.
    pub(crate) fn known(text: &str) -> [u8; 16] {
        Self::parse(text).map(|guid| guid.bytes).unwrap_or_default()
    }

    /// Bytes as in an `EFI_GUID`.
    #[must_use]
    pub fn bytes(&self) -> [u8; 16] {
        self.bytes
    }

    /// The text form.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_is_mixed_endian() {
        let guid = Guid::parse("8be4df61-93ca-11d2-aa0d-00e098032b8c").unwrap();
        assert_eq!(hex::encode(guid.bytes()), "61dfe48bca93d211aa0d00e098032b8c");
    }

    #[test]
    fn what_is_no_guid_is_refused() {
        for text in [
            "",
            "8be4df61",
            "8be4df61-93ca-11d2-aa0d-00e098032b8z",
            "8be4df6193ca11d2aa0d00e098032b8c",
        ] {
            assert_eq!(Guid::parse(text), None, "{text}");
        }
    }
}
