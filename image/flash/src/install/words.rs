//! What the installer says, in English and in French.

use std::borrow::Cow;

use super::firmware::State;
use crate::copy::Phase;
use crate::progress::size;

/// One message in both languages.
#[derive(Clone, Debug)]
pub(super) struct Words {
    pub(super) english: Cow<'static, str>,
    pub(super) french: Cow<'static, str>,
}

const fn fixed(english: &'static str, french: &'static str) -> Words {
    Words { english: Cow::Borrowed(english), french: Cow::Borrowed(french) }
}

pub(super) fn made(english: String, french: String) -> Words {
    Words { english: Cow::Owned(english), french: Cow::Owned(french) }
}

pub(super) const HELLO: Words = fixed(
    "this stick puts casemate onto a disk of this machine; nothing is changed before a disk is named",
    "cette clé installe casemate sur un disque de cette machine ; rien n'est modifié avant qu'un disque soit désigné",
);
pub(super) const CHECKING: Words = fixed(
    "checking the image against the builder's signature",
    "vérification de l'image contre la signature du constructeur",
);
pub(super) const NO_DISK_YET: Words =
    fixed("no disk yet; waiting for one", "pas encore de disque ; en attente");
pub(super) const ASK: Words = fixed(
    "type the serial number of the disk to overwrite (PATH:BYTES if it has none), then Enter",
    "tapez le numéro de série du disque à écraser (CHEMIN:OCTETS s'il n'en a pas), puis Entrée",
);
pub(super) const ENROLLED: Words = fixed(
    "firmware holds the owner's Secure Boot keys now",
    "le micrologiciel contient maintenant les clés Secure Boot du propriétaire",
);
pub(super) const DONE: Words = fixed(
    "installed, and read back; the machine switches off: take the stick out, then switch it on",
    "installé et relu ; la machine s'éteint : retirez la clé, puis rallumez-la",
);

/// Installation ended before its end.
pub(super) fn stopped(reason: &str) -> Words {
    made(format!("STOPPED: {reason}"), format!("ARRÊT : {reason}"))
}

pub(super) fn firmware(state: State) -> Words {
    match state {
        State::Setup => fixed(
            "firmware is in setup mode: the owner's Secure Boot keys will be enrolled",
            "le micrologiciel est en mode configuration : les clés Secure Boot du propriétaire y seront inscrites",
        ),
        State::Ours => fixed(
            "firmware enforces the owner's Secure Boot keys",
            "le micrologiciel applique les clés Secure Boot du propriétaire",
        ),
    }
}

pub(super) fn writing(disk: &str) -> Words {
    made(
        format!("{disk} is overwritten now; it does not boot before this is finished"),
        format!("{disk} est écrasé maintenant ; il ne démarre pas avant la fin"),
    )
}

pub(super) fn progress(phase: Phase, done: u64, total: u64) -> Words {
    let (english, french) = match phase {
        Phase::Check => ("checking the image", "vérification de l'image"),
        Phase::Clear => ("clearing the gaps", "effacement des vides"),
        Phase::Write => ("writing", "écriture"),
        Phase::ReadBack => ("reading back", "relecture"),
    };
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let (done, total) = (size(done), size(total));
    made(
        format!("{english}: {percent} %, {done} of {total}"),
        format!("{french} : {percent} %, {done} sur {total}"),
    )
}
