//! PCR 4: the programs that firmware starts; TCG PC Client Platform Firmware Profile, "PCR\[4\]".

use super::{Predicted, SEPARATOR};

/// `EV_EFI_ACTION` before the first boot option.
const CALLING: &[u8] = b"Calling EFI Application from Boot Option";

/// The measurements of PCR 4 when the first boot option is the UKI; `digests` are the Authenticode digests of the
/// programs that firmware loaded, in order.
#[must_use]
pub fn boot_manager(digests: &[[u8; 32]]) -> Vec<Predicted> {
    let start = [Predicted::of("boot option", CALLING), Predicted::of("separator", &SEPARATOR)];
    let program = |digest: &[u8; 32]| Predicted { what: "UKI".to_owned(), digest: *digest };
    start.into_iter().chain(digests.iter().map(program)).collect()
}

#[cfg(test)]
mod tests {
    use evidence::pcr::Pcr;

    use super::*;

    fn pcr4(digests: &[[u8; 32]]) -> Pcr {
        crate::predict::fold(&boot_manager(digests))
    }

    #[test]
    fn programs_count_in_order() {
        assert_ne!(pcr4(&[[1; 32], [2; 32]]), pcr4(&[[2; 32], [1; 32]]));
        assert_ne!(pcr4(&[[1; 32]]), pcr4(&[[1; 32], [1; 32]]));
    }
}
