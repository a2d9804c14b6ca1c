//! A verdict as lines: one per claim, its facts below it, then what is unexplained, as of when, and the verdict.

use std::fmt::Write as _;

use super::{Filing, UNEXPLAINED_SHOWN_MAX};

pub(crate) fn lines(filing: &Filing) -> anyhow::Result<String> {
    let (verdict, lang) = (&filing.verdict, filing.lang);
    let mut text = String::new();
    for claim in &verdict.claims {
        let (status, id) = (lang.status(claim.status), lang.claim(claim.id));
        writeln!(text, "{status:<15}  {id:<20}  {}", lang.reason(&claim.reason))?;
        for fact in &claim.facts {
            writeln!(text, "{:<37}  · {}", "", lang.reason(fact))?;
        }
    }
    for event in verdict.unexplained.iter().take(UNEXPLAINED_SHOWN_MAX) {
        writeln!(text, "{}", lang.unexplained(event))?;
    }
    if filing.unshown() > 0 {
        writeln!(text, "{}", lang.more(filing.unshown()))?;
    }
    writeln!(text, "{}", lang.as_of(verdict.as_of.created, filing.now))?;
    if let Some(ahead_s) = filing.ahead_s() {
        writeln!(text, "{}", lang.ahead(ahead_s))?;
    }
    writeln!(text, "{}", lang.verdict(verdict.established()))?;
    Ok(text)
}
