//! Where the files of the repository's systemd/ folder go on the appliance.

use std::path::Path;

/// Folder of the appliance for each kind of file, by extension.
const BY_EXTENSION: &[(&str, &str)] = &[
    ("service", "usr/lib/systemd/system"),
    ("socket", "usr/lib/systemd/system"),
    ("mount", "usr/lib/systemd/system"),
    ("automount", "usr/lib/systemd/system"),
    ("target", "usr/lib/systemd/system"),
    ("timer", "usr/lib/systemd/system"),
    ("path", "usr/lib/systemd/system"),
    ("slice", "usr/lib/systemd/system"),
    ("network", "usr/lib/systemd/network"),
    ("netdev", "usr/lib/systemd/network"),
    ("link", "usr/lib/systemd/network"),
    ("rules", "usr/lib/udev/rules.d"),
    ("preset", "usr/lib/systemd/system-preset"),
    ("nft", "etc"),
];
/// Folder of the appliance for whole subfolders.
const BY_FOLDER: &[(&str, &str)] = &[
    ("sysusers.d", "usr/lib/sysusers.d"),
    ("tmpfiles.d", "usr/lib/tmpfiles.d"),
    ("sysctl.d", "usr/lib/sysctl.d"),
    ("modules-load.d", "usr/lib/modules-load.d"),
    ("repart.d", "usr/lib/repart.d"),
];

/// Path on the appliance of `file`, a path relative to systemd/; `None` if its kind is unknown.
pub(crate) fn place(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let folder = file.parent()?.file_name().and_then(|folder| folder.to_str()).unwrap_or_default();
    if let Some((_, target)) = BY_FOLDER.iter().find(|(known, _)| *known == folder) {
        return Some(format!("{target}/{name}"));
    }
    // A drop-in stays in the folder named for its unit.
    if let Some(unit) = folder.strip_suffix(".d") {
        return (unit.contains('.') && name.ends_with(".conf"))
            .then(|| format!("usr/lib/systemd/system/{folder}/{name}"));
    }
    // nftables.service of Debian reads this one file.
    if name == "nftables.conf" {
        return Some("etc/nftables.conf".to_owned());
    }
    let extension = file.extension()?.to_str()?;
    let (_, target) = BY_EXTENSION.iter().find(|(known, _)| *known == extension)?;
    let name = if extension == "nft" { "nftables.conf" } else { name };
    Some(format!("{target}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_folder() {
        for (file, target) in [
            ("casemate-agentd.service", "usr/lib/systemd/system/casemate-agentd.service"),
            ("units/a.socket", "usr/lib/systemd/system/a.socket"),
            ("sysusers.d/casemate.conf", "usr/lib/sysusers.d/casemate.conf"),
            ("tmpfiles.d/casemate.conf", "usr/lib/tmpfiles.d/casemate.conf"),
            ("casemate.nft", "etc/nftables.conf"),
            ("nftables.conf", "etc/nftables.conf"),
            ("network/80-casemate.network", "usr/lib/systemd/network/80-casemate.network"),
            (
                "systemd-networkd.service.d/a.conf",
                "usr/lib/systemd/system/systemd-networkd.service.d/a.conf",
            ),
        ] {
            assert_eq!(place(Path::new(file)).as_deref(), Some(target), "{file}");
        }
    }

    #[test]
    fn an_unknown_kind_has_no_place() {
        for file in ["notes.txt", "etc.d/x.conf", "LICENSE"] {
            assert_eq!(place(Path::new(file)), None, "{file}");
        }
    }
}
