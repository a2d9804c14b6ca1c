//! Reference values as a CoRIM: draft-ietf-rats-corim-11, whose sections are cited; unsigned (section 4.1), since the
//! quorum's signatures are over other files.

use anyhow::{Context as _, ensure};
use evidence::format::Reference;

use super::cbor::Item;

/// `tagged-unsigned-corim-map`, section 4.1.
const TAG_CORIM: u64 = 501;
/// `tagged-concise-mid-tag`, section 4.1.2.
const TAG_COMID: u64 = 506;
/// `tagged-bytes`, section 7.8.
const TAG_BYTES: u64 = 560;
/// SHA-256 in the Named Information Hash Algorithm Registry, which `digest` refers to.
const SHA256: u64 = 1;

/// The file's bytes.
pub(super) fn encode(reference: &Reference) -> anyhow::Result<Vec<u8>> {
    let Reference { image_id, image_version, profile, .. } = reference;
    let id = format!("{image_id}-{image_version}-{profile}");
    // concise-mid-tag: 1 tag-identity (0 tag-id), 4 triples (0 reference-triples).
    let triple = Item::Array(vec![environment(reference), Item::Array(measurements(reference)?)]);
    let comid = Item::struct_of([
        (1, Item::struct_of([(0, Item::text(&id))])),
        (4, Item::struct_of([(0, Item::Array(vec![triple]))])),
    ]);
    // corim-map: 0 id, 1 tags.
    let tag = Item::tagged(TAG_COMID, Item::Bytes(comid.encode()));
    let corim = Item::struct_of([(0, Item::text(&id)), (1, Item::Array(vec![tag]))]);
    Ok(Item::tagged(TAG_CORIM, corim).encode())
}

/// `environment-map`: 0 class (`class-map`: 1 vendor, 2 model).
fn environment(reference: &Reference) -> Item {
    let model = format!("{} {}", reference.image_id, reference.profile);
    let class = Item::struct_of([(1, Item::text("casemate")), (2, Item::text(&model))]);
    Item::struct_of([(0, class)])
}

/// `measurement-map`s, one for each fact of the reference.
fn measurements(reference: &Reference) -> anyhow::Result<Vec<Item>> {
    let Reference { uki_sha256, uki_authenticode, root_hash, policy_sha256, .. } = reference;
    // version-map: 0 version.
    let version = Item::struct_of([(0, Item::text(&reference.image_version))]);
    let cmdline = Item::tagged(TAG_BYTES, Item::Bytes(reference.cmdline.clone().into_bytes()));
    let mut all = vec![
        measurement("version", 0, version),
        measurement("tpm-pcrs-sha256", 14, integrity_registers(reference)?),
        measurement("kernel-command-line", 4, cmdline),
    ];
    for (key, sha256) in [
        ("uki-file", uki_sha256),
        ("uki-authenticode", uki_authenticode),
        ("root-dm-verity", root_hash),
        ("quorum-policy-file", policy_sha256),
    ] {
        all.push(measurement(key, 2, digests(key, sha256)?));
    }
    for (pcr, measurements) in &reference.measurements {
        for (number, measured) in measurements.iter().enumerate() {
            let key = format!("pcr-{pcr}/{number}: {}", measured.what);
            all.push(measurement(&key, 2, digests(&key, &measured.sha256)?));
        }
    }
    Ok(all)
}

/// `measurement-map`: 0 mkey, 1 mval (`measurement-values-map` with one value).
fn measurement(key: &str, value: u64, item: Item) -> Item {
    Item::struct_of([(0, Item::text(key)), (1, Item::struct_of([(value, item)]))])
}

/// `integrity-registers`, section 5.1.4.1.4.8: "can be used to model the PCRs in a TPM", by index.
fn integrity_registers(reference: &Reference) -> anyhow::Result<Item> {
    ensure!(!reference.pcrs.is_empty(), "the reference predicts no PCR");
    let register = |(index, value): (&u8, &String)| {
        Ok((u64::from(*index), digests(&format!("PCR {index}"), value)?))
    };
    let registers: anyhow::Result<Vec<_>> = reference.pcrs.iter().map(register).collect();
    Ok(Item::struct_of(registers?))
}

/// `digests-type` with one digest.
fn digests(what: &str, sha256: &str) -> anyhow::Result<Item> {
    let mut digest = [0; 32];
    hex::decode_to_slice(sha256, &mut digest)
        .with_context(|| format!("{what} of the reference is {sha256:?}, no SHA-256"))?;
    let digest = Item::Array(vec![Item::Unsigned(SHA256), Item::Bytes(digest.to_vec())]);
    Ok(Item::Array(vec![digest]))
}

#[cfg(test)]
mod tests {
    use ciborium::Value;
    use evidence::fixture::reference;

    use super::*;

    /// Another program's reader.
    fn decode(bytes: &[u8]) -> Value {
        ciborium::from_reader(bytes).unwrap()
    }

    fn field(map: &Value, key: u64) -> &Value {
        let map = map.as_map().unwrap();
        &map.iter().find(|(found, _)| *found == Value::from(key)).unwrap().1
    }

