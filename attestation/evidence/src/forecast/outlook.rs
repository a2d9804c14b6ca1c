//! What becomes of one PCR, and of what is sealed to several.

use std::collections::BTreeMap;

use crate::quote::PcrValues;

/// What a PCR will hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// This value.
    Exactly([u8; 32]),
    /// The present value, unless the cause turns out to touch it.
    Unless,
    /// Nobody can say before it is measured.
    Unknown,
    /// What the log with its changed events gives; only until the forecast is complete.
    Replayed,
}

/// Why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// No change reaches it.
    Untouched,
    /// A variable of Secure Boot has other content.
    Variable {
        /// Its name.
        name: &'static str,
        /// Number of its event in the log.
        event: usize,
        /// Signatures that were not there.
        added: usize,
        /// Signatures that are no longer there.
        removed: usize,
    },
    /// Firmware starts another UKI.
    Program {
        /// Number of its event in the log.
        event: usize,
    },
    /// Another certificate of db verifies the UKI.
    Authority {
        /// Number of the event in the log that names the present one.
        event: usize,
    },
    /// The reference values do not say which certificate verifies the UKI.
    AuthorityUnsaid,
    /// The builder predicted it for the image.
    Image,
    /// The firmware measures the partition table, and the image's partitions have other identifiers in it.
    Partitions,
    /// The kernel measures the initrd with what systemd-stub adds to it.
    Initrd,
    /// The firmware measures itself, its settings and option ROMs.
    Firmware,
    /// Other firmware may measure more or otherwise.
    FirmwareMay,
    /// It differs from boot to boot.
    EachBoot,
    /// The log does not show the event that would change.
    NotInLog,
}

/// What becomes of one PCR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// Its value now.
    pub before: [u8; 32],
    /// What it will hold.
    pub after: After,
    /// Why, one reason for each change that reaches it.
    pub why: Vec<Why>,
}

impl Outlook {
    pub(super) fn untouched(value: [u8; 32]) -> Self {
        Self { before: value, after: After::Exactly(value), why: vec![Why::Untouched] }
    }

    /// One more change; the vaguer statement holds.
    pub(super) fn set(&mut self, after: After, why: Why) {
        let vague = |after: After| match after {
            After::Exactly(_) => 0,
            After::Replayed => 1,
            After::Unless => 2,
            After::Unknown => 3,
        };
        if vague(after) >= vague(self.after) {
            self.after = after;
        }
        self.why.retain(|why| *why != Why::Untouched);
        self.why.push(why);
    }

    /// Puts the replayed value in its place.
    pub(super) fn resolve(&mut self, replayed: Option<[u8; 32]>) {
        let moved = replayed != Some(self.before);
        match (self.after, replayed) {
            (After::Replayed, Some(value)) => self.after = After::Exactly(value),
            (After::Replayed, None) => self.after = After::Unknown,
            // Firmware may leave the rule alone, but a variable that changes as well does not.
            (After::Unless, _) if moved && self.why.len() > 1 => self.after = After::Unknown,
            _ => {}
        }
    }

    /// Whether it will hold what it holds now; `None` if nobody can say.
    #[must_use]
    pub fn stays(&self) -> Option<bool> {
        self.holds(self.before)
    }

    /// Whether it will hold `value`; `None` if nobody can say.
    fn holds(&self, value: [u8; 32]) -> Option<bool> {
        match self.after {
            After::Exactly(after) => Some(after == value),
            After::Unless | After::Unknown | After::Replayed => None,
        }
    }
}

/// Something that the TPM releases only to certain PCRs: together, everything that an appliance seals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// The state partition, to the values that [`STATE_PCRS`] have now and to a PCR 11 that the image brings, signed.
    State,
    /// The key of an encrypted bundle, to the values that its own file names.
    Bundle {
        /// What its operator calls the medium.
        medium: String,
        /// The values.
        pcrs: PcrValues,
    },
}

/// PCRs whose values are in the seal of the state partition: `systemd-repart.service.d` of the image's configuration.
pub const STATE_PCRS: [u8; 3] = [7, 12, 13];

/// What becomes of a seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// What is sealed.
    pub sealed: Sealed,
    /// PCRs that keep it closed already, before any change.
    pub closed_by: Vec<u8>,
    /// What becomes of it.
    pub fate: Fate,
}

/// Whether a seal opens after the change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It opens.
    Opens,
    /// It opens if the new image's policy is signed by the key that signed the present one's.
    OpensIfSigned,
    /// It does not open; these PCRs are others.
    Breaks(Vec<u8>),
    /// Nobody can say before these PCRs are measured.
    Uncertain(Vec<u8>),
}

impl Seal {
    /// `image` says whether another one will bring the policy of PCR 11.
    pub(super) fn of_state(pcrs: &BTreeMap<u8, Outlook>, image: bool) -> Self {
        let present = |pcr| (pcr, pcrs.get(&pcr).map(|outlook| outlook.before));
        let fate = match fate(pcrs, STATE_PCRS.map(present)) {
            Fate::Opens if image => Fate::OpensIfSigned,
            fate => fate,
        };
        Self { sealed: Sealed::State, closed_by: Vec::new(), fate }
    }

    pub(super) fn of_bundle(
        pcrs: &BTreeMap<u8, Outlook>,
        medium: String,
        sealed_to: &PcrValues,
    ) -> Self {
        let expected = sealed_to.iter().map(|(&pcr, &value)| (pcr, Some(value)));
        let closed = |(pcr, value): &(&u8, &[u8; 32])| {
            pcrs.get(*pcr).is_some_and(|outlook| outlook.before != **value)
        };
        let closed_by = sealed_to.iter().filter(closed).map(|(&pcr, _)| pcr).collect();
        let fate = fate(pcrs, expected);
        Self { sealed: Sealed::Bundle { medium, pcrs: sealed_to.clone() }, closed_by, fate }
    }
}

/// What becomes of something sealed to these values; one that is not known can be anything.
fn fate(
    pcrs: &BTreeMap<u8, Outlook>,
    expected: impl IntoIterator<Item = (u8, Option<[u8; 32]>)>,
) -> Fate {
    let (mut breaks, mut uncertain) = (Vec::new(), Vec::new());
    for (pcr, value) in expected {
        match value.and_then(|value| pcrs.get(&pcr)?.holds(value)) {
            Some(true) => {}
            Some(false) => breaks.push(pcr),
            None => uncertain.push(pcr),
        }
    }
    match (breaks.is_empty(), uncertain.is_empty()) {
        (false, _) => Fate::Breaks(breaks),
        (true, false) => Fate::Uncertain(uncertain),
        (true, true) => Fate::Opens,
    }
}

/// Why firmware will not start the UKI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The dbx forbids this very UKI.
    ImageForbidden {
        /// Its Authenticode digest.
        authenticode: [u8; 32],
    },
    /// The dbx forbids the certificate that verified the UKI.
    CertificateForbidden {
        /// Its SHA-256 digest.
        sha256: [u8; 32],
    },
    /// The db no longer has the certificate that verified the UKI.
    CertificateGone {
        /// Its SHA-256 digest.
        sha256: [u8; 32],
    },
    /// The db has no certificate by which the new image, as its builder predicts, is verified.
    AuthorityUnknown {
        /// Digest of the measurement that the builder predicts.
        measured: [u8; 32],
    },
}
