//! What becomes of one PCR, and of what is sealed to several.

use std::collections::BTreeMap;

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
    /// The builder predicted it for the image.
    Image,
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
        match self.after {
            After::Exactly(value) => Some(value == self.before),
            After::Unless | After::Unknown | After::Replayed => None,
        }
    }
}

/// Something that the TPM releases only to certain PCRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// What is sealed.
    pub name: &'static str,
    /// PCRs whose values are in the seal.
    pub literal: &'static [u8],
    /// PCR whose values the image brings, signed.
    pub signed: u8,
}

/// Everything that an appliance seals: `image/config`, `systemd-repart.service.d` and the UKI's policy.
pub const SEALS: &[Sealed] =
    &[Sealed { name: "state-partition", literal: &[7, 12, 13], signed: 11 }];

/// What becomes of a seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// What is sealed.
    pub sealed: Sealed,
    /// What becomes of it.
    pub fate: Fate,
}

/// Whether a seal still opens.
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

impl Sealed {
    pub(super) fn fate(&self, pcrs: &BTreeMap<u8, Outlook>, image: bool) -> Seal {
        let of = |stays: Option<bool>| -> Vec<u8> {
            let is = |pcr: &&u8| pcrs.get(*pcr).and_then(Outlook::stays) == stays;
            self.literal.iter().filter(is).copied().collect()
        };
        let (breaks, uncertain) = (of(Some(false)), of(None));
        let fate = match (breaks.is_empty(), uncertain.is_empty(), image) {
            (false, ..) => Fate::Breaks(breaks),
            (true, false, _) => Fate::Uncertain(uncertain),
            (true, true, true) => Fate::OpensIfSigned,
            (true, true, false) => Fate::Opens,
        };
        Seal { sealed: *self, fate }
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
}
