//! What a package is licensed under, as SPDX says it where that is certain, else in the words of its copyright file.
//! Invariant: an identifier stands here only for a name whose meaning the copyright format defines, or that is the
//! identifier itself; names that packages use in different senses (`Artistic`, `X11`, `GPL` without a version) stay.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::Result;
use crate::reasoned;

/// Where overrides are.
pub(super) const LIST: &str = "image/config/licences.list";
/// Longest name of a licence; a longer one is prose.
const NAME_BYTES_MAX: usize = 80;

/// Short names of Debian's copyright format 1.0, "License specification: Short name", in lower case (they are
/// case-insensitive), without versions: <https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/>. The
/// second column is what SPDX calls it (licence list 3.25), the third how it writes versions.
const DEBIAN: &[(&str, &str, Version)] = &[
    ("apache", "Apache", Version::Dotted),
    ("bsd-2-clause", "BSD-2-Clause", Version::None),
    ("bsd-3-clause", "BSD-3-Clause", Version::None),
    ("bsd-4-clause", "BSD-4-Clause", Version::None),
    // There is one version of it.
    ("cc0", "CC0-1.0", Version::None),
    ("expat", "MIT", Version::None),
    ("gfdl-niv", "GFDL", Version::NoInvariants),
    ("gpl", "GPL", Version::OnlyOrLater),
    ("isc", "ISC", Version::None),
    ("lgpl", "LGPL", Version::OnlyOrLater),
    ("mpl", "MPL", Version::Dotted),
    ("zlib", "Zlib", Version::None),
];

/// Names in copyright files that are identifiers of SPDX's list themselves, compared as SPDX does, without case
/// (specification 2.3, annex D).
const SPDX: &[&str] = &[
    "0BSD",
    "Beerware",
    "BSD-4-Clause-UC",
    "BSL-1.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "FSFAP",
    "FSFUL",
    "FSFULLR",
    "Latex2e",
    "MIT",
    "MS-PL",
    "Sleepycat",
    "Unicode-DFS-2016",
    "Unicode-3.0",
];

/// Exceptions that name one text.
const EXCEPTIONS: &[(&str, &str)] = &[("linux-syscall-note exception", "Linux-syscall-note")];

/// How SPDX writes a version behind a name.
#[derive(Clone, Copy, Debug)]
enum Version {
    /// Not at all.
    None,
    /// `Apache-2.0`.
    Dotted,
    /// `GPL-2.0-only`, `GPL-2.0-or-later`.
    OnlyOrLater,
    /// `GFDL-1.3-no-invariants-only`.
    NoInvariants,
}

/// A licence, or several that one file names together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Licence {
    /// An identifier of SPDX's list.
    Identifier(String),
    /// More than an identifier: `A OR B`, `A WITH C`.
    Expression(String),
    /// What SPDX has no certain name for.
    Name(String),
}

impl Licence {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Identifier(text) | Self::Expression(text) | Self::Name(text) => text,
        }
    }
}

/// One expression for all of `licences`, if each has one: every file's licence holds.
pub(crate) fn expression(licences: &[Licence]) -> Option<String> {
    let part = |licence: &Licence| match licence {
        Licence::Name(_) => None,
        Licence::Expression(text) if licences.len() > 1 && text.contains(" OR ") => {
            Some(format!("({text})"))
        }
        Licence::Identifier(text) | Licence::Expression(text) => Some(text.clone()),
    };
    let parts: Vec<String> = licences.iter().map(part).collect::<Option<_>>()?;
    (!parts.is_empty()).then(|| parts.join(" AND "))
}

/// An expression of Cargo's; before SPDX it wrote "or" as a slash.
pub(super) fn of_crate(licence: &str) -> String {
    let parts: Vec<&str> = licence.split('/').map(str::trim).collect();
    parts.join(" OR ")
}

/// Entries of [`LIST`].
#[derive(Debug, Default)]
pub(super) struct Overrides(BTreeMap<String, Override>);

#[derive(Debug)]
struct Override {
    /// Of the copyright file that somebody read.
    sha256: String,
    expression: String,
    used: bool,
}

