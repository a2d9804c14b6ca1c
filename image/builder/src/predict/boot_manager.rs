//! PCR 4: the programs that firmware starts; TCG PC Client Platform Firmware Profile, "PCR\[4\]".

use super::{Predicted, SEPARATOR};

/// `EV_EFI_ACTION` before the first boot option.
const CALLING: &[u8] = b"Calling EFI Application from Boot Option";

/// The measurements of PCR 4 when the first boot option is the boot manager, which has firmware load the UKI; the
/// digests are their Authenticode digests.
#[must_use]
pub fn boot_manager(boot_manager: [u8; 32], uki: [u8; 32]) -> Vec<Predicted> {
    let start = [Predicted::of("boot option", CALLING), Predicted::of("separator", &SEPARATOR)];
    let programs = [("boot manager", boot_manager), ("UKI", uki)];
    let program = |(what, digest): (&str, _)| Predicted { what: what.to_owned(), digest };
    start.into_iter().chain(programs.map(program)).collect()
}

#[cfg(test)]
mod tests {
    use evidence::pcr::Pcr;

    use super::*;

    fn pcr4(first: [u8; 32], second: [u8; 32]) -> Pcr {
        crate::predict::fold(&boot_manager(first, second))
    }

    #[test]
    fn programs_count_in_order() {
        assert_ne!(pcr4([1; 32], [2; 32]), pcr4([2; 32], [1; 32]));
        assert_ne!(pcr4([1; 32], [1; 32]), pcr4([1; 32], [2; 32]));
    }
}