    /// The CoMID in a CoRIM.
    fn comid(corim: &[u8]) -> Value {
        let Value::Tag(TAG_CORIM, corim) = decode(corim) else { panic!("no CoRIM") };
        assert_eq!(field(&corim, 0).as_text(), Some("casemate-0.1.0-release"));
        let [Value::Tag(TAG_COMID, comid)] = field(&corim, 1).as_array().unwrap().as_slice() else {
            panic!("no CoMID");
        };
        decode(comid.as_bytes().unwrap())
    }

    /// `mval` of every measurement, by `mkey`.
    fn values(comid: &Value) -> Vec<(String, Value)> {
        let triples = field(field(comid, 4), 0).as_array().unwrap();
        let [triple] = triples.as_slice() else { panic!("{triples:?}") };
        let [environment, measurements] = triple.as_array().unwrap().as_slice() else { panic!() };
        assert_eq!(field(field(environment, 0), 1).as_text(), Some("casemate"));
        let read =
            |map: &Value| (field(map, 0).as_text().unwrap().to_owned(), field(map, 1).clone());
        measurements.as_array().unwrap().iter().map(read).collect()
    }

    fn sha256(digests: &Value) -> String {
        let [digest] = digests.as_array().unwrap().as_slice() else { panic!("{digests:?}") };
        let [alg, value] = digest.as_array().unwrap().as_slice() else { panic!("{digest:?}") };
        assert_eq!(*alg, Value::from(1));
        hex::encode(value.as_bytes().unwrap())
    }

    #[test]
    fn every_reference_value_is_read_back() {
        let reference = reference();
        let values = values(&comid(&encode(&reference).unwrap()));
        let value = |key: &str| &values.iter().find(|(found, _)| found == key).unwrap().1;
        assert_eq!(field(field(value("version"), 0), 0).as_text(), Some("0.1.0"));
        let registers = field(value("tpm-pcrs-sha256"), 14);
        assert_eq!(registers.as_map().unwrap().len(), reference.pcrs.len());
        for (index, expected) in &reference.pcrs {
            assert_eq!(sha256(field(registers, u64::from(*index))), *expected);
        }
        for (key, expected) in [
            ("uki-file", &reference.uki_sha256),
            ("uki-authenticode", &reference.uki_authenticode),
            ("root-dm-verity", &reference.root_hash),
            ("quorum-policy-file", &reference.policy_sha256),
        ] {
            assert_eq!(sha256(field(value(key), 2)), *expected);
        }
        let Value::Tag(TAG_BYTES, cmdline) = field(value("kernel-command-line"), 4) else {
            panic!()
        };
        assert_eq!(cmdline.as_bytes().unwrap(), reference.cmdline.as_bytes());
        let listed = values.iter().filter(|(key, _)| key.starts_with("pcr-")).count();
        assert_eq!(listed, reference.measurements.values().map(Vec::len).sum::<usize>());
        let first = &reference.measurements[&11][0];
        assert_eq!(sha256(field(value(&format!("pcr-11/0: {}", first.what)), 2)), first.sha256);
    }

    /// Offset after the item at `at`; fails unless its encoding is the deterministic one.
    fn skip_deterministic(bytes: &[u8], at: usize) -> usize {
        let (major, info) = (bytes[at] >> 5, bytes[at] & 0x1f);
        let width = match info {
            0..=23 => 0,
            24..=27 => 1 << (info - 24),
            _ => panic!("indefinite length at {at}"),
        };
        let number =
            |bytes: &[u8]| bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let argument =
            if width == 0 { u64::from(info) } else { number(&bytes[at + 1..at + 1 + width]) };
        let shortest = match argument {
            0..=23 => 0,
            24..=0xff => 1,
            0x100..=0xffff => 2,
            0x1_0000..=0xffff_ffff => 4,
            _ => 8,
        };
        assert_eq!(width, shortest, "a longer number than needed at {at}");
        let mut next = at + 1 + width;
        let count = usize::try_from(argument).unwrap();
        match major {
            0 => {}
            2 | 3 => next += count,
            4 => (0..count).for_each(|_| next = skip_deterministic(bytes, next)),
            5 => {
                let mut last: Option<&[u8]> = None;
                for _ in 0..count {
                    let key = &bytes[next..skip_deterministic(bytes, next)];
                    assert!(last.is_none_or(|last| last < key), "keys out of order at {next}");
                    last = Some(key);
                    next = skip_deterministic(bytes, next + key.len());
                }
            }
            6 => next = skip_deterministic(bytes, next),
            _ => panic!("major type {major} at {at}"),
        }
        next
    }

    #[test]
    fn the_encoding_is_deterministic_within_and_without() {
        let bytes = encode(&reference()).unwrap();
        assert_eq!(skip_deterministic(&bytes, 0), bytes.len());
        let Value::Tag(_, corim) = decode(&bytes) else { panic!() };
        let Value::Tag(_, comid) = &field(&corim, 1).as_array().unwrap()[0] else { panic!() };
        let comid = comid.as_bytes().unwrap();
        assert_eq!(skip_deterministic(comid, 0), comid.len());
    }

    #[test]
    fn a_reference_without_digests_is_refused() {
        let mut short = reference();
        short.uki_sha256.pop();
        assert!(encode(&short).unwrap_err().to_string().contains("uki-file"));
        let mut empty = reference();
        empty.pcrs.clear();
        assert!(encode(&empty).is_err());
    }
}
