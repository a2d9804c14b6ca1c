//! The verdict's words in the auditor's language.

use evidence::time::Timestamp;
use evidence::verify::{ClaimId, Log, Reason, Status, Unexplained};

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
                ClaimId::Site => "site",
                ClaimId::TlsKey => "clé-tls",
                ClaimId::Confinement => "confinement",
                ClaimId::Bundle => "modèle",
                ClaimId::Ledger => "registre",
                ClaimId::Rollback => "non-retour",
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

    /// As of when, by whose clock.
    pub(crate) fn as_of(self, created: Option<Timestamp>, now: Timestamp) -> String {
        let created = created.map_or_else(|| "?".to_owned(), |created| created.to_string());
        match self {
            Self::En => format!(
                "as of {created} by the appliance's clock, which nothing vouches for; judged {now} by this computer's"
            ),
            Self::Fr => format!(
                "état au {created} selon l'horloge de l'appliance, que rien ne garantit ; jugé le {now} selon celle de cet ordinateur"
            ),
        }
    }

    pub(crate) fn ahead(self, seconds: i64) -> String {
        match self {
            Self::En => format!(
                "one of the two clocks is wrong: the appliance's was ahead of this computer's by {seconds} s"
            ),
            Self::Fr => format!(
                "l'une des deux horloges est fausse : celle de l'appliance avançait de {seconds} s sur celle de cet ordinateur"
            ),
        }
    }

    pub(crate) fn unexplained(self, event: &Unexplained) -> String {
        let Unexplained { number, pcr, kind, digest, text, .. } = event;
        let log = match event.log {
            Log::Firmware => self.pick("firmware", "micrologiciel"),
            Log::Userspace => self.pick("userspace", "système"),
        };
        let hides = match event.hides {
            Some(id) => self.claim(id),
            None => self.pick("nothing that is claimed", "rien de ce qui est affirmé"),
        };
        match self {
            Self::En => format!(
                "unexplained: event {number} of the {log} log, PCR {pcr}, {kind}, sha256 {digest}, {text:?}; could hide: {hides}"
            ),
            Self::Fr => format!(
                "inexpliqué : événement {number} du journal {log}, PCR {pcr}, {kind}, sha256 {digest}, {text:?} ; peut cacher : {hides}"
            ),
        }
    }

    pub(crate) fn more(self, count: usize) -> String {
        match self {
            Self::En => format!("unexplained: {count} more events; --json shows all"),
            Self::Fr => format!("inexpliqué : {count} autres événements ; --json les montre tous"),
        }
    }

    pub(crate) fn records(self, count: u64) -> String {
        match self {
            Self::En => format!("{count} records; root and origin:"),
            Self::Fr => format!("{count} enregistrements ; racine et origine :"),
        }
    }

    pub(crate) fn code(self) -> &'static str {
        self.pick("en", "fr")
    }

    pub(crate) fn title(self) -> &'static str {
        self.pick("Verdict on a casemate appliance", "Verdict sur une appliance casemate")
    }

    pub(crate) fn claims_title(self) -> &'static str {
        self.pick("Claims", "Affirmations")
    }

    pub(crate) fn unexplained_title(self) -> &'static str {
        self.pick("Logged events that no rule explains", "Événements qu'aucune règle n'explique")
    }

    pub(crate) fn ledger_title(self) -> &'static str {
        self.pick("Head of the ledger", "Tête du registre")
    }

    pub(crate) fn inputs_title(self) -> &'static str {
        self.pick("Judged from these files (SHA-256)", "Jugé d'après ces fichiers (SHA-256)")
    }

    pub(crate) fn judge(self) -> &'static str {
        self.pick("judged by", "jugé par")
    }

    pub(crate) fn none(self) -> &'static str {
        self.pick("None.", "Aucun.")
    }

    pub(crate) fn unknown(self) -> &'static str {
        self.pick("Not established.", "Non établi.")
    }
}
