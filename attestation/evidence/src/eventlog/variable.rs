//! `UEFI_VARIABLE_DATA`: what the firmware measures of a UEFI variable.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::cursor::{Cursor, Short};

/// `EFI_GLOBAL_VARIABLE`, {8be4df61-93ca-11d2-aa0d-00e098032b8c}, as it stands in memory.
pub const EFI_GLOBAL_VARIABLE: [u8; 16] = [
    0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c,
];

/// A measured variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable<'a> {
    /// Vendor, a GUID as it stands in memory.
    pub vendor: &'a [u8],
    /// Name; unpaired surrogates are replaced.
    pub name: String,
    /// Contents.
    pub data: &'a [u8],
}

impl<'a> Variable<'a> {
    /// Reads the data of an `EV_EFI_VARIABLE_*` event.
    ///
    /// # Errors
    /// If a length reaches past the end.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Short> {
        let mut cursor = Cursor::new(bytes);
        let vendor = cursor.take(16)?;
        let name_units = cursor.u64_le()?;
        let data_bytes = cursor.u64_le()?;
        let name = cursor.take(clamp(name_units.saturating_mul(2)))?;
        let (units, _) = name.as_chunks::<2>();
        let name = char::decode_utf16(units.iter().map(|&unit| u16::from_le_bytes(unit)))
            .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect();
        Ok(Self { vendor, name, data: cursor.take(clamp(data_bytes))? })
    }

    /// The data of an event that measures this variable.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let units: Vec<u16> = self.name.encode_utf16().collect();
        let mut bytes = self.vendor.to_vec();
        bytes.extend((units.len() as u64).to_le_bytes());
        bytes.extend((self.data.len() as u64).to_le_bytes());
        bytes.extend(units.into_iter().flat_map(u16::to_le_bytes));
        bytes.extend(self.data);
        bytes
    }
}

/// A length that no slice has where it does not fit.
fn clamp(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
