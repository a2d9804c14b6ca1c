//! The reference values of one image, for whoever verifies its evidence.

use std::collections::BTreeMap;

use evidence::format::{Confinement, REFERENCE_SCHEMA, Reference};
use evidence::pcr::Pcr;
use sha2::{Digest as _, Sha256};

use crate::keys::{KeySet, KeysError};
use crate::pe::{Pe, PeError};
use crate::predict::{self, Predicted, SecureBoot, UkiError};

/// Why some PCRs have no expected value.
const MACHINE: &[(u8, &str)] = &[
    (0, "firmware code of the machine"),
    (1, "firmware configuration of the machine"),
    (2, "option ROMs of the machine"),
    (3, "configuration of option ROMs"),
    (5, "partition table, which gains the state partition at first boot"),
    (6, "events of the machine's vendor"),
    (8, "not used without GRUB"),
    (
        9,
        "initrd as the kernel received it: the UKI's, already in PCR 11, and what systemd-stub adds",
    ),
    (10, "the kernel's IMA, which adds up PCRs 0 to 9"),
    (14, "agentd's measurements; the agent log explains them"),
    (15, "machine id and file systems of this boot"),
];

/// Why there are no reference values.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// A key or certificate could not be read.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The UKI cannot be measured.
    #[error(transparent)]
    Uki(#[from] UkiError),
    /// The UKI is no PE image.
    #[error(transparent)]
    Pe(#[from] PeError),
}

/// What the image says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity<'a> {
    pub(crate) image_id: &'a str,
    pub(crate) image_version: &'a str,
    pub(crate) profile: &'a str,
    pub(crate) root_hash: &'a str,
    pub(crate) cmdline: &'a str,
}

/// Predicts the boot of `uki` by `boot_manager` on a machine that trusts the keys of the set.
pub(crate) fn reference(
    (boot_manager, uki): (&[u8], &[u8]),
    keys: &KeySet,
    identity: &Identity<'_>,
) -> Result<Reference, ReferenceError> {
    let authenticode = Pe::parse(uki)?.authenticode();
    let variable = |name| keys.variable(name);
    let (pk, kek, db, dbx) = (variable("PK")?, variable("KEK")?, variable("db")?, variable("dbx")?);
    let signer = keys.db_certificate()?;
    let owner = keys.owner();
    let secure_boot = SecureBoot { owner, pk: &pk, kek: &kek, db: &db, dbx: &dbx, signer: &signer };
    let predictions = [
        (4, predict::boot_manager(Pe::parse(boot_manager)?.authenticode(), authenticode)),
        (7, predict::secure_boot(&secure_boot)),
        (11, predict::sections_and_phases(uki, predict::PHASES)?),
    ];
    let folded = predictions.iter().map(|(index, predicted)| (*index, predict::fold(predicted)));
    // No command line, credential or extension from outside the UKI.
    let pcrs = folded.chain([(12, Pcr::ZERO), (13, Pcr::ZERO)]);
    let listed =
        |predicted: &[Predicted]| predicted.iter().map(Predicted::to_measurement).collect();
    let machine_pcrs: BTreeMap<u8, String> =
        MACHINE.iter().map(|(index, reason)| (*index, (*reason).to_owned())).collect();
    Ok(Reference {
        schema: REFERENCE_SCHEMA.to_owned(),
        image_id: identity.image_id.to_owned(),
        image_version: identity.image_version.to_owned(),
        profile: identity.profile.to_owned(),
        pcrs: pcrs.map(|(index, pcr)| (index, pcr.to_string())).collect(),
        measurements: predictions.iter().map(|(index, all)| (*index, listed(all))).collect(),
        machine_pcrs,
        uki_sha256: hex::encode(Sha256::digest(uki)),
        uki_authenticode: hex::encode(authenticode),
        root_hash: identity.root_hash.to_owned(),
        cmdline: identity.cmdline.to_owned(),
        policy_sha256: hex::encode(Sha256::digest(keys.policy()?)),
        site_sha256: hex::encode(Sha256::digest(keys.site()?)),
        confinement: confinement(),
    })
}

/// The tables that the agent's programs are linked with, when they are built from the same sources as this builder.
fn confinement() -> BTreeMap<String, Confinement> {
    let self_test: Vec<String> =
        sandbox::self_test_names().into_iter().map(str::to_owned).collect();
    sandbox::appliance_tables()
        .map(|(process, table_sha256)| {
            (process.to_owned(), Confinement { table_sha256, self_test: self_test.clone() })
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_s_table_is_predicted() {
        let tables = confinement();
        assert_eq!(tables.keys().collect::<Vec<_>>(), ["agentd", "engine", "gateway"]);
        assert_eq!(tables["engine"].table_sha256, sandbox::ENGINE.table_sha256());
        assert!(tables.values().all(|table| !table.self_test.is_empty()));
    }
}
