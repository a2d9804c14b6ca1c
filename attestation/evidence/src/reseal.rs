//! Orders to seal the state partition to a state of the machine that does not exist yet.
//!
//! A quorum of release keys signs the folder that holds [`ORDER_FILE`] alone, exactly as it signs a model
//! (OMS v1.0, see `bundle`). An order names one machine, the state in which it may be applied and the one that it
//! prepares; it is applied once.
//!
//! Invariants: only [`approve`] makes an [`Approved`], and a header is changed by nothing but a [`Step`] that
//! follows from one; a state that was not the present one when an order was applied can never be ordered again by
//! the same order.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod luks;
mod seal;

use serde::{Deserialize, Serialize};

use crate::bundle::{BundleError, Differences, Quorum};
use crate::document;

pub use luks::{HEADER_BYTES_MAX, HeaderError, Slot, Slots};
pub use seal::{ImageKeys, SIGNATURES_BYTES_MAX, SealError, SealingKey, tpm2_pcrs};

/// Schema name of [`Order`].
pub const RESEAL_SCHEMA: &str = "casemate-reseal-v1";
/// Name of the one file that is signed.
pub const ORDER_FILE: &str = "reseal.json";
/// Longest order.
pub const ORDER_BYTES_MAX: usize = 4096;
/// Most key slots: the present state, one that is prepared, and room for a preparation that was given up.
pub const SLOTS_MAX: usize = 4;
/// Most orders that one installation of the state partition applies, so that the list of the used ones is bounded.
pub const USED_MAX: usize = 1024;

/// Seal the state partition of one machine to what its PCR 7 will be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// [`RESEAL_SCHEMA`].
    pub schema: String,
    /// TPM Name of the machine's attestation key, hex.
    pub ak_name: String,
    /// PCR 7 (SHA-256 bank) in which the order is applied, hex.
    pub pcr7_present: String,
    /// PCR 7 for which a key slot is added, hex.
    pub pcr7_forecast: String,
    /// 16 bytes, hex, different in every order.
    pub id: String,
}

/// Why an order is refused.
#[derive(Debug, thiserror::Error)]
pub enum ResealError {
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
    /// The machine is in another state than the order says.
    #[error("the order is for PCR 7 = {named}; it is {found}: make a forecast of this state")]
    OtherState {
        /// PCR 7 in the order.
        named: String,
        /// PCR 7 of the machine.
        found: String,
    },
    /// Applied before.
    #[error("the order {id} was used already; an order is applied once")]
    Used {
        /// Its identifier.
        id: String,
    },
    /// No more orders.
    #[error("{USED_MAX} orders were applied, the most of one installation; reinstall the machine")]
    TooManyUsed,
    /// The header has no slot for the present state.
    #[error(
        "no key slot of the state partition is sealed to the present PCR 7 ({policy}); nothing is changed"
    )]
    NoPresentSlot {
        /// Policy digest that was looked for.
        policy: String,
    },
    /// No room.
    #[error(
        "the state partition has {found} key slots, at most {SLOTS_MAX}; restart, so that old ones are wiped"
    )]
    Full {
        /// Slots found.
        found: usize,
    },
}

/// An order that a quorum signed: having one proves that, and that its fields are well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approved {
    ak_name: String,
    present: [u8; 32],
    forecast: [u8; 32],
    id: String,
    signers: Vec<String>,
}

/// What to do for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Add a slot that opens with this PCR 7.
    Add {
        /// The forecast PCR 7.
        pcr7: [u8; 32],
    },
    /// There is one already.
    Nothing,
}

impl Order {
    /// The order as a file.
    ///
    /// # Errors
    /// [`ResealError::Malformed`] if it would not be read.
    pub fn to_json(&self) -> Result<Vec<u8>, ResealError> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| malformed(e.to_string()))?;
        text.push(b'\n');
        Self::parse(&text)?;
        Ok(text)
    }

    /// Reads a file; that proves nothing, see [`approve`].
    ///
    /// # Errors
    /// [`ResealError::Malformed`] says what is wrong with it.
    pub fn parse(file: &[u8]) -> Result<Self, ResealError> {
        let order: Self =
            document::read(file, ORDER_BYTES_MAX, RESEAL_SCHEMA, |order: &Self| &order.schema)
                .map_err(malformed)?;
        for (field, text, bytes) in [
            ("ak_name", &order.ak_name, 34),
            ("pcr7_present", &order.pcr7_present, 32),
            ("pcr7_forecast", &order.pcr7_forecast, 32),
            ("id", &order.id, 16),
        ] {
            document::check_hex(field, text, bytes).map_err(malformed)?;
        }
        if order.pcr7_present == order.pcr7_forecast {
            return Err(malformed("PCR 7 stays as it is: nothing to reseal".to_owned()));
        }
        Ok(order)
    }
}

/// Judges an order by the quorum of release keys.
///
/// # Errors
/// [`ResealError`] if the quorum did not sign exactly this file.
pub fn approve(
    quorum: &Quorum,
    signatures: &[Vec<u8>],
    file: &[u8],
) -> Result<Approved, ResealError> {
    let verified = quorum.admit_file::<ResealError>(signatures, ORDER_FILE, file)?;
    let order = Order::parse(file)?;
    Ok(Approved {
        present: bytes32(&order.pcr7_present)?,
        forecast: bytes32(&order.pcr7_forecast)?,
        ak_name: order.ak_name,
        id: order.id,
        signers: verified.signers().to_vec(),
    })
}

