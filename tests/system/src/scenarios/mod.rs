//! The scenarios: one behaviour each, seen from outside.
//!
//! Nothing passes that was not seen: a refusal is a line that says so, never only silence.

mod attacks;
mod attested_tls;
mod boot;
mod bundles;
mod embeddings;
mod enrolment;
mod evidence;
mod flash;
mod injection;
mod installer;
mod own_kernel;
mod receipts;
mod recovery;
mod requests;
mod reseal;
mod reset;
mod rollback;
mod rotation;
mod secure_boot;
mod setup_mode;
mod size;
mod tamper;
mod update;

use crate::bench::Needs::{Fetched, Nothing, Ready, Second, Serving};
use crate::runner::Scenario;

/// All of them, in the order in which they start. Those that boot by themselves stand early, so that they run beside
/// the shared boot; the shortest are last, so that no core waits for the other at the end.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "boots-and-measures",
        about: "a cold boot without a bundle: PCRs as predicted, no login, not healthy",
        limit_s: 120,
        long_factor: 1,
        needs: Ready,
        run: boot::boots_and_measures,
    },
    Scenario {
        name: "small-image",
        about: "the disk image's content and the programs in PATH are as few as the SBOM says, and below our bounds",
        limit_s: 60,
        long_factor: 1,
        needs: Nothing,
        run: size::small_image,
    },
    Scenario {
        name: "flashed-disk",
        about: "a longer disk full of other things, flashed, boots to established evidence",
        limit_s: 300,
        long_factor: 1,
        needs: Second,
        run: flash::flashed_disk,
    },
    Scenario {
        name: "own-kernel",
        about: "our own kernel is locked down, evidence ESTABLISHED; the next boot opens the state and answers",
        limit_s: 900,
        long_factor: 1,
        needs: Nothing,
        run: own_kernel::boots,
    },
    Scenario {
        name: "gpu-nvidia",
        about: "the kernel for NVIDIA's driver loads its signed module, which finds no GPU; evidence ESTABLISHED",
        limit_s: 600,
        long_factor: 1,
        needs: Nothing,
        run: own_kernel::loads_driver,
    },
    Scenario {
        name: "uki-flipped-byte",
        about: "firmware refuses a UKI with one flipped byte",
        limit_s: 240,
        long_factor: 1,
        needs: Nothing,
        run: tamper::uki_flipped_byte,
    },
    Scenario {
        name: "uki-without-initrd",
        about: "firmware refuses a UKI whose initrd is not found under its name",
        limit_s: 300,
        long_factor: 1,
        needs: Nothing,
        run: tamper::uki_without_initrd,
    },
    Scenario {
        name: "root-flipped-byte",
        about: "one flipped byte in the root partition stops the boot",
        limit_s: 420,
        long_factor: 1,
        needs: Nothing,
        run: tamper::root_flipped_byte,
    },
    Scenario {
        name: "setup-mode-enrolled",
        about: "firmware in setup mode takes the key set's signed variables, and evidence is ESTABLISHED",
        limit_s: 600,
        long_factor: 1,
        needs: Nothing,
        run: setup_mode::enrols,
    },
    Scenario {
        name: "installed-from-stick",
        about: "the installer stick writes the disk whose serial number is typed, enrols the keys, and evidence is ESTABLISHED",
        limit_s: 900,
        long_factor: 1,
        needs: Nothing,
        run: installer::from_stick,
    },
    Scenario {
        name: "installed-onto-named-disk",
        about: "a stick that was built for a serial number writes that disk without asking, on enrolled firmware",
        limit_s: 900,
        long_factor: 1,
        needs: Nothing,
        run: installer::onto_named_disk,
    },
    Scenario {
        name: "injected-without-effect",
        about: "credentials by SMBIOS and fw_cfg and an unsigned add-on have no effect, and evidence is ESTABLISHED",
        limit_s: 900,
        long_factor: 1,
        needs: Nothing,
        run: injection::without_effect,
    },
    Scenario {
        name: "esp-credential-injected",
        about: "with a credential beside the UKI the state stays closed",
        limit_s: 600,
        long_factor: 1,
        needs: Nothing,
        run: injection::esp_credential,
    },
    Scenario {
        name: "esp-sysext-injected",
        about: "with a system extension beside the UKI the state stays closed",
        limit_s: 600,
        long_factor: 1,
        needs: Nothing,
        run: injection::esp_sysext,
    },
    Scenario {
        name: "root-swapped",
        about: "another root with its own hash tree does not boot",
        limit_s: 600,
        long_factor: 1,
        needs: Nothing,
        run: injection::root_swapped,
    },
    Scenario {
        name: "second-disk",
        about: "a stranger's disk with the same labels and identifiers beside ours has no effect, or stops the boot",
        limit_s: 420,
        long_factor: 1,
        needs: Ready,
        run: injection::second_disk,
    },
    Scenario {
        name: "model-answers",
        about: "the admitted model answers curl and the unchanged OpenAI client, whole and streamed",
        limit_s: 900,
        long_factor: 1,
        needs: Serving,
        run: requests::model_answers,
    },
    Scenario {
        name: "evidence-established",
        about: "evidence under a fresh nonce is ESTABLISHED in an empty folder",
        limit_s: 300,
        long_factor: 1,
        needs: Fetched,
        run: evidence::established,
    },
    Scenario {
        name: "receipt-replayed",
        about: "casemate-engine gives the appliance's answer again from its receipt, which the ledger names",
        limit_s: 300,
        long_factor: 1,
        needs: Serving,
        run: receipts::replayed,
    },
    Scenario {
        name: "embeddings",
        about: "a signed sentence encoder: the OpenAI client's vectors put like beside like, and are on record",
        limit_s: 420,
        long_factor: 1,
        needs: Ready,
        run: embeddings::made,
    },
    Scenario {
        name: "evidence-tpm2-tools",
        about: "tpm2_checkquote and tpm2_eventlog read the quote and the log as we do",
        limit_s: 300,
        long_factor: 1,
        needs: Fetched,
        run: evidence::tpm2_tools,
    },
    Scenario {
        name: "evidence-attacked",
        about: "evidence of a real boot, attacked 29 ways: each refuted by the claim that it concerns and by no other",
        limit_s: 300,
        long_factor: 1,
        needs: Fetched,
        run: attacks::on_evidence,
    },
    Scenario {
        name: "evidence-edited-ledger",
        about: "one edited ledger record is NOT ESTABLISHED and named",
        limit_s: 300,
        long_factor: 1,
        needs: Fetched,
        run: evidence::edited_ledger,
    },
    Scenario {
        name: "evidence-wrong-nonce",
        about: "evidence under another nonce is NOT ESTABLISHED",
        limit_s: 300,
        long_factor: 1,
        needs: Fetched,
        run: evidence::wrong_nonce,
    },
    Scenario {
        name: "evidence-other-machine",
        about: "evidence of another TPM is NOT ESTABLISHED",
        limit_s: 600,
        long_factor: 1,
        needs: Second,
        run: evidence::other_machine,
    },
    Scenario {
        name: "tls-key-attested",
        about: "fetch establishes the evidence and pins the gateway's key; the OpenAI client works with the pin",
        limit_s: 420,
        long_factor: 1,
        needs: Serving,
        run: attested_tls::tls_key_attested,
    },
    Scenario {
        name: "proxy-refuses-unattested",
        about: "the proxy serves an unchanged client, and nothing reaches an impostor or a machine that is not trusted",
        limit_s: 900,
        long_factor: 1,
        needs: Serving,
        run: attested_tls::proxy_refuses_unattested,
    },
    Scenario {
        name: "enrolled-over-gateway",
        about: "an auditor enrols the machine over the gateway; its evidence is ESTABLISHED with that pin",
        limit_s: 300,
        long_factor: 1,
        needs: Serving,
        run: enrolment::over_gateway,
    },
    Scenario {
        name: "enrolled-by-stick",
        about: "the same by files on a stick that is plugged in twice, evidence included",
        limit_s: 420,
        long_factor: 1,
        needs: Serving,
        run: enrolment::by_stick,
    },
    Scenario {
        name: "enrolment-of-another-tpm",
        about: "another TPM's answer is refused, and a key that was never enrolled is named as such",
        limit_s: 600,
        long_factor: 1,
        needs: Second,
        run: enrolment::of_another_tpm,
    },
    Scenario {
        name: "bundle-flipped-byte",
        about: "a bundle with one flipped byte is refused and not served",
        limit_s: 300,
        long_factor: 1,
        needs: Ready,
        run: bundles::flipped_byte,
    },
    Scenario {
        name: "bundle-one-signature",
        about: "a bundle with one signature of the two needed is refused and not served",
        limit_s: 300,
        long_factor: 1,
        needs: Ready,
        run: bundles::one_signature,
    },
    Scenario {
        name: "bundle-extra-file",
        about: "a bundle with a file that nobody signed is refused and not served",
        limit_s: 300,
        long_factor: 1,
        needs: Ready,
        run: bundles::extra_file,
    },
    Scenario {
        name: "sealed-bundle",
        about: "a bundle encrypted to one enrolled machine runs there, and another TPM's machine says whose it is",
        limit_s: 900,
        long_factor: 1,
        needs: Second,
        run: bundles::sealed,
    },
    Scenario {
        name: "bad-requests",
        about: "each bad request gets its status code and error object; a good one still works",
        limit_s: 420,
        long_factor: 1,
        needs: Serving,
        run: requests::bad_requests,
    },
    Scenario {
        name: "no-client-certificate",
        about: "a client without certificate gets no HTTP answer",
        limit_s: 120,
        long_factor: 1,
        needs: Serving,
        run: requests::no_client_certificate,
    },
    Scenario {
        name: "foreign-client-certificate",
        about: "a client with a certificate of another authority gets no HTTP answer",
        limit_s: 120,
        long_factor: 1,
        needs: Serving,
        run: requests::foreign_client_certificate,
    },
    Scenario {
        name: "concurrent-requests",
        about: "three requests at once are answered, each as if it were alone",
        limit_s: 900,
        long_factor: 1,
        needs: Serving,
        run: requests::concurrent,
    },
    Scenario {
        name: "cancelled-request",
        about: "a client that leaves is recorded as such, and the next one is answered",
        limit_s: 420,
        long_factor: 1,
        needs: Serving,
        run: requests::cancelled,
    },
    Scenario {
        name: "state-persists",
        about: "after a reboot the TPM unlocks the state and the ledger continues",
        limit_s: 900,
        long_factor: 1,
        needs: Serving,
        run: boot::state_persists,
    },
    Scenario {
        name: "power-cut",
        about: "an exchange that was acknowledged is in the ledger after a power cut",
        limit_s: 900,
        long_factor: 10,
        needs: Serving,
        run: boot::power_cut,
    },
    Scenario {
        name: "image-rolled-back",
        about: "an older image, correctly signed, is refused until a quorum allows it; its PCRs are those foreseen",
        limit_s: 600,
        long_factor: 1,
        needs: Serving,
        run: rollback::image,
    },
    Scenario {
        name: "bundle-rolled-back",
        about: "after a reboot a bundle below the version that has run is refused",
        limit_s: 600,
        long_factor: 1,
        needs: Serving,
        run: rollback::bundle,
    },
    Scenario {
        name: "pcr-key-rotated",
        about: "the state follows a new key of PCR policies, and opens no more by the one before",
        limit_s: 900,
        long_factor: 1,
        needs: Ready,
        run: rotation::pcr_key,
    },
    Scenario {
        name: "factory-reset",
        about: "a signed order destroys the state: neither disk nor copy opens afterwards, a new state begins",
        limit_s: 900,
        long_factor: 1,
        needs: Ready,
        run: reset::factory_reset,
    },
    Scenario {
        name: "smbios-cmdline-injected",
        about: "whatever SMBIOS adds to the command line, the machine stops before anything of ours runs",
        limit_s: 900,
        long_factor: 1,
        needs: Ready,
        run: tamper::smbios_cmdline_injected,
    },
    Scenario {
        name: "dbx-update-forecast",
        about: "a dbx update is foreseen to the bit; a signed order keeps the state open, a new packing the sealed bundle",
        limit_s: 900,
        long_factor: 1,
        needs: Ready,
        run: reseal::dbx_update_forecast,
    },
    Scenario {
        name: "update-applied",
        about: "a later image from a medium runs, is blessed, and its evidence is ESTABLISHED",
        limit_s: 900,
        long_factor: 1,
        needs: Ready,
        run: update::applied,
    },
    Scenario {
        name: "update-falls-back",
        about: "a signed image that is never healthy is given up after its third try, then the old one serves",
        limit_s: 1200,
        long_factor: 1,
        needs: Ready,
        run: update::falls_back,
    },
    Scenario {
        name: "update-refused",
        about: "an update that was changed, and one to an older image, are refused",
        limit_s: 420,
        long_factor: 1,
        needs: Ready,
        run: update::refused,
    },
    Scenario {
        name: "update-power-cut",
        about: "power cuts at random moments of an update leave a machine that boots",
        limit_s: 1200,
        long_factor: 7,
        needs: Ready,
        run: update::power_cut,
    },
    Scenario {
        name: "state-rolled-back",
        about: "a disk put back as it was one boot ago stops the agent",
        limit_s: 900,
        long_factor: 1,
        needs: Ready,
        run: rollback::state,
    },
    Scenario {
        name: "other-tpm-does-not-unlock",
        about: "the disk in a machine with another TPM does not unlock",
        limit_s: 420,
        long_factor: 1,
        needs: Ready,
        run: tamper::other_tpm_does_not_unlock,
    },
    Scenario {
        name: "secure-boot-off",
        about: "with Secure Boot switched off the state stays closed",
        limit_s: 420,
        long_factor: 1,
        needs: Ready,
        run: secure_boot::off,
    },
    Scenario {
        name: "db-key-added",
        about: "with another key in db beside ours the state stays closed",
        limit_s: 420,
        long_factor: 1,
        needs: Ready,
        run: secure_boot::db_key_added,
    },
    Scenario {
        name: "recovery-key",
        about: "the escrowed recovery key is on no console, and opens the state on another computer",
        limit_s: 300,
        long_factor: 1,
        needs: Ready,
        run: recovery::escrowed_key,
    },
    Scenario {
        name: "dbx-update-without-reseal",
        about: "the same dbx update without an order keeps the state closed",
        limit_s: 420,
        long_factor: 1,
        needs: Ready,
        run: reseal::dbx_update_without_reseal,
    },
    Scenario {
        name: "reseal-order-refused",
        about: "a reseal order with one signature, or for another machine, is refused",
        limit_s: 300,
        long_factor: 1,
        needs: Ready,
        run: reseal::reseal_order_refused,
    },
    Scenario {
        name: "reset-order-refused",
        about: "an order with one signature, or for another state, destroys nothing",
        limit_s: 300,
        long_factor: 1,
        needs: Ready,
        run: reset::order_refused,
    },
];

/// Scenarios that run with `--long` or by their names, since every boot is minutes of emulation: each with the one that
/// shows the same of the appliance by another way.
pub const ONLY_LONG: &[(&str, &str)] = &[
    ("setup-mode-enrolled", "installed-from-stick"),
    ("installed-onto-named-disk", "installed-from-stick"),
    ("esp-sysext-injected", "esp-credential-injected"),
    ("second-disk", "root-swapped"),
    ("db-key-added", "secure-boot-off"),
    ("dbx-update-without-reseal", "secure-boot-off"),
    ("state-persists", "power-cut"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_long_run_is_shown_by_a_scenario_that_does_not() {
        let waits = |name: &str| ONLY_LONG.iter().any(|(waiting, _)| *waiting == name);
        for (waiting, instead) in ONLY_LONG {
            for name in [waiting, instead] {
                assert!(ALL.iter().any(|scenario| scenario.name == *name), "{name}");
            }
            assert!(!waits(instead), "{instead} waits, too");
        }
    }

    #[test]
    fn names_are_unique_file_names() {
        let mut names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        assert!(
            names
                .iter()
                .all(|name| name.bytes().all(|b| matches!(b, b'-' | b'0'..=b'9' | b'a'..=b'z')))
        );
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
