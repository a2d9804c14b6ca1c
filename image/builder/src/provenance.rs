//! What was built from what: an in-toto statement (v1) with a SLSA provenance predicate (v1.0). It names every output
//! by its digest, so a signature over it is one over all of them.

use std::collections::BTreeMap;

use evidence::provenance::{PREDICATE_TYPE, STATEMENT_TYPE};
use serde_json::{Value, json};

use crate::bootstrap::SUITE;
use crate::lock::{Lock, Target};

/// Names the meaning of the parameters below; a tag URI (RFC 4151), since nothing is to be fetched there.
const BUILD_TYPE: &str = "tag:casemate,2026:image-build/v1";
const BUILDER_ID: &str = "tag:casemate,2026:casemate-build";

/// Digests by name.
pub(crate) type Digests = BTreeMap<String, String>;

/// What went into a build.
#[derive(Debug)]
pub(crate) struct Materials<'a> {
    /// Of the image; then of what a kernel of ours was built from and with, and of its driver, if they are in the image.
    pub(crate) locks: &'a [Lock],
    /// Of the image's lock file.
    pub(crate) lock_sha256: &'a str,
    /// Files of image/config, kernel-config and systemd, and Cargo.lock.
    pub(crate) configuration: &'a Digests,
    /// The agent's programs.
    pub(crate) agent: &'a Digests,
}

/// The statement over `outputs`.
pub(crate) fn statement(
    outputs: &Digests,
    materials: &Materials<'_>,
    profile: &str,
    source_date_s: u32,
) -> Value {
    let subject: Vec<Value> = outputs
        .iter()
        .map(|(name, sha256)| json!({"name": name, "digest": {"sha256": sha256}}))
        .collect();
    json!({
        "_type": STATEMENT_TYPE,
        "subject": subject,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"profile": profile, "suite": SUITE, "source_date_s": source_date_s},
                "resolvedDependencies": dependencies(materials),
            },
            "runDetails": {
                "builder": {
                    "id": BUILDER_ID,
                    "version": {"casemate": env!("CARGO_PKG_VERSION")},
                },
            },
        },
    })
}

fn dependencies(materials: &Materials<'_>) -> Vec<Value> {
    let file =
        |(name, sha256): (&String, &String)| json!({"name": name, "digest": {"sha256": sha256}});
    let packages = materials.locks.iter().flat_map(|lock| &lock.packages).map(|package| {
        json!({
            "name": package.to_string(),
            "uri": package.url("http://deb.debian.org/debian"),
            "digest": {"sha256": package.sha256},
        })
    });
    let lock =
        json!({"name": Target::Image.lock_file(), "digest": {"sha256": materials.lock_sha256}});
    std::iter::once(lock)
        .chain(packages)
        .chain(materials.configuration.iter().map(file))
        .chain(materials.agent.iter().map(file))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Role;
    use crate::lock::tests::locked;

    #[test]
    fn every_output_and_every_material_is_named_by_digest() {
        let lock = Lock { releases: Vec::new(), packages: vec![locked(Role::Listed, "a", "1")] };
        let digests = |name: &str| Digests::from([(name.to_owned(), "00".to_owned())]);
        let materials = Materials {
            locks: &[lock],
            lock_sha256: "11",
            configuration: &digests("systemd/x"),
            agent: &digests("agentd"),
        };
        let statement = statement(&digests("casemate.raw"), &materials, "development", 7);
        assert_eq!(statement["subject"][0]["name"], "casemate.raw");
        let definition = &statement["predicate"]["buildDefinition"];
        let dependencies = definition["resolvedDependencies"].as_array().unwrap();
        assert_eq!(dependencies.len(), 4);
        assert!(dependencies.iter().all(|one| one["digest"]["sha256"].is_string()));
        assert_eq!(definition["externalParameters"]["source_date_s"], 7);
    }
}
