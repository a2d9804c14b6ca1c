//! The forecast's words in the operator's language.

use std::path::Path;

use evidence::forecast::{Fate, Forecast, Obstacle, Outlook, Seal, Sealed, Why};

/// Language of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Language {
    /// English
    #[default]
    En,
    /// Français
    Fr,
}

/// A sentence from an English and a French format string over the same captured names.
macro_rules! says {
    ($lang:expr, $en:literal, $fr:literal) => {
        match $lang {
            Language::En => format!($en),
            Language::Fr => format!($fr),
        }
    };
}

impl Language {
    fn pick<'a>(self, en: &'a str, fr: &'a str) -> &'a str {
        match self {
            Self::En => en,
            Self::Fr => fr,
        }
    }

    pub(super) fn outlook(self, outlook: &Outlook) -> &'static str {
        match outlook.stays() {
            Some(true) => self.pick("stays", "inchangé"),
            Some(false) => self.pick("changes", "change"),
            None if outlook.after == evidence::forecast::After::Unless => {
                self.pick("may-change", "incertain")
            }
            None => self.pick("unknown", "inconnu"),
        }
    }

    pub(super) fn then(self) -> &'static str {
        self.pick("then", "ensuite")
    }

    /// Empty where nothing is to be said.
    pub(super) fn why(self, why: &Why) -> String {
        match why {
            Why::Untouched => String::new(),
            Why::Variable { name, event, added, removed } => says!(
                self,
                "{name} (event {event} of the log): signatures: {added} more, {removed} less",
                "{name} (événement {event} du journal) : signatures : {added} en plus, {removed} en moins"
            ),
            Why::Program { event } => says!(
                self,
                "firmware starts the new UKI (event {event} of the log)",
                "le micrologiciel démarre la nouvelle UKI (événement {event} du journal)"
            ),
            Why::Authority { event } => says!(
                self,
                "another certificate of db verifies the new UKI (event {event} of the log)",
                "un autre certificat de db vérifie la nouvelle UKI (événement {event} du journal)"
            ),
            Why::AuthorityUnsaid => says!(
                self,
                "stays unless another certificate verifies the new UKI; its reference values do not say which does",
                "inchangé, sauf si un autre certificat vérifie la nouvelle UKI ; ses valeurs de référence ne disent pas lequel"
            ),
            Why::Image => says!(
                self,
                "predicted by the image's builder, for a complete boot",
                "prédit par le constructeur de l'image, pour un démarrage complet"
            ),
            Why::Partitions => says!(
                self,
                "identifiers of the image's partitions in the partition table: unpredictable until measured",
                "identifiants des partitions de l'image dans la table de partitions : imprévisible avant la mesure"
            ),
            Why::Initrd => says!(
                self,
                "the initrd of the image and what systemd-stub adds: unpredictable until measured",
                "l'initrd de l'image et ce que systemd-stub y ajoute : imprévisible avant la mesure"
            ),
            Why::Firmware => says!(
                self,
                "code and settings of the new firmware: unpredictable until measured",
                "code et réglages du nouveau micrologiciel : imprévisible avant la mesure"
            ),
            Why::FirmwareMay => says!(
                self,
                "stays unless the new firmware changes its variables, settings or what it measures",
                "inchangé, sauf si le nouveau micrologiciel modifie ses variables, ses réglages ou ce qu'il mesure"
            ),
            Why::EachBoot => says!(
                self,
                "may differ from boot to boot, whatever is changed",
                "peut différer d'un démarrage à l'autre, quoi qu'on change"
            ),
            Why::NotInLog => says!(
                self,
                "the log does not show which event would change",
                "le journal ne montre pas quel événement changerait"
            ),
        }
    }

    pub(super) fn seal(self, seal: &Seal) -> String {
        let name = match &seal.sealed {
            Sealed::State => self.pick("state partition", "partition d'état").to_owned(),
            Sealed::Bundle { medium, .. } => format!("bundle {medium}"),
        };
        let fate = self.fate(&name, &seal.fate);
        if seal.closed_by.is_empty() {
            return fate;
        }
        let closed_by = &seal.closed_by;
        says!(
            self,
            "{fate}; it does not open now, by PCRs {closed_by:?}",
            "{fate} ; il ne s'ouvre pas aujourd'hui, à cause des PCR {closed_by:?}"
        )
    }

    fn fate(self, name: &str, fate: &Fate) -> String {
        match fate {
            Fate::Opens => says!(self, "seal of the {name}: opens", "scellé ({name}) : s'ouvre"),
            Fate::OpensIfSigned => says!(
                self,
                "seal of the {name}: opens if the image was built with the same key set (pcr/pcr.pub)",
                "scellé ({name}) : s'ouvre si l'image a été construite avec le même jeu de clés (pcr/pcr.pub)"
            ),
            Fate::Breaks(pcrs) => says!(
                self,
                "seal of the {name}: BREAKS, by PCRs {pcrs:?}",
                "scellé ({name}) : SE BRISE, à cause des PCR {pcrs:?}"
            ),
            Fate::Uncertain(pcrs) => says!(
                self,
                "seal of the {name}: UNCERTAIN, by PCRs {pcrs:?}",
                "scellé ({name}) : INCERTAIN, à cause des PCR {pcrs:?}"
            ),
        }
    }

    pub(super) fn obstacle(self, obstacle: &Obstacle) -> String {
        match obstacle {
            Obstacle::ImageForbidden { authenticode } => {
                let digest = hex::encode(authenticode);
                says!(
                    self,
                    "WILL NOT START: dbx forbids the UKI {digest}",
                    "NE DÉMARRERA PAS : dbx interdit l'UKI {digest}"
                )
            }
            Obstacle::CertificateForbidden { sha256 } => {
                let digest = hex::encode(sha256);
                says!(
                    self,
                    "WILL NOT START: dbx forbids the certificate {digest} that verifies the UKI",
                    "NE DÉMARRERA PAS : dbx interdit le certificat {digest} qui vérifie l'UKI"
                )
            }
            Obstacle::AuthorityUnknown { measured } => {
                let digest = hex::encode(measured);
                says!(
                    self,
                    "WILL NOT START: db has no certificate by which firmware would measure {digest}, as predicted for the \
                     new UKI; append its key's to db first",
                    "NE DÉMARRERA PAS : db n'a aucun certificat pour lequel le micrologiciel mesurerait {digest}, comme \
                     prédit pour la nouvelle UKI ; ajoutez d'abord celui de sa clé à db"
                )
            }
            Obstacle::CertificateGone { sha256 } => {
                let digest = hex::encode(sha256);
                says!(
                    self,
                    "WILL NOT START: db no longer has the certificate {digest} that verified the UKI",
                    "NE DÉMARRERA PAS : db ne contient plus le certificat {digest} qui a vérifié l'UKI"
                )
            }
        }
    }

    /// What to do, in order.
    pub(super) fn advice(self, forecast: &Forecast) -> Vec<String> {
        if !forecast.obstacles.is_empty() {
            return vec![says!(
                self,
                "do not make this change: firmware would refuse the image",
                "ne faites pas cette modification : le micrologiciel refuserait l'image"
            )];
        }
        let fates = |of_state: bool| {
            let wanted = move |seal: &&Seal| (seal.sealed == Sealed::State) == of_state;
            forecast.seals.iter().filter(wanted).map(|seal| &seal.fate)
        };
        let mut advice = Vec::new();
        advice.extend(fates(true).flat_map(|fate| self.advice_on_state(fate)));
        if fates(false).any(|fate| matches!(fate, Fate::Breaks(_))) {
            advice.push(says!(
                self,
                "pack the bundle again (casemate bundle pack --seal-reference FILE) with the reference values that \
                 --new-reference writes here, and plug that medium in after the change",
                "empaquetez à nouveau le bundle (casemate bundle pack --seal-reference FICHIER) avec les valeurs de \
                 référence que --new-reference écrit ici, et branchez ce support après la modification"
            ));
        }
        if fates(false).any(|fate| matches!(fate, Fate::Uncertain(_))) {
            advice.push(says!(
                self,
                "keep the bundle's plain files at hand: if it does not open after the change, pack it again with \
                 reference values of that state",
                "gardez les fichiers en clair du bundle à portée de main : s'il ne s'ouvre pas après la modification, \
                 empaquetez-le à nouveau avec les valeurs de référence de cet état"
            ));
        }
        advice
    }

    fn advice_on_state(self, fate: &Fate) -> Vec<String> {
        let mut advice = Vec::new();
        match fate {
            Fate::Opens | Fate::OpensIfSigned => {}
            Fate::Breaks(pcrs) if pcrs == &[7] => {
                advice.push(says!(
                self,
                "before the change: make an order (--reseal DIR --machine FILE), have the release keys sign it \
                 (casemate bundle sign DIR), pack it (casemate reseal pack), plug the medium in, and restart once",
                "avant la modification : préparez un ordre (--reseal DIR --machine FICHIER), faites-le signer par les \
                 clés de publication (casemate bundle sign DIR), empaquetez-le (casemate reseal pack), branchez le \
                 support et redémarrez une fois"
            ));
                advice.push(says!(
                self,
                "after the change: verifiers need reference values with the new PCR 7",
                "après la modification : les vérificateurs ont besoin de valeurs de référence avec le nouveau PCR 7"
            ));
            }
            Fate::Breaks(_) => {
                advice.push(says!(
                self,
                "no order mends this: PCRs 12 and 13 must be zero; remove what is injected beside the UKI",
                "aucun ordre n'y remédie : les PCR 12 et 13 doivent être nuls ; retirez ce qui est injecté à côté de l'UKI"
            ));
            }
            Fate::Uncertain(_) => {
                advice.push(says!(
                self,
                "keep the present firmware at hand: if the state stays closed afterwards, going back opens it again; \
                 where several machines are alike, change one first and compare its evidence",
                "gardez le micrologiciel actuel à portée de main : si l'état reste fermé ensuite, y revenir le rouvre ; \
                 si plusieurs machines sont identiques, modifiez-en d'abord une et comparez ses preuves"
            ));
            }
        }
        advice
    }

    pub(super) fn prepared(self, folder: &Path) -> String {
        let folder = folder.display();
        says!(
            self,
            "{folder}: an order for one machine, to be used once; check it, then: casemate bundle sign {folder} --key \
             URI --out NAME.sig, by as many holders as the policy asks for",
            "{folder} : un ordre pour une seule machine, à usage unique ; vérifiez-le, puis : casemate bundle sign \
             {folder} --key URI --out NOM.sig, par autant de détenteurs que la politique l'exige"
        )
    }
}
