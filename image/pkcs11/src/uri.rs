//! `pkcs11:` URIs; RFC 7512. Pure.

use std::fmt;
use std::path::PathBuf;

/// Longest URI that is read.
pub const URI_BYTES_MAX: usize = 4096;
/// Longest value of an attribute, decoded.
pub const ATTRIBUTE_BYTES_MAX: usize = 1024;

/// Which module, token and key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uri {
    /// Label of the token.
    pub token: Option<String>,
    /// Manufacturer of the token.
    pub manufacturer: Option<String>,
    /// Model of the token.
    pub model: Option<String>,
    /// Serial number of the token.
    pub serial: Option<String>,
    /// Label of the key (`CKA_LABEL`).
    pub object: Option<String>,
    /// Identifier of the key (`CKA_ID`).
    pub id: Option<Vec<u8>>,
    /// Path of the module.
    pub module_path: Option<PathBuf>,
    /// Path of the file with the PIN.
    pub pin_source: Option<PathBuf>,
}

/// Why a URI was refused. No variant quotes a value: it may be a PIN.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Not `pkcs11:`.
    #[error("not a PKCS#11 URI: it does not start with \"pkcs11:\"")]
    Scheme,
    /// Too long.
    #[error("PKCS#11 URI of {bytes} bytes; at most {URI_BYTES_MAX}")]
    TooLong {
        /// Length found.
        bytes: usize,
    },
    /// An attribute that is not `name=value`.
    #[error("attribute {position} of the PKCS#11 URI is not name=value")]
    Attribute {
        /// Position, from 1.
        position: usize,
    },
    /// An attribute that is not read here.
    #[error("PKCS#11 URI: attribute {name:?} is not supported")]
    Unsupported {
        /// Name of the attribute.
        name: String,
    },
    /// An attribute twice.
    #[error("PKCS#11 URI: attribute {name:?} is there twice")]
    Twice {
        /// Name of the attribute.
        name: String,
    },
    /// A value that cannot be used.
    #[error("PKCS#11 URI: attribute {name:?}: {reason}")]
    Value {
        /// Name of the attribute.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A PIN in the URI.
    #[error(
        "PKCS#11 URI: a PIN in pin-value ends up in shell histories and logs; put it into a file \
             and name that: pin-source=file:/path"
    )]
    PinValue,
}

impl Uri {
    /// Reads a URI. Attributes that would narrow the choice and that are not understood are refused,
    /// since RFC 7512 has them match nothing.
    ///
    /// # Errors
    /// [`UriError`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        if text.len() > URI_BYTES_MAX {
            return Err(UriError::TooLong { bytes: text.len() });
        }
        let rest = text.strip_prefix("pkcs11:").ok_or(UriError::Scheme)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = path.split(';').filter(|part| !part.is_empty());
        let query = query.split('&').filter(|part| !part.is_empty());
        let mut uri = Self::default();
        let mut seen = Vec::new();
        for (position, part) in path.map(|p| (p, false)).chain(query.map(|q| (q, true))).enumerate()
        {
            let malformed = UriError::Attribute { position: position + 1 };
            let (name, value) = part.0.split_once('=').ok_or(malformed)?;
            if seen.contains(&name) {
                return Err(UriError::Twice { name: name.to_owned() });
            }
            seen.push(name);
            uri.set(name, value, part.1)?;
        }
        Ok(uri)
    }

    fn set(&mut self, name: &str, value: &str, query: bool) -> Result<(), UriError> {
        let refuse = |reason| UriError::Value { name: name.to_owned(), reason };
        let bytes = decode(value).ok_or_else(|| refuse("bad percent encoding, or too long"))?;
        let text = || String::from_utf8(bytes.clone()).map_err(|_| refuse("not UTF-8"));
        match (query, name) {
            (false, "token") => self.token = Some(text()?),
            (false, "manufacturer") => self.manufacturer = Some(text()?),
            (false, "model") => self.model = Some(text()?),
            (false, "serial") => self.serial = Some(text()?),
            (false, "object") => self.object = Some(text()?),
            (false, "id") => self.id = Some(bytes),
            (false, "type") if bytes == b"private" => {}
            (false, "type") => return Err(refuse("expected type=private, a signing key")),
            (true, "module-path") => self.module_path = Some(absolute(&text()?, name)?),
            (true, "pin-source") => {
                let source = text()?;
                let path = source.strip_prefix("file://").or(source.strip_prefix("file:"));
                self.pin_source = Some(absolute(path.unwrap_or(&source), name)?);
            }
            (true, "pin-value") => return Err(UriError::PinValue),
            _ => return Err(UriError::Unsupported { name: name.to_owned() }),
        }
        Ok(())
    }

    /// Whether a token with these properties is the one meant.
    pub(crate) fn matches_token(
        &self,
        label: &str,
        manufacturer: &str,
        model: &str,
        serial: &str,
    ) -> bool {
        let agrees = |wanted: &Option<String>, found: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == found)
        };
        agrees(&self.token, label)
            && agrees(&self.manufacturer, manufacturer)
            && agrees(&self.model, model)
            && agrees(&self.serial, serial)
    }
}

