//! Reasons, in the auditor's language.

use std::fmt;

/// Longest reason, in characters: what it quotes comes from the evidence.
const CHARS_MAX: usize = 2000;

/// Why a claim was judged so; one line, free of control characters, in both languages. What it quotes from
/// an error stays in English.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    en: String,
    fr: String,
}

impl Reason {
    pub(crate) fn new(en: &str, fr: &str) -> Self {
        Self { en: line(en), fr: line(fr) }
    }

    /// In English.
    #[must_use]
    pub fn en(&self) -> &str {
        &self.en
    }

    /// In French.
    #[must_use]
    pub fn fr(&self) -> &str {
        &self.fr
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.en)
    }
}

/// Text that cannot move a terminal's cursor, break the line or fill the screen.
fn line(text: &str) -> String {
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut line: String = text.chars().take(CHARS_MAX).map(shown).collect();
    if line.len() < text.len() && text.chars().count() > CHARS_MAX {
        line.push('…');
    }
    line
}

/// A [`Reason`] from an English and a French format string over the same captured names.
macro_rules! says {
    ($en:literal, $fr:literal) => {
        $crate::verify::Reason::new(&format!($en), &format!($fr))
    };
}
pub(crate) use says;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_harmless_line() {
        let hostile = "a\nESTABLISHED\u{1b}[2J";
        let reason = says!("found {hostile}", "trouvé {hostile}");
        assert_eq!(reason.en(), "found a\u{fffd}ESTABLISHED\u{fffd}[2J");
        let long = "é".repeat(CHARS_MAX + 1);
        assert_eq!(Reason::new(&long, "").en().chars().count(), CHARS_MAX + 1);
        assert!(Reason::new(&long, "").en().ends_with('…'));
    }
}
