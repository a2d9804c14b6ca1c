//! Orders to destroy a machine's state: its keys first, for good.
//!
//! A quorum of release keys signs the folder that holds [`ORDER_FILE`] alone, exactly as it signs a model (OMS v1.0, see
//! `bundle`). An order names one machine and the UUID of its state partition, which no later state has: it is used up
//! by what it does, and a list of used orders would be destroyed with the state anyway.
//!
//! Invariant: only [`approve`] makes an [`Approved`].
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use serde::{Deserialize, Serialize};

use crate::bundle::{BundleError, Differences, Quorum};
use crate::document;

/// Schema name of [`Order`].
pub const RESET_SCHEMA: &str = "casemate-reset-v1";
/// Name of the one file that is signed.
pub const ORDER_FILE: &str = "reset.json";
/// Longest order.
pub const ORDER_BYTES_MAX: usize = 4096;
/// Longest reason.
const REASON_CHARS_MAX: usize = 200;

/// Destroy the state of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// [`RESET_SCHEMA`].
    pub schema: String,
    /// TPM Name of the machine's attestation key, hex.
    pub machine: String,
    /// UUID in the header of the state partition.
    pub state: String,
    /// Why; the console shows it.
    pub reason: String,
}

/// Why an order is refused.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The file is no order.
    #[error("{ORDER_FILE} is no order: {reason}")]
    Malformed {
        /// What was found and what was expected.
        reason: String,
    },
    /// The quorum did not sign.
    #[error(transparent)]
    Signatures(#[from] BundleError),
    /// The quorum signed other files.
    #[error(transparent)]
    OtherFiles(#[from] Differences),
    /// Another machine's order.
    #[error("the order is for the machine {named}; this one is {found}")]
    OtherMachine {
        /// Name of the key in the order.
        named: String,
        /// Name of this machine's key.
        found: String,
    },
    /// The state that it names is gone, or was never here.
    #[error("the order is for the state {named}; this one is {found}, which stays")]
    OtherState {
        /// UUID in the order.
        named: String,
        /// UUID of the partition.
        found: String,
    },
}

/// An order that a quorum signed: having one proves that, and that its fields are well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approved {
    order: Order,
    signers: Vec<String>,
}

impl Order {
    /// The order as a file.
    ///
    /// # Errors
    /// [`ResetError::Malformed`] if it would not be read.
    pub fn to_json(&self) -> Result<Vec<u8>, ResetError> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| malformed(e.to_string()))?;
        text.push(b'\n');
        Self::parse(&text)?;
        Ok(text)
    }

    /// Reads a file; that proves nothing, see [`approve`].
    ///
    /// # Errors
    /// [`ResetError::Malformed`] says what is wrong with it.
    pub fn parse(file: &[u8]) -> Result<Self, ResetError> {
        let order: Self =
            document::read(file, ORDER_BYTES_MAX, RESET_SCHEMA, |order: &Self| &order.schema)
                .map_err(malformed)?;
        document::check_hex("machine", &order.machine, 34).map_err(malformed)?;
        document::check_uuid("state", &order.state).map_err(malformed)?;
        let reason = order.reason.trim().chars().count();
        if !(1..=REASON_CHARS_MAX).contains(&reason) {
            let expected = format!("1 to {REASON_CHARS_MAX} characters are expected");
            return Err(malformed(format!("the reason has {reason}; {expected}")));
        }
        Ok(order)
    }
}

/// Judges an order by the quorum of release keys.
///
/// # Errors
/// [`ResetError`] if the quorum did not sign exactly this file.
pub fn approve(
    quorum: &Quorum,
    signatures: &[Vec<u8>],
    file: &[u8],
) -> Result<Approved, ResetError> {
    let verified = quorum.admit_file::<ResetError>(signatures, ORDER_FILE, file)?;
    Ok(Approved { order: Order::parse(file)?, signers: verified.signers().to_vec() })
}

impl Approved {
    /// Who signed, sorted.
    #[must_use]
    pub fn signers(&self) -> &[String] {
        &self.signers
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.order.reason
    }

    /// Checks that it is for this machine and the state that is there.
    ///
    /// # Errors
    /// [`ResetError`] names what is another.
    pub fn check(&self, machine: &str, state: &str) -> Result<(), ResetError> {
        if self.order.machine != machine {
            let (named, found) = (self.order.machine.clone(), machine.to_owned());
            return Err(ResetError::OtherMachine { named, found });
        }
        if self.order.state != state {
            let (named, found) = (self.order.state.clone(), state.to_owned());
            return Err(ResetError::OtherState { named, found });
        }
        Ok(())
    }
}

fn malformed(reason: String) -> ResetError {
    ResetError::Malformed { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::SignedFile;
    use crate::fixture::{policy, sign_files};
    use crate::pcr::HashAlg;

    const STATE: &str = "01234567-89ab-cdef-0123-456789abcdef";

    fn order() -> Order {
        Order {
            schema: RESET_SCHEMA.to_owned(),
            machine: format!("000b{}", "5a".repeat(32)),
            state: STATE.to_owned(),
            reason: "the server is sold".to_owned(),
        }
    }

    fn judge(name: &str, file: &[u8], signers: &[usize]) -> Result<Approved, ResetError> {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(HashAlg::Sha256.hash(&[file]).as_bytes());
        let signed = sign_files(&[SignedFile { name: name.to_owned(), sha256 }], signers);
        approve(&Quorum::parse(&policy()).unwrap(), &signed, file)
    }

    #[test]
    fn an_order_that_the_quorum_signed_is_for_one_machine_and_one_state() {
        let approved = judge(ORDER_FILE, &order().to_json().unwrap(), &[0, 2]).unwrap();
        assert_eq!(approved.signers(), ["release-1", "release-3"]);
        approved.check(&order().machine, STATE).unwrap();
        let machine = approved.check(&order().machine.replace('5', "6"), STATE).unwrap_err();
        assert!(matches!(machine, ResetError::OtherMachine { .. }), "{machine}");
        let state = approved.check(&order().machine, &STATE.replace('0', "1")).unwrap_err();
        assert!(matches!(state, ResetError::OtherState { .. }), "{state}");
    }

    #[test]
    fn what_the_quorum_did_not_sign_is_refused() {
        let file = order().to_json().unwrap();
        let one = judge(ORDER_FILE, &file, &[1]).unwrap_err();
        assert!(matches!(one, ResetError::Signatures(_)), "{one}");
        // A signed reseal order, or a bundle, is no reset.
        let other = judge("reseal.json", &file, &[0, 1]).unwrap_err();
        assert!(matches!(other, ResetError::OtherFiles(_)), "{other}");
    }

    #[test]
    fn a_signed_file_that_is_no_order_is_refused() {
        let with = |edit: fn(&mut Order)| {
            let mut order = order();
            edit(&mut order);
            serde_json::to_vec(&order).unwrap()
        };
        for file in [
            b"{}".to_vec(),
            with(|order| order.schema.clear()),
            with(|order| order.machine.truncate(64)),
            with(|order| order.state = "/".repeat(36)),
            with(|order| order.reason = " ".to_owned()),
            with(|order| order.reason = "x".repeat(201)),
            vec![b' '; ORDER_BYTES_MAX + 1],
        ] {
            let error = judge(ORDER_FILE, &file, &[0, 1]).unwrap_err();
            assert!(matches!(error, ResetError::Malformed { .. }), "{error}");
        }
    }
}
