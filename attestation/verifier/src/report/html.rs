//! A verdict as one page that can be filed and printed: no script, nothing from elsewhere.
//!
//! Invariant: whatever is not written here goes through [`Escaped`], in text and in attributes alike.

use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evidence::pcr::HashAlg;
use evidence::verify::{Claim, Status};

use super::{Filing, UNEXPLAINED_SHOWN_MAX, ear};

/// Colours repeat what words say: a page printed in black loses nothing.
const STYLE: &str = "
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #111; background: #fff;
  max-width: 60em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.4em; margin: 0; } h2 { font-size: 1.1em; margin: 1.6em 0 .4em; }
.verdict { border: 3px solid; padding: .6em 1em; margin: 1em 0; font-size: 1.3em; font-weight: 700; }
.established { color: #14532d; } .refuted { color: #991b1b; } .not-established { color: #78350f; }
table { border-collapse: collapse; width: 100%; }
th, td { border-top: 1px solid #bbb; padding: .35em .6em .35em 0; text-align: left; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
ul { margin: .3em 0 0; padding-left: 1.1em; color: #444; font-size: .92em; }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
td { overflow-wrap: anywhere; }
@media print { body { margin: 0; max-width: none; font-size: 10pt; } tr { break-inside: avoid; } }
";

/// Text that is only text wherever it stands in a page.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() || is_direction(c) => {
                    f.write_char(char::REPLACEMENT_CHARACTER)?
                }
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Characters that turn the direction of the text around them, so that it reads as another text.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(crate) fn page(filing: &Filing) -> anyhow::Result<String> {
    let Filing { verdict, lang, .. } = filing;
    let mut page = head(filing);
    let class = if verdict.established() { "established" } else { "refuted" };
    let title = Escaped(lang.title());
    writeln!(page, "<h1>{title}</h1>")?;
    let words = Escaped(lang.verdict(verdict.established()));
    writeln!(page, "<p class=\"verdict {class}\">{words}</p>")?;
    writeln!(page, "<p>{}</p>", Escaped(&lang.as_of(verdict.as_of.created, filing.now)))?;
    if let Some(ahead_s) = filing.ahead_s() {
        writeln!(page, "<p>{}</p>", Escaped(&lang.ahead(ahead_s)))?;
    }
    writeln!(page, "<h2>{}</h2>\n<table>", Escaped(lang.claims_title()))?;
    for claim in &verdict.claims {
        write_claim(&mut page, filing, claim)?;
    }
    writeln!(page, "</table>")?;
    write_unexplained(&mut page, filing)?;
    write_ledger(&mut page, filing)?;
    write_inputs(&mut page, filing)?;
    writeln!(page, "</body>\n</html>")?;
    Ok(page)
}

fn head(filing: &Filing) -> String {
    let lang = filing.lang;
    let digest = HashAlg::Sha256.hash(&[STYLE.as_bytes()]);
    let style_hash = STANDARD.encode(digest.as_bytes());
    let csp = format!(
        "default-src 'none'; style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'"
    );
    let (code, title) = (lang.code(), Escaped(lang.title()));
    format!(
        "<!DOCTYPE html>\n<html lang=\"{code}\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{csp}\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
}

fn write_claim(page: &mut String, filing: &Filing, claim: &Claim) -> fmt::Result {
    let lang = filing.lang;
    let class = claim.status.name();
    let (id, status) = (Escaped(lang.claim(claim.id)), Escaped(lang.status(claim.status)));
    let reason = Escaped(lang.reason(&claim.reason));
    write!(page, "<tr><th>{id}</th><th class=\"{class}\">{status}</th><td>{reason}")?;
    if !claim.facts.is_empty() {
        page.push_str("<ul>");
        for fact in &claim.facts {
            write!(page, "<li>{}</li>", Escaped(lang.reason(fact)))?;
        }
        page.push_str("</ul>");
    }
    writeln!(page, "</td></tr>")
}

fn write_unexplained(page: &mut String, filing: &Filing) -> fmt::Result {
    let (events, lang) = (&filing.verdict.unexplained, filing.lang);
    writeln!(page, "<h2>{}</h2>", Escaped(lang.unexplained_title()))?;
    if events.is_empty() {
        // Without a firmware log that was read, there is nothing of which to say this.
        let read = filing.verdict.status(evidence::verify::ClaimId::FirmwareLog);
        let words = if read == Status::Established { lang.none() } else { lang.unknown() };
        return writeln!(page, "<p>{}</p>", Escaped(words));
    }
    writeln!(page, "<ul>")?;
    for event in events.iter().take(UNEXPLAINED_SHOWN_MAX) {
        writeln!(page, "<li>{}</li>", Escaped(&lang.unexplained(event)))?;
    }
    if filing.unshown() > 0 {
        writeln!(page, "<li>{}</li>", Escaped(&lang.more(filing.unshown())))?;
    }
    writeln!(page, "</ul>")
}

fn write_ledger(page: &mut String, filing: &Filing) -> fmt::Result {
    let lang = filing.lang;
    writeln!(page, "<h2>{}</h2>", Escaped(lang.ledger_title()))?;
    match &filing.verdict.head {
        None => writeln!(page, "<p>{}</p>", Escaped(lang.unknown())),
        Some(head) => {
            let (origin, root) = (Escaped(&head.origin), hex::encode(head.root));
            let size = Escaped(&lang.records(head.size)).to_string();
            writeln!(page, "<p>{size}<br><code>{root}</code><br><code>{origin}</code></p>")
        }
    }
}

fn write_inputs(page: &mut String, filing: &Filing) -> fmt::Result {
    let lang = filing.lang;
    writeln!(page, "<h2>{}</h2>\n<table>", Escaped(lang.inputs_title()))?;
    for input in &filing.inputs {
        let (role, path, sha256) =
            (Escaped(input.role), Escaped(&input.path), Escaped(&input.sha256));
        writeln!(page, "<tr><th>{role}</th><td>{path}<br><code>{sha256}</code></td></tr>")?;
    }
    let nonce = hex::encode(filing.nonce);
    writeln!(page, "<tr><th>nonce</th><td><code>{nonce}</code></td></tr>")?;
    let build = ear::build();
    writeln!(page, "<tr><th>{}</th><td>{}</td></tr>", Escaped(lang.judge()), Escaped(&build))?;
    writeln!(page, "</table>")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use evidence::fixture::{Appliance, log, policy, reference};
    use evidence::time::Timestamp;
    use evidence::verify::verify;

    use super::super::Input;
    use super::*;
    use crate::words::Language;

    const NONCE: [u8; 32] = [0xa5; 32];
    const HOSTILE: &str =
        "\"'><script>alert(1)</script><img src=x onerror=y>&amp;\u{202e}\u{1b}[2J";

    /// Whatever of the evidence can be shown is hostile, and so is the file's name.
    fn hostile() -> Filing {
        let mut appliance = Appliance::booted();
        appliance.firmware.push(log::measured(
            8,
            evidence::eventlog::EventKind::IPL,
            HOSTILE.as_bytes(),
        ));
        appliance.profile = HOSTILE.to_owned();
        let mut evidence = appliance.evidence(NONCE);
        evidence.created = HOSTILE.to_owned();
        evidence.agent_log[0].kind = HOSTILE.to_owned();
        let mut reference = reference();
        reference.cmdline = HOSTILE.to_owned();
        let verdict = verify(&evidence, &reference, &policy(), &appliance.machine(), NONCE);
        let inputs = vec![Input::new("evidence", Path::new(HOSTILE), b"{}")];
        let now = Timestamp::from_unix(1_800_000_000);
        Filing { verdict, inputs, nonce: NONCE, now, lang: Language::En }
    }

    /// Every tag of a page, attributes included.
    fn tags(page: &str) -> Vec<&str> {
        page.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()).collect()
    }

    #[test]
    fn hostile_text_stays_text() {
        let filing = hostile();
        assert!(filing.verdict.unexplained.iter().any(|event| event.text.contains("<script>")));
        let page = page(&filing).unwrap();
        let known = [
            "!DOCTYPE html",
            "html lang=\"en\"",
            "head",
            "meta charset=\"utf-8\"",
            "meta name=\"viewport\" content=\"width=device-width\"",
            "title",
            "/title",
            "style",
            "/style",
            "/head",
            "body",
            "h1",
            "/h1",
            "p class=\"verdict refuted\"",
            "p",
            "/p",
            "h2",
            "/h2",
            "table",
            "/table",
            "tr",
            "/tr",
            "th",
            "/th",
            "td",
            "/td",
            "ul",
            "/ul",
            "li",
            "/li",
            "br",
            "code",
            "/code",
            "th class=\"established\"",
            "th class=\"refuted\"",
            "th class=\"not-established\"",
            "/body",
            "/html",
        ];
        for tag in tags(&page) {
            assert!(known.contains(&tag) || tag.starts_with("meta http-equiv"), "{tag:?}");
        }
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert!(!page.chars().any(|c| is_direction(c) || (c.is_control() && c != '\n')));
        // `http-equiv` is there once, before anything that could be hostile.
        assert_eq!(page.matches("http-equiv").count(), 1);
    }

    #[test]
    fn a_page_needs_nothing_from_elsewhere() {
        let page = page(&hostile()).unwrap();
        for word in ["<script", "<link", "<img", "<iframe", "url(", "@import", "src=x onerror=y>"] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(page.contains("default-src 'none'"));
        // The style that the policy admits is the one that is there.
        let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
        let digest = STANDARD.encode(HashAlg::Sha256.hash(&[style.as_bytes()]).as_bytes());
        assert!(page.contains(&format!("style-src 'sha256-{digest}'")));
    }

    #[test]
    fn a_page_holds_everything_in_either_language() {
        let appliance = Appliance::booted();
        let judged = || {
            let evidence = appliance.evidence(NONCE);
            verify(&evidence, &reference(), &policy(), &appliance.machine(), NONCE)
        };
        for lang in [Language::En, Language::Fr] {
            let inputs = vec![Input::new("evidence", Path::new("evidence.json"), b"{}")];
            let now = Timestamp::from_unix(1_800_000_000);
            let filing = Filing { verdict: judged(), inputs, nonce: NONCE, now, lang };
            let page = page(&filing).unwrap();
            for claim in &filing.verdict.claims {
                assert!(page.contains(&Escaped(lang.reason(&claim.reason)).to_string()));
                for fact in &claim.facts {
                    assert!(page.contains(&Escaped(lang.reason(fact)).to_string()));
                }
            }
            let head = filing.verdict.head.as_ref().unwrap();
            assert!(page.contains(&hex::encode(head.root)) && page.contains(&head.origin));
            assert!(page.contains(&HashAlg::Sha256.hash(&[b"{}"]).to_string()));
            assert!(page.contains("2027-01-15T08:00:00Z") && page.contains("2026-11-01T12:00:00Z"));
            assert!(page.contains(&format!("<html lang=\"{}\">", lang.code())));
            assert!(page.contains(lang.none()));
        }
    }
}
