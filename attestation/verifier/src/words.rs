//! The verdict's words in the auditor's language.

use evidence::verify::{ClaimId, Reason, Status};

/// Language of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Language {
    /// English.
    #[default]
    En,
    /// Français.
    Fr,
}

impl Language {
    /// One of two texts.
    pub(crate) fn pick<'a>(self, en: &'a str, fr: &'a str) -> &'a str {
        match self {
            Self::En => en,
            Self::Fr => fr,
        }
    }

    pub(crate) fn claim(self, id: ClaimId) -> &'static str {
        self.pick(
            id.name(),
            match id {
                ClaimId::Machine => "machine",
                ClaimId::Quote => "citation-tpm",
                ClaimId::Fresh => "fraîcheur",
                ClaimId::Pcrs => "pcr",
                ClaimId::FirmwareLog => "journal-de-démarrage",
                ClaimId::SecureBoot => "démarrage-sécurisé",
                ClaimId::BootChain => "chaîne-de-démarrage",
                ClaimId::Image => "image",
                ClaimId::CommandLine => "ligne-de-commande",
                ClaimId::Policy => "politique",
                ClaimId::Bundle => "modèle",
                ClaimId::Ledger => "registre",
            },
        )
    }

    pub(crate) fn status(self, status: Status) -> &'static str {
        match status {
            Status::Established => self.pick("established", "établi"),
            Status::Refuted => self.pick("REFUTED", "RÉFUTÉ"),
            Status::NotEstablished => self.pick("not established", "non établi"),
        }
    }

    pub(crate) fn reason(self, reason: &Reason) -> &str {
        self.pick(reason.en(), reason.fr())
    }

    pub(crate) fn verdict(self, established: bool) -> &'static str {
        match established {
            true => self.pick("ESTABLISHED", "ÉTABLI"),
            false => self.pick("NOT ESTABLISHED", "NON ÉTABLI"),
        }
    }
}
