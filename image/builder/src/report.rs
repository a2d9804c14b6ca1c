//! The report for people: one HTML page that needs nothing else, saying what is in the image and why.

use std::fmt::Write as _;

use crate::inventory::{Inventory, Licence, Reasoned};

const STYLE: &str = "body{font:15px/1.45 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;width:100%;margin:.5em 0 2em}th,td{border-bottom:1px solid #ccc;padding:.25em .6em;\
text-align:left;vertical-align:top}th{background:#f2f2f2}td.n{text-align:right;white-space:nowrap}\
code{font-size:90%;overflow-wrap:anywhere}.warn{background:#fff3cd;padding:.5em 1em}";

/// What the page says beside the inventory.
#[derive(Debug)]
pub(crate) struct Heading<'a> {
    pub(crate) version: &'a str,
    pub(crate) profile: &'a str,
    pub(crate) root_hash: &'a str,
    pub(crate) kernel: &'a str,
    pub(crate) created: &'a str,
    /// Of the disk image.
    pub(crate) content_bytes: u64,
}

/// The page.
pub(crate) fn page(heading: &Heading<'_>, inventory: &Inventory) -> String {
    let mut page = Page::default();
    page.start(heading, inventory);
    page.table("Open ports", &["address (unit)"], inventory.ports.iter().map(|p| [code(p)]));
    page.table(
        "set-user-ID and set-group-ID files",
        &["path"],
        inventory.setid.iter().map(|p| [code(p)]),
    );
    page.table(
        "Accounts (none can log in)",
        &["name", "uid", "shell"],
        inventory.users.iter().map(|u| [text(&u.name), number(&u.uid), code(&u.shell)]),
    );
    page.table(
        "Services and their exposure (systemd-analyze security; 0 is closed, 10 open)",
        &["service", "exposure"],
        inventory.units.iter().map(|u| [code(&u.name), number(&format!("{:.1}", u.exposure))]),
    );
    page.table(
        "Programs",
        &["path", "bytes"],
        inventory.programs.iter().map(|p| [code(&p.path), number(&p.bytes.to_string())]),
    );
    page.reasons("Kernel command line", &inventory.kernel_options);
    page.reasons("Kernel modules (their dependencies follow)", &inventory.modules);
    page.table(
        "Debian packages of which files are in the image",
        &["package", "version", "bytes in the image", "licences", "why"],
        inventory.packages.iter().map(|p| {
            [
                code(&p.locked.name),
                code(&p.locked.version),
                number(&p.bytes.to_string()),
                text(&p.licences.iter().map(Licence::text).collect::<Vec<_>>().join(", ")),
                text(&p.reason),
            ]
        }),
    );
    page.table(
        "Rust crates in the agent's programs",
        &["crate", "version", "licence"],
        inventory.crates.iter().map(|c| [code(&c.name), code(&c.version), text(&c.licence)]),
    );
    page.0.push_str("</body></html>\n");
    page.0
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn start(&mut self, heading: &Heading<'_>, inventory: &Inventory) {
        let Heading { version, profile, root_hash, kernel, created, content_bytes } = heading;
        self.0.push_str("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
        self.0.push_str(
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        );
        self.line(&format!("<title>casemate {}</title>", escape(version)));
        self.line(&format!("<style>{STYLE}</style></head><body>"));
        self.line(&format!("<h1>casemate {}: what is in the image</h1>", escape(version)));
        if *profile != "release" {
            let note = format!("Profile {}: this is not a release.", escape(profile));
            self.line(&format!("<p class=\"warn\">{note}</p>"));
        }
        let bytes = inventory.root_bytes.to_string();
        let content = content_bytes.to_string();
        let programs = inventory.programs_in_path().to_string();
        let rows = [
            ["Root hash (dm-verity)", root_hash],
            ["Kernel", kernel],
            ["Date of the inputs", created],
            ["Bytes of the disk image's content (4 KiB blocks that are not zeros)", &content],
            ["Bytes of the root tree's files", &bytes],
            ["Programs in PATH", &programs],
        ];
        self.table(
            "Identity",
            &["", ""],
            rows.iter().map(|[name, value]| [text(name), code(value)]),
        );
    }

    fn reasons(&mut self, title: &str, entries: &[Reasoned]) {
        let rows = entries.iter().map(|entry| [code(&entry.entry), text(&entry.reason)]);
        self.table(title, &["entry", "why"], rows);
    }

    fn table<const N: usize>(
        &mut self,
        title: &str,
        columns: &[&str; N],
        rows: impl ExactSizeIterator<Item = [String; N]>,
    ) {
        self.line(&format!("<h2>{} ({})</h2>", escape(title), rows.len()));
        if rows.len() == 0 {
            self.line("<p>None.</p>");
            return;
        }
        let head: String = columns.iter().fold(String::new(), |mut head, column| {
            // Writing to a String cannot fail.
            let _: std::fmt::Result = write!(head, "<th>{}</th>", escape(column));
            head
        });
        self.line(&format!("<table><tr>{head}</tr>"));
        for row in rows {
            self.line(&format!("<tr>{}</tr>", row.concat()));
        }
        self.line("</table>");
    }

    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }
}

fn text(value: &str) -> String {
    format!("<td>{}</td>", escape(value))
}

fn code(value: &str) -> String {
    format!("<td><code>{}</code></td>", escape(value))
}

fn number(value: &str) -> String {
    format!("<td class=\"n\">{}</td>", escape(value))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::User;

    #[test]
    fn what_the_image_says_cannot_change_the_page() {
        let inventory = Inventory {
            packages: Vec::new(),
            crates: Vec::new(),
            programs: Vec::new(),
            units: Vec::new(),
            ports: Vec::new(),
            setid: Vec::new(),
            users: vec![User {
                name: "<script>".to_owned(),
                uid: "\"&".to_owned(),
                shell: String::new(),
            }],
            kernel_options: Vec::new(),
            modules: Vec::new(),
            root_bytes: 0,
        };
        let heading = Heading {
            version: "1<",
            profile: "development",
            root_hash: "00",
            kernel: "6",
            created: "2026-01-01T00:00:00Z",
            content_bytes: 7_340_032,
        };
        let page = page(&heading, &inventory);
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script"));
        assert!(page.contains("<td><code>7340032</code></td>"), "{page}");
        assert!(page.contains("not a release") && page.contains("(0)</h2>\n<p>None.</p>"));
    }
}
