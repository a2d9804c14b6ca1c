//! The software bill of materials: CycloneDX 1.6 (ECMA-424), JSON.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::bootstrap::SUITE;
use crate::inventory::{Crate, DebianPackage, Inventory, Licence, expression};
use crate::lock::Role;

/// What the bill says of the image itself.
#[derive(Debug)]
pub(crate) struct Identity<'a> {
    pub(crate) version: &'a str,
    pub(crate) root_hash: &'a str,
    pub(crate) created: &'a str,
    /// Of the disk image.
    pub(crate) content_bytes: u64,
}

/// The bill of an image; the same image has the same bill.
pub(crate) fn bill(inventory: &Inventory, identity: &Identity<'_>) -> Value {
    let Identity { version, root_hash, created, content_bytes } = identity;
    let programs = inventory.programs_in_path();
    let packages = inventory.packages.iter().map(debian);
    let components: Vec<Value> = packages.chain(inventory.crates.iter().map(cargo)).collect();
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": serial_number(root_hash),
        "version": 1,
        "metadata": {
            "timestamp": created,
            "component": {
                "type": "operating-system",
                "bom-ref": "casemate",
                "name": "casemate",
                "version": version,
                "properties": [
                    property("casemate:root-hash", root_hash),
                    property("casemate:content-bytes", &content_bytes.to_string()),
                    property("casemate:programs-in-path", &programs.to_string()),
                ],
            },
        },
        "components": components,
    })
}

fn debian(package: &DebianPackage) -> Value {
    let locked = &package.locked;
    let architecture = &locked.architecture;
    let purl = format!(
        "pkg:deb/debian/{}@{}?arch={architecture}&distro={SUITE}",
        percent_encoded(&locked.name),
        percent_encoded(&locked.version)
    );
    json!({
        "type": if locked.role == Role::Kernel { "operating-system" } else { "library" },
        "bom-ref": purl,
        "name": locked.name,
        "version": locked.version,
        "purl": purl,
        // Of the .deb.
        "hashes": [{"alg": "SHA-256", "content": locked.sha256}],
        "licenses": licences(&package.licences),
        "properties": [
            property("casemate:reason", &package.reason),
            property("casemate:bytes-in-image", &package.bytes.to_string()),
        ],
    })
}

/// CycloneDX 1.6, "licenseChoice": one expression, or a list of identifiers and names.
fn licences(licences: &[Licence]) -> Value {
    match (licences, expression(licences)) {
        ([Licence::Identifier(id)], _) => json!([{"license": {"id": id}}]),
        (_, Some(expression)) => json!([{"expression": expression}]),
        (several, None) => several
            .iter()
            .map(|licence| match licence {
                Licence::Identifier(id) => json!({"license": {"id": id}}),
                Licence::Expression(text) | Licence::Name(text) => {
                    json!({"license": {"name": text}})
                }
            })
            .collect(),
    }
}

fn cargo(package: &Crate) -> Value {
    let purl = format!("pkg:cargo/{}@{}", package.name, percent_encoded(&package.version));
    json!({
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
        "licenses": [{"expression": package.licence}],
        "properties": [
            property("casemate:origin", if package.ours { "this repository" } else { "crates.io" }),
        ],
    })
}

fn property(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

/// Letters, digits and `.-_~` stay (package-url specification, "Character encoding").
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b".-_~:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _: std::fmt::Result = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// A UUID of version 8 (RFC 9562) made from the root hash.
fn serial_number(root_hash: &str) -> String {
    let mut bytes: [u8; 32] = Sha256::digest(format!("casemate sbom {root_hash}")).into();
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(&bytes[..16]);
    let (a, rest) = hex.split_at(8);
    let (b, rest) = rest.split_at(4);
    let (c, rest) = rest.split_at(4);
    let (d, e) = rest.split_at(4);
    format!("urn:uuid:{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_with_a_plus_is_encoded() {
        assert_eq!(percent_encoded("1:2.41.5-0+deb13u1~x"), "1:2.41.5-0%2Bdeb13u1~x");
    }

    #[test]
    fn licences_are_one_expression_or_a_list() {
        let id = || Licence::Identifier("MIT".to_owned());
        let either = || Licence::Expression("A OR B".to_owned());
        let name = || Licence::Name("custom".to_owned());
        assert_eq!(licences(&[id()]), json!([{"license": {"id": "MIT"}}]));
        assert_eq!(licences(&[id(), either()]), json!([{"expression": "MIT AND (A OR B)"}]));
        let list = json!([
            {"license": {"id": "MIT"}}, {"license": {"name": "A OR B"}}, {"license": {"name": "custom"}}
        ]);
        assert_eq!(licences(&[id(), either(), name()]), list);
    }

    #[test]
    fn a_serial_number_is_a_uuid_of_version_8() {
        let number = serial_number("00");
        let digits: Vec<&str> = number.trim_start_matches("urn:uuid:").split('-').collect();
        assert_eq!(digits.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert!(digits[2].starts_with('8') && digits[3].starts_with(['8', '9', 'a', 'b']));
        assert_eq!(number, serial_number("00"));
    }
}
