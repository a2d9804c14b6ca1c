//! PCR 11: the UKI's sections, then the boot phases.

use super::Predicted;
use crate::pe::{Pe, PeError};

/// Sections that systemd-stub measures, in its order (systemd 257, src/fundamental/uki.h); `.pcrsig` is left out,
/// since it is made from the others.
const MEASURED: &[&str] = &[
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat",
    ".pcrpkey",
];
/// Sections that systemd-stub would measure or choose by, which our images do not have: with one of them the
/// prediction below would be wrong.
const UNEXPECTED: &[&[u8]] = &[b".profile", b".dtbauto", b".hwids", b".efifw"];
/// What systemd-pcrextend measures until the boot is complete, in order.
pub const PHASES: &[&str] = &["enter-initrd", "leave-initrd", "sysinit", "ready"];

/// Why PCR 11 cannot be predicted.
#[derive(Debug, thiserror::Error)]
pub enum UkiError {
    /// The UKI is no PE image.
    #[error(transparent)]
    Pe(#[from] PeError),
    /// It has a section that changes what is measured.
    #[error("the UKI has a section {name}, which this prediction does not know")]
    Unexpected {
        /// The section.
        name: String,
    },
    /// It lacks a section that every UKI of ours has.
    #[error("the UKI has no section {name}")]
    Missing {
        /// The section.
        name: &'static str,
    },
}

/// The measurements of PCR 11 after the given phases.
pub fn sections_and_phases(uki: &[u8], phases: &[&str]) -> Result<Vec<Predicted>, UkiError> {
    let pe = Pe::parse(uki)?;
    if let Some(name) = pe.section_names().find(|name| UNEXPECTED.contains(name)) {
        return Err(UkiError::Unexpected { name: String::from_utf8_lossy(name).into_owned() });
    }
    for name in [".linux", ".osrel", ".cmdline", ".initrd", ".pcrpkey"] {
        if pe.section(name).is_none() {
            return Err(UkiError::Missing { name });
        }
    }
    let mut measurements = Vec::new();
    for name in MEASURED {
        if let Some(content) = pe.section(name) {
            let name_and_nul = [name.as_bytes(), b"\0"].concat();
            measurements.push(Predicted::of(&format!("name of section {name}"), &name_and_nul));
            measurements.push(Predicted::of(&format!("section {name}"), &content));
        }
    }
    let phase = |phase: &&str| Predicted::of(&format!("phase {phase}"), phase.as_bytes());
    measurements.extend(phases.iter().map(phase));
    Ok(measurements)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pe::tests::image;
    use evidence::pcr::Pcr;
    use std::fs;
    use std::process::Command;

    fn pcr11(uki: &[u8], phases: &[&str]) -> Result<Pcr, UkiError> {
        sections_and_phases(uki, phases).map(|measured| crate::predict::fold(&measured))
    }

    const SECTIONS: &[(&str, &[u8])] = &[
        (".osrel", b"ID=casemate\n"),
        (".cmdline", b"panic=5"),
        (".pcrpkey", b"-----BEGIN PUBLIC KEY-----\n"),
        (".sbat", b"sbat,1\n"),
        (".uname", b"6.12"),
        (".linux", b"kernel"),
        (".initrd", b"initrd"),
    ];

    #[test]
    fn the_order_in_the_file_does_not_matter_and_content_does() {
        let forward = pcr11(&image(SECTIONS), PHASES).unwrap();
        let backward: Vec<_> = SECTIONS.iter().copied().rev().collect();
        assert_eq!(pcr11(&image(&backward), PHASES).unwrap(), forward);
        let mut changed = SECTIONS.to_vec();
        changed[1].1 = b"panic=6";
        assert_ne!(pcr11(&image(&changed), PHASES).unwrap(), forward);
        assert_ne!(pcr11(&image(SECTIONS), &PHASES[..3]).unwrap(), forward);
    }

    #[test]
    fn a_section_that_the_prediction_does_not_know_is_refused() {
        let mut sections = SECTIONS.to_vec();
        sections.push((".profile", b"ID=x"));
        let error = pcr11(&image(&sections), PHASES).unwrap_err();
        assert!(matches!(error, UkiError::Unexpected { .. }), "{error}");
    }

    #[test]
    fn a_uki_without_initrd_is_refused() {
        let error = pcr11(&image(&SECTIONS[..6]), PHASES).unwrap_err();
        assert!(matches!(error, UkiError::Missing { name: ".initrd" }), "{error}");
    }

    #[test]
    fn systemd_measure_agrees() {
        let measure = "/usr/lib/systemd/systemd-measure";
        if !std::path::Path::new(measure).exists() {
            eprintln!("skipped: no {measure} here (Debian package systemd)");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(measure);
        command.args(["calculate", "--bank=sha256", "--json=short"]);
        command.arg(format!("--phase={}", PHASES.join(":")));
        for (name, content) in SECTIONS {
            let name = name.trim_start_matches('.');
            let file = folder.path().join(name);
            fs::write(&file, content).unwrap();
            command.arg(format!("--{name}={}", file.display()));
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let expected = report["sha256"][0]["hash"].as_str().unwrap();
        assert_eq!(pcr11(&image(SECTIONS), PHASES).unwrap().to_string(), expected);
    }
}
