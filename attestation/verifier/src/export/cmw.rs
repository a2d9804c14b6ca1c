//! Evidence as a CMW collection: draft-ietf-rats-msg-wrap-23, sections "Record CMW" and "Collection CMW".
//!
//! One record for each part of the evidence file; parts that are empty are left out, since a record is not. The media
//! types are in the vendor tree and not registered.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evidence::format::Evidence;
use serde_json::{Map, Value, json};

use super::base64;

/// Namespace of the labels.
const TYPE: &str = "tag:casemate,2026:evidence-v1";
/// `cm-type`: bit 2, evidence.
const IND_EVIDENCE: u32 = 1 << 2;

/// The file's text.
pub(super) fn encode(evidence: &Evidence) -> anyhow::Result<String> {
    let Evidence {
        schema,
        nonce,
        created,
        profile,
        quote,
        firmware_log,
        userspace_log,
        agent_log,
        bundle,
        ledger,
        counter,
    } = evidence;
    let about = json!({"schema": schema, "nonce": nonce, "created": created, "profile": profile});
    let parts = [
        ("about", "vnd.casemate.about+json", serde_json::to_vec(&about)?),
        ("tpms-attest", "vnd.casemate.tpms-attest", base64("the quote", &quote.attest)?),
        (
            "tpmt-signature",
            "vnd.casemate.tpmt-signature",
            base64("its signature", &quote.signature)?,
        ),
        ("tpmt-public", "vnd.casemate.tpmt-public", base64("its key", &quote.public)?),
        ("pcrs", "vnd.casemate.pcrs+json", serde_json::to_vec(&quote.pcrs)?),
        ("firmware-log", "vnd.casemate.tcg-event-log", base64("the firmware log", firmware_log)?),
        ("userspace-log", "vnd.casemate.cel+json-seq", base64("the userspace log", userspace_log)?),
        ("agent-log", "vnd.casemate.agent-log+json", serde_json::to_vec(agent_log)?),
        ("bundle", "vnd.casemate.bundle+json", serde_json::to_vec(bundle)?),
        ("ledger", "vnd.casemate.ledger+json", serde_json::to_vec(ledger)?),
        ("counter", "vnd.casemate.counter+json", serde_json::to_vec(counter)?),
    ];
    let mut collection = Map::new();
    collection.insert("__cmwc_t".to_owned(), TYPE.into());
    for (label, subtype, bytes) in parts {
        if !bytes.is_empty() {
            collection.insert(label.to_owned(), record(subtype, &bytes));
        }
    }
    Ok(serde_json::to_string_pretty(&collection)? + "\n")
}

fn record(subtype: &str, bytes: &[u8]) -> Value {
    json!([format!("application/{subtype}"), URL_SAFE_NO_PAD.encode(bytes), IND_EVIDENCE])
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use evidence::fixture::Appliance;

    use super::*;

    /// Puts the evidence file together again.
    fn decode(text: &str) -> Evidence {
        let collection: Map<String, Value> = serde_json::from_str(text).unwrap();
        assert_eq!(collection["__cmwc_t"], TYPE);
        let part = |label: &str| {
            let Some(record) = collection.get(label) else { return Vec::new() };
            let [kind, value, ind] = record.as_array().unwrap().as_slice() else {
                panic!("{label}")
            };
            assert!(kind.as_str().unwrap().starts_with("application/vnd.casemate."));
            assert_eq!(*ind, 4);
            URL_SAFE_NO_PAD.decode(value.as_str().unwrap()).unwrap()
        };
        let of_json = |label: &str| serde_json::from_slice::<Value>(&part(label)).unwrap();
        let of_bytes = |label: &str| Value::from(STANDARD.encode(part(label)));
        let mut file = of_json("about").as_object().unwrap().clone();
        for (field, label) in [
            ("agent_log", "agent-log"),
            ("bundle", "bundle"),
            ("ledger", "ledger"),
            ("counter", "counter"),
        ] {
            file.insert(field.to_owned(), of_json(label));
        }
        for (field, label) in [("firmware_log", "firmware-log"), ("userspace_log", "userspace-log")]
        {
            file.insert(field.to_owned(), of_bytes(label));
        }
        let quote = json!({
            "attest": of_bytes("tpms-attest"),
            "signature": of_bytes("tpmt-signature"),
            "public": of_bytes("tpmt-public"),
            "pcrs": of_json("pcrs"),
        });
        file.insert("quote".to_owned(), quote);
        serde_json::from_value(Value::Object(file)).unwrap()
    }

    #[test]
    fn nothing_of_the_evidence_is_lost() {
        let mut empty = Appliance::booted();
        (empty.userspace, empty.bundle) = (Vec::new(), None);
        for appliance in [Appliance::booted(), empty] {
            let evidence = appliance.evidence([0xa5; 32]);
            let back = decode(&encode(&evidence).unwrap());
            let json = |evidence: &Evidence| serde_json::to_value(evidence).unwrap();
            assert_eq!(json(&back), json(&evidence));
        }
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        let mut evidence = Appliance::booted().evidence([0xa5; 32]);
        evidence.quote.attest.push('!');
        assert!(encode(&evidence).unwrap_err().to_string().contains("the quote"));
    }
}