impl Overrides {
    pub(super) fn read(source: &Path) -> Result<Self> {
        let mut overrides = BTreeMap::new();
        for entry in reasoned::read_open(&source.join(LIST), "package sha256 expression")? {
            let mut fields = entry.fields.into_iter();
            let (package, sha256) =
                (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
            let expression = fields.collect::<Vec<_>>().join(" ");
            overrides.insert(package, Override { sha256, expression, used: false });
        }
        Ok(Self(overrides))
    }

    /// Licences of `package` by its copyright file; or what is missing, in words.
    pub(super) fn licences(
        &mut self,
        package: &str,
        copyright: &[u8],
    ) -> std::result::Result<Vec<Licence>, String> {
        let found = short_names(&String::from_utf8_lossy(copyright));
        match self.0.get_mut(package) {
            None if found.is_empty() => Err(format!(
                "{package}: its copyright file is prose; read it, and write its licence down for SHA-256 {}",
                hex::encode(Sha256::digest(copyright))
            )),
            None => Ok(found),
            Some(_) if !found.is_empty() => {
                Err(format!("{package}: its copyright file is machine-readable; remove the entry"))
            }
            Some(entry) => {
                entry.used = true;
                let sha256 = hex::encode(Sha256::digest(copyright));
                if sha256 != entry.sha256 {
                    return Err(format!(
                        "{package}: its copyright file changed; read it again, its SHA-256 is {sha256}"
                    ));
                }
                Ok(vec![Licence::Expression(entry.expression.clone())])
            }
        }
    }

    /// Entries that no package needed.
    pub(super) fn stale(&self) -> impl Iterator<Item = String> {
        let unused = self.0.iter().filter(|(_, entry)| !entry.used);
        unused.map(|(package, _)| format!("{package}: not in the image; remove the entry"))
    }
}

/// Licences of the `License` fields, each once, in order. Prose has none: only a file that says `Format:` counts.
fn short_names(copyright: &str) -> Vec<Licence> {
    if !copyright.lines().any(|line| line.starts_with("Format:")) {
        return Vec::new();
    }
    let name = |line: &str| line.strip_prefix("License:").map(|name| name.trim().to_owned());
    let mut licences: Vec<Licence> = copyright
        .lines()
        .filter_map(name)
        .filter(|name| !name.is_empty() && name.len() <= NAME_BYTES_MAX)
        .flat_map(|name| match translate(&name) {
            // Each of them holds anyway: the file's licences are all joined.
            Some(Licence::Expression(text)) if !text.contains(" OR ") => {
                text.split(" AND ").map(one).collect()
            }
            Some(licence) => vec![licence],
            None => vec![Licence::Name(name)],
        })
        .collect();
    licences.sort();
    licences.dedup();
    licences
}

/// A `License` synopsis in SPDX's words. `and` binds more than `or`, but not across a comma: those stay as they are.
fn translate(synopsis: &str) -> Option<Licence> {
    if synopsis.contains(',') {
        return None;
    }
    let conjunction = |text: &str| {
        let parts: Vec<String> = text.split(" and ").map(single).collect::<Option<_>>()?;
        Some(parts.join(" AND "))
    };
    let parts: Vec<String> = synopsis.split(" or ").map(conjunction).collect::<Option<_>>()?;
    let text = parts.join(" OR ");
    Some(one(&text))
}

fn one(text: &str) -> Licence {
    let text = text.to_owned();
    if text.contains(' ') { Licence::Expression(text) } else { Licence::Identifier(text) }
}

fn single(name: &str) -> Option<String> {
    let name = name.trim().to_lowercase();
    if let Some((licence, exception)) = name.split_once(" with ") {
        let (_, exception) = EXCEPTIONS.iter().find(|(debian, _)| *debian == exception)?;
        return Some(format!("{} WITH {exception}", single(licence)?));
    }
    if let Some(identifier) = SPDX.iter().find(|identifier| identifier.to_lowercase() == name) {
        return Some((*identifier).to_owned());
    }
    DEBIAN.iter().find_map(|&(debian, spdx, version)| {
        let rest = name.strip_prefix(debian)?;
        versioned(spdx, version, rest)
    })
}

/// `rest` is what follows the name: nothing, or a version, with a plus if later ones will do.
fn versioned(spdx: &str, version: Version, rest: &str) -> Option<String> {
    if let Version::None = version {
        return rest.is_empty().then(|| spdx.to_owned());
    }
    let rest = rest.strip_prefix('-')?;
    let (number, or_later) = rest.strip_suffix('+').map_or((rest, false), |number| (number, true));
    let number = two_part(number)?;
    match version {
        // SPDX has no "or later" for these; a plus would be another expression.
        Version::Dotted if !or_later => Some(format!("{spdx}-{number}")),
        Version::OnlyOrLater if or_later => Some(format!("{spdx}-{number}-or-later")),
        Version::OnlyOrLater => Some(format!("{spdx}-{number}-only")),
        Version::NoInvariants if or_later => {
            Some(format!("{spdx}-{number}-no-invariants-or-later"))
        }
        Version::NoInvariants => Some(format!("{spdx}-{number}-no-invariants-only")),
        Version::None | Version::Dotted => None,
    }
}

/// `2` and `2.0` are one version (copyright format 1.0); SPDX writes the zero.
fn two_part(number: &str) -> Option<String> {
    let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |text: &str| text.len() == 1 && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(major) && is_number(minor)).then(|| format!("{major}.{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(debian: &str, spdx: Option<&str>) {
        let found = translate(debian);
        assert_eq!(found.as_ref().map(Licence::text), spdx, "{debian}");
    }

    #[test]
    fn names_whose_meaning_is_certain_are_translated() {
        for (debian, spdx) in [
            ("Expat", "MIT"),
            ("GPL-2", "GPL-2.0-only"),
            ("GPL-2.0+", "GPL-2.0-or-later"),
            ("LGPL-2.1+", "LGPL-2.1-or-later"),
            ("Apache-2", "Apache-2.0"),
            ("CC0", "CC0-1.0"),
            ("zlib", "Zlib"),
            ("BSD-2-Clause", "BSD-2-Clause"),
            ("0BSD", "0BSD"),
            ("GFDL-NIV-1.3", "GFDL-1.3-no-invariants-only"),
            ("GPL-2+ or LGPL-3+", "GPL-2.0-or-later OR LGPL-3.0-or-later"),
            ("GPL-3+ and ISC", "GPL-3.0-or-later AND ISC"),
            ("ISC and GPL-2 or MIT", "ISC AND GPL-2.0-only OR MIT"),
            ("GPL-2 with Linux-syscall-note exception", "GPL-2.0-only WITH Linux-syscall-note"),
        ] {
            check(debian, Some(spdx));
        }
        assert_eq!(translate("Expat"), Some(Licence::Identifier("MIT".to_owned())));
    }

    #[test]
    fn names_that_may_mean_several_texts_stay() {
        for debian in [
            "Artistic",
            "X11",
            "MIT/X11",
            "GPL",
            "BSD-3-clause or GPL",
            "BSD-3-clause-Carnegie",
            "GPL-2+-with-link-exception",
            "GPL-2+ with OpenSSL exception",
            "public-domain",
            "GPL-2, or ISC and MIT",
            "Apache-2.0+",
            "GPL-2.0.1",
            "GPL-x",
        ] {
            check(debian, None);
        }
    }

    #[test]
    fn short_names_come_from_the_machine_readable_format_only() {
        let text = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
                    Files: *\nLicense: LGPL-2.1+\n text\n\nFiles: x\nLicense: custom\n\n\
                    License: ISC and LGPL-2.1+\n\n\
                    License: LGPL-2.1+\n the text\n";
        let expected = [
            Licence::Identifier("ISC".to_owned()),
            Licence::Identifier("LGPL-2.1-or-later".to_owned()),
            Licence::Name("custom".to_owned()),
        ];
        assert_eq!(short_names(text), expected);
        assert!(short_names("This is free software.\nLicense: see below\n").is_empty());
    }

    #[test]
    fn one_expression_says_that_all_hold() {
        let id = |text: &str| Licence::Identifier(text.to_owned());
        let either = Licence::Expression("A OR B".to_owned());
        assert_eq!(expression(&[id("C"), either.clone()]).as_deref(), Some("C AND (A OR B)"));
        assert_eq!(expression(std::slice::from_ref(&either)).as_deref(), Some("A OR B"));
        assert_eq!(expression(&[either, Licence::Name("custom".to_owned())]), None);
        assert_eq!(expression(&[]), None);
        assert_eq!(of_crate("MIT/Apache-2.0"), "MIT OR Apache-2.0");
        assert_eq!(of_crate("Apache-2.0 / MIT"), "Apache-2.0 OR MIT");
        assert_eq!(of_crate("MIT AND Zlib"), "MIT AND Zlib");
    }

    #[test]
    fn an_override_holds_for_the_file_that_was_read() {
        let source = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(source.path().join("image/config")).unwrap();
        let sha256 = hex::encode(Sha256::digest("prose"));
        let list = format!("a {sha256} MIT OR ISC # both\ngone {sha256} MIT # old\n");
        std::fs::write(source.path().join(LIST), list).unwrap();
        let mut overrides = Overrides::read(source.path()).unwrap();
        let expected = vec![Licence::Expression("MIT OR ISC".to_owned())];
        assert_eq!(overrides.licences("a", b"prose"), Ok(expected));
        for (package, copyright, said) in [
            ("a", &b"other prose"[..], "changed; read it again"),
            ("b", b"prose", "is prose"),
            ("a", b"Format: x\nLicense: MIT\n", "is machine-readable"),
        ] {
            let error = overrides.licences(package, copyright).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(overrides.stale().count(), 1);
    }

    #[test]
    fn our_own_list_is_readable() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let overrides = Overrides::read(&source).unwrap();
        assert!(overrides.0.values().all(|entry| entry.sha256.len() == 64));
        assert!(!overrides.0.is_empty());
    }
}