impl Approved {
    /// Its identifier, for the list of used orders.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Who signed, sorted.
    #[must_use]
    pub fn signers(&self) -> &[String] {
        &self.signers
    }

    /// PCR 7 in which it is applied.
    #[must_use]
    pub fn present(&self) -> [u8; 32] {
        self.present
    }

    /// PCR 7 that it prepares.
    #[must_use]
    pub fn forecast(&self) -> [u8; 32] {
        self.forecast
    }

    /// Checks that it is for this machine in its present state and was not used.
    ///
    /// # Errors
    /// [`ResealError`] names what is another.
    pub fn check<'u>(
        &self,
        ak_name: &str,
        pcr7: [u8; 32],
        mut used: impl Iterator<Item = &'u str>,
    ) -> Result<(), ResealError> {
        if self.ak_name != ak_name {
            let (named, found) = (self.ak_name.clone(), ak_name.to_owned());
            return Err(ResealError::OtherMachine { named, found });
        }
        if used.any(|id| id == self.id) {
            return Err(ResealError::Used { id: self.id.clone() });
        }
        if self.present != pcr7 {
            let (named, found) = (hex::encode(self.present), hex::encode(pcr7));
            return Err(ResealError::OtherState { named, found });
        }
        Ok(())
    }

    /// What to do with a header, once [`Self::check`] passed.
    ///
    /// # Errors
    /// [`ResealError`] if the header is not as the present state leaves it.
    pub fn step(&self, slots: &Slots, key: &SealingKey) -> Result<Step, ResealError> {
        let (present, forecast) = (key.policy(self.present), key.policy(self.forecast));
        if !slots.has(&present) {
            return Err(ResealError::NoPresentSlot { policy: hex::encode(present) });
        }
        match slots.slots().len() {
            _ if slots.has(&forecast) => Ok(Step::Nothing),
            found if found >= SLOTS_MAX => Err(ResealError::Full { found }),
            _ => Ok(Step::Add { pcr7: self.forecast }),
        }
    }
}

/// The states between which the last applied order leads, as the appliance remembers them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    /// PCR 7 before, hex.
    pub present: String,
    /// PCR 7 after, hex.
    pub forecast: String,
    /// Identifiers of all orders that were applied, oldest first.
    pub used: Vec<String>,
}

impl Applied {
    /// The states whose key slots stay in a boot with this PCR 7: the present one and, as long as the machine has not
    /// changed, the prepared one. `None` if the machine is in neither of the two.
    fn kept(&self, pcr7: [u8; 32]) -> Result<Option<Vec<[u8; 32]>>, ResealError> {
        let (before, after) = (bytes32(&self.present)?, bytes32(&self.forecast)?);
        Ok(if pcr7 == before {
            Some(vec![pcr7, after])
        } else {
            (pcr7 == after).then(|| vec![pcr7])
        })
    }
}

/// Whether a boot of this image leaves the key slots as they are, whatever the machine's state: all are sealed to the
/// image's own key, and no order was ever applied.
#[must_use]
pub fn settled(image: &ImageKeys, slots: &Slots) -> bool {
    slots.slots().iter().all(|slot| slot.key == *image.own())
}

/// Whether the state, which opened with this PCR 7, has no key slot for it by the image's own key, but by one that was
/// rotated: then there must be one.
///
/// # Errors
/// [`ResealError::Full`] if there is no room.
pub fn succeeds(image: &ImageKeys, pcr7: [u8; 32], slots: &Slots) -> Result<bool, ResealError> {
    let by_another = |slot: &Slot| slot.key != *image.own() && slot.policy == slot.key.policy(pcr7);
    if slots.has(&image.own().policy(pcr7)) || !slots.slots().iter().any(by_another) {
        return Ok(false);
    }
    let found = slots.slots().len();
    if found >= SLOTS_MAX { Err(ResealError::Full { found }) } else { Ok(true) }
}

/// Key slots to wipe in a boot in which the state opened with this PCR 7: those of keys that signed nothing of the image,
/// which were rotated, and those of states that [`Applied`] has done with. None if the header does not even have the one
/// of the present state by the image's own key.
///
/// # Errors
/// [`ResealError::Malformed`] if the remembered states are none.
pub fn obsolete(
    applied: Option<&Applied>,
    image: &ImageKeys,
    pcr7: [u8; 32],
    slots: &Slots,
) -> Result<Vec<u32>, ResealError> {
    if !slots.has(&image.own().policy(pcr7)) {
        return Ok(Vec::new());
    }
    let kept = applied.map(|applied| applied.kept(pcr7)).transpose()?.flatten();
    let is_kept = |slot: &&Slot| {
        let of_state = |&state: &[u8; 32]| slot.key.policy(state) == slot.policy;
        image.signed_by(&slot.key) && kept.as_ref().is_none_or(|kept| kept.iter().any(of_state))
    };
    Ok(slots.slots().iter().filter(|slot| !is_kept(slot)).map(|slot| slot.keyslot).collect())
}

fn malformed(reason: String) -> ResealError {
    ResealError::Malformed { reason }
}

fn bytes32(text: &str) -> Result<[u8; 32], ResealError> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).map_err(|error| malformed(error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests;