fn absolute(text: &str, name: &str) -> Result<PathBuf, UriError> {
    // A relative path would mean another file in another folder, and `|` a command in other tools.
    if text.starts_with('/') && !text.contains('\0') {
        return Ok(PathBuf::from(text));
    }
    Err(UriError::Value { name: name.to_owned(), reason: "expected an absolute path" })
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            _ => byte,
        });
    }
    (bytes.len() <= ATTRIBUTE_BYTES_MAX).then_some(bytes)
}

/// Encodes what RFC 3986 does not call unreserved, but `also`.
fn encode(bytes: &[u8], also: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text =
            |value: &Option<String>| value.as_deref().map(|text| encode(text.as_bytes(), b""));
        let path = |path: &Option<PathBuf>| {
            path.as_deref().map(|path| encode(path.as_os_str().as_encoded_bytes(), b"/"))
        };
        let id = self.id.as_deref().map(|id| id.iter().map(|b| format!("%{b:02X}")).collect());
        let parts = [
            ("token", text(&self.token)),
            ("manufacturer", text(&self.manufacturer)),
            ("model", text(&self.model)),
            ("serial", text(&self.serial)),
            ("object", text(&self.object)),
            ("id", id),
        ];
        let queries = [
            ("module-path", path(&self.module_path)),
            ("pin-source", path(&self.pin_source).map(|path| format!("file:{path}"))),
        ];
        let join = |parts: &[(&str, Option<String>)], by: &str| {
            let given = parts.iter().filter_map(|(n, v)| Some(format!("{n}={}", v.as_ref()?)));
            given.collect::<Vec<_>>().join(by)
        };
        write!(f, "pkcs11:{}", join(&parts, ";"))?;
        match join(&queries, "&").as_str() {
            "" => Ok(()),
            query => write!(f, "?{query}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_reads_and_writes() {
        let text = "pkcs11:token=release%201;object=r%3B1;id=%00%FFa;type=private\
                    ?module-path=/usr/lib/m.so&pin-source=file:/run/a%20pin";
        let uri = Uri::parse(text).unwrap();
        assert_eq!(uri.token.as_deref(), Some("release 1"));
        assert_eq!(uri.object.as_deref(), Some("r;1"));
        assert_eq!(uri.id.as_deref(), Some(&[0, 0xff, b'a'][..]));
        assert_eq!(uri.module_path, Some("/usr/lib/m.so".into()));
        assert_eq!(uri.pin_source, Some("/run/a pin".into()));
        assert_eq!(Uri::parse(&uri.to_string()), Ok(uri));
    }

    #[test]
    fn spellings_of_a_pin_source() {
        for text in ["file:///pin", "file:/pin", "/pin"] {
            let uri = Uri::parse(&format!("pkcs11:?pin-source={text}")).unwrap();
            assert_eq!(uri.pin_source, Some("/pin".into()), "{text}");
        }
    }

    fn check(text: &str, expected: &str) {
        let error = Uri::parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        check("http://x", "does not start");
        check("pkcs11:token", "not name=value");
        check("pkcs11:token=a;token=b", "twice");
        check("pkcs11:x-vendor=1", "not supported");
        check("pkcs11:slot-id=1", "not supported");
        check("pkcs11:?module-name=softhsm", "not supported");
        check("pkcs11:?token=a", "not supported");
        check("pkcs11:type=cert", "type=private");
        check("pkcs11:token=%4", "percent");
        check("pkcs11:token=%zz", "percent");
        check("pkcs11:token=%FF", "UTF-8");
        check("pkcs11:?pin-source=|cat", "absolute path");
        check("pkcs11:?pin-source=file:pin", "absolute path");
        check("pkcs11:?module-path=m.so", "absolute path");
        check(&format!("pkcs11:token={}", "a".repeat(ATTRIBUTE_BYTES_MAX + 1)), "too long");
        check(&format!("pkcs11:{}", ";".repeat(URI_BYTES_MAX)), "at most 4096");
    }

    #[test]
    fn a_pin_in_a_uri_is_refused_and_not_repeated() {
        let error = Uri::parse("pkcs11:?pin-value=s3cret").unwrap_err();
        assert_eq!(error, UriError::PinValue);
        assert!(!error.to_string().contains("s3cret"));
    }

    #[test]
    fn a_token_matches_by_what_the_uri_names() {
        let uri = Uri::parse("pkcs11:token=a;serial=1").unwrap();
        assert!(uri.matches_token("a", "m", "o", "1"));
        assert!(!uri.matches_token("a", "m", "o", "2"));
        assert!(!uri.matches_token("b", "m", "o", "1"));
    }
}
