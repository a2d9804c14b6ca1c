//! What others recommend for the kernel's configuration, compared with ours.
//! Invariant: each recommendation holds, or a fragment says why not, and says so only where it is true.

use std::path::{Path, PathBuf};

use super::Kernel;
use super::config::{Resolved, fragments, resolved_file};

const KSPP_FILE: &str = "kernel-config/kspp.list";
/// Begins the reason of an option that a recommendation speaks against.
const AGAINST: &str = "against KSPP: ";

/// A recommendation: one of the alternatives should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Recommendation {
    by: String,
    /// Option and value.
    alternatives: Vec<(String, String)>,
}

impl Recommendation {
    /// Does a configuration follow it?
    fn holds(&self, resolved: &Resolved) -> bool {
        let values = resolved.values();
        self.alternatives.iter().any(|(option, wanted)| {
            let found = values.get(option.as_str()).copied().unwrap_or("n");
            match wanted.strip_prefix('*').and_then(|rest| rest.strip_suffix('*')) {
                Some(word) => found.trim_matches('"').split(',').any(|one| one == word),
                None => found == wanted,
            }
        })
    }
}

/// Reads kernel-config/kspp.list.
fn recommendations(source: &Path) -> Vec<Recommendation> {
    let path = source.join(KSPP_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let by = words.next().unwrap_or_default().to_owned();
        let alternatives: Option<Vec<_>> = words
            .map(|word| word.split_once('='))
            .map(|pair| pair.map(|(option, value)| (option.to_owned(), value.to_owned())))
            .collect();
        alternatives
            .filter(|alternatives| !alternatives.is_empty())
            .map(|alternatives| Recommendation { by, alternatives })
            .unwrap_or_else(|| panic!("{KSPP_FILE}: {line}"))
    };
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(parse).collect()
}

/// This repository.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_recommendation_that_fails_is_explained_and_no_explanation_is_stale() {
    for kernel in [Kernel::Own, Kernel::Nvidia] {
        check(kernel);
    }
}

fn check(kernel: Kernel) {
    let resolved = Resolved::read(&source().join(resolved_file(kernel))).unwrap();
    let asked = fragments(&source(), kernel).unwrap();
    let failing: Vec<Recommendation> =
        recommendations(&source()).into_iter().filter(|one| !one.holds(&resolved)).collect();
    let explained: Vec<&str> = asked
        .iter()
        .filter(|one| one.reason.starts_with(AGAINST))
        .map(|one| one.option.as_str())
        .collect();
    let touches = |one: &Recommendation, option: &str| {
        one.alternatives.iter().any(|(name, _)| name == option)
    };
    for one in &failing {
        assert!(
            explained.iter().any(|option| touches(one, option)),
            "{one:?} does not hold, and no fragment says `{AGAINST}`"
        );
    }
    for option in explained {
        assert!(
            failing.iter().any(|one| touches(one, option)),
            "{option}: `{AGAINST}` is stale; no recommendation about it fails"
        );
    }
}

#[test]
fn the_recommendations_are_all_there() {
    let all = recommendations(&source());
    let by = |who: &str| all.iter().filter(|one| one.by == who).count();
    assert!(by("kspp") >= 90 && by("defconfig") >= 50, "{} recommendations", all.len());
}

#[test]
fn a_recommendation_holds_by_any_alternative_and_by_a_word_of_a_list() {
    let resolved =
        Resolved::parse(Path::new("x"), "CONFIG_A=y\nCONFIG_LSM=\"lockdown,yama\"\n").unwrap();
    let holds = |alternatives: &[(&str, &str)]| {
        let own = |(option, value): &(&str, &str)| ((*option).to_owned(), (*value).to_owned());
        let alternatives = alternatives.iter().map(own).collect();
        Recommendation { by: "kspp".to_owned(), alternatives }.holds(&resolved)
    };
    assert!(holds(&[("A", "y")]) && holds(&[("B", "n")]) && holds(&[("B", "y"), ("A", "y")]));
    assert!(!holds(&[("A", "n")]) && !holds(&[("B", "y")]) && !holds(&[("A", "m")]));
    assert!(holds(&[("LSM", "*yama*")]) && !holds(&[("LSM", "*yam*")]));
}
