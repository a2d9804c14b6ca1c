//! The site configuration in the signed image.

use std::path::Path;

use anyhow::Context as _;
use evidence::format::Site;
use evidence::site::SITE_BYTES_MAX;

use crate::files;

/// The configuration, with its text; its clients' authority is the one beside it.
pub(crate) fn read(folder: &Path) -> anyhow::Result<(String, Site)> {
    let shown = folder.display();
    let read = |name: &str| {
        files::read_bounded(&folder.join(name), SITE_BYTES_MAX as u64)
            .with_context(|| format!("cannot read {shown}/{name}"))
    };
    let text = String::from_utf8(read("site.json")?)
        .with_context(|| format!("{shown}/site.json is not UTF-8"))?;
    let site = Site::parse(&text, &read("client-ca.pem")?).with_context(|| shown.to_string())?;
    Ok((text, site))
}
