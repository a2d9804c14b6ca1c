//! What the signed image says of itself in os-release(5).

/// Longest os-release that is read.
pub(crate) const OS_RELEASE_BYTES_MAX: u64 = 64 << 10;

/// Field with the number that versions are compared by.
const INDEX: &str = "CASEMATE_VERSION_INDEX";

/// Identity of the running image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// `IMAGE_VERSION`.
    pub(crate) version: String,
    /// `CASEMATE_VERSION_INDEX`: grows with each release; what versions are compared by.
    pub(crate) index: u64,
    /// `VARIANT_ID`: `development` or `release`.
    pub(crate) profile: String,
}

/// Why an os-release does not say which image this is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImageError {
    /// A field is absent or empty.
    #[error("os-release has no {field}; this is no casemate image")]
    Missing { field: &'static str },
    /// A field is there twice, so that two readers may differ.
    #[error("os-release has {field} twice")]
    Twice { field: &'static str },
    /// Not a number.
    #[error("os-release has {INDEX}={found:?}; expected a number from 0 to {}", u64::MAX)]
    Index { found: String },
    /// Neither a development nor a release image.
    #[error("os-release has VARIANT_ID={found:?}; expected development or release")]
    Profile { found: String },
}

impl Image {
    /// Reads the text of an os-release.
    pub(crate) fn parse(text: &str) -> Result<Self, ImageError> {
        let version = field(text, "IMAGE_VERSION")?.to_owned();
        let profile = field(text, "VARIANT_ID")?.to_owned();
        if !matches!(profile.as_str(), "development" | "release") {
            return Err(ImageError::Profile { found: profile });
        }
        let index = field(text, INDEX)?;
        let index = index.parse().map_err(|_| ImageError::Index { found: index.to_owned() })?;
        Ok(Self { version, index, profile })
    }
}

fn field<'a>(text: &'a str, field: &'static str) -> Result<&'a str, ImageError> {
    let mut values =
        text.lines().filter_map(|line| line.strip_prefix(field)?.strip_prefix('=')).map(unquote);
    let value = values.next().filter(|value| !value.is_empty());
    let value = value.ok_or(ImageError::Missing { field })?;
    if values.next().is_some() { Err(ImageError::Twice { field }) } else { Ok(value) }
}

/// The values that we read have no escapes: versions and identifiers.
fn unquote(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inner;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_read_with_or_without_quotes() {
        let image = Image::parse(&format!(
            "ID=casemate\nIMAGE_VERSION=\"0.1\"\nVARIANT_ID=release\n{INDEX}=7\n"
        ))
        .unwrap();
        assert_eq!(image, Image { version: "0.1".into(), index: 7, profile: "release".into() });
    }

    #[test]
    fn an_unknown_profile_is_refused() {
        let error = Image::parse("IMAGE_VERSION=1\nVARIANT_ID=server\n").unwrap_err();
        assert_eq!(error, ImageError::Profile { found: "server".into() });
    }

    #[test]
    fn an_index_is_a_number() {
        for found in ["-1", "1.0", "18446744073709551616", "one"] {
            let text = format!("IMAGE_VERSION=1\nVARIANT_ID=release\n{INDEX}={found}\n");
            let error = Image::parse(&text).unwrap_err();
            assert_eq!(error, ImageError::Index { found: found.to_owned() });
        }
        let error = Image::parse("IMAGE_VERSION=1\nVARIANT_ID=release\n").unwrap_err();
        assert_eq!(error, ImageError::Missing { field: INDEX });
    }

    #[test]
    fn a_field_that_is_missing_empty_or_twice_is_refused() {
        let missing = ImageError::Missing { field: "IMAGE_VERSION" };
        assert_eq!(Image::parse("VARIANT_ID=release\n").unwrap_err(), missing);
        assert_eq!(Image::parse("IMAGE_VERSION=\nVARIANT_ID=release\n").unwrap_err(), missing);
        assert_eq!(
            Image::parse("IMAGE_VERSION=1\nVARIANT_ID=release\nVARIANT_ID=development\n"),
            Err(ImageError::Twice { field: "VARIANT_ID" })
        );
    }
}
