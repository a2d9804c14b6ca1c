//! Crates that are compiled into the agent's programs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::licences::of_crate;
use super::{InventoryError, Result};
use crate::tool::Tool;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Packages of this repository that the agent's programs are built from.
const PACKAGES: &[&str] = &["agentd", "engine", "gateway"];

/// One crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) version: String,
    /// SPDX expression, as the crate's manifest has it.
    pub(crate) licence: String,
    /// Whether it is of this repository.
    pub(crate) ours: bool,
}

/// The parts of `cargo metadata` (format version 1) that are read.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    /// `None` is a normal dependency; build and dev ones are in no program.
    kind: Option<String>,
}

/// The agent's crates by Cargo.lock. Features are those of the whole workspace, so a crate that only another
/// program of ours asks for may be listed; none is left out.
pub(super) fn read(source: &Path, logs: &Path) -> Result<Vec<Crate>> {
    let answer = Tool::new("cargo", "cargo-metadata", logs)
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", TARGET, "--manifest-path"])
        .arg(source.join("Cargo.toml"))
        .run()?;
    let metadata: Metadata =
        serde_json::from_slice(&answer).map_err(|error| InventoryError::Answer {
            tool: "cargo metadata",
            found: error.to_string(),
            expected: "its JSON, format version 1",
        })?;
    closure(&metadata, PACKAGES)
}

fn closure(metadata: &Metadata, programs: &[&str]) -> Result<Vec<Crate>> {
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let mut open: Vec<&str> = metadata
        .packages
        .iter()
        .filter(|package| package.source.is_none() && programs.contains(&package.name.as_str()))
        .map(|package| package.id.as_str())
        .collect();
    if open.len() != programs.len() {
        return Err(InventoryError::Answer {
            tool: "cargo metadata",
            found: open.join(" "),
            expected: "the packages agentd, engine and gateway",
        });
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(id)
            && let Some(node) = nodes.get(id)
        {
            let normal = |dependency: &&Dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind.is_none())
            };
            open.extend(node.deps.iter().filter(normal).map(|dependency| dependency.pkg.as_str()));
        }
    }
    let (mut crates, mut unlicensed) = (Vec::new(), Vec::new());
    for package in seen.into_iter().filter_map(|id| packages.get(id)) {
        let (name, version) = (package.name.clone(), package.version.clone());
        match package.license.as_deref().map(of_crate) {
            Some(licence) => {
                crates.push(Crate { name, version, licence, ours: package.source.is_none() });
            }
            None => unlicensed.push(format!("crate {name} {version}: its manifest names none")),
        }
    }
    if !unlicensed.is_empty() {
        return Err(InventoryError::Licences { unlicensed });
    }
    crates.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(crates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_dependencies_follow_and_others_do_not() {
        let licensed = |licence: serde_json::Value| -> Metadata {
            serde_json::from_value(serde_json::json!({
            "packages": [
                {"id": "a", "name": "agentd", "version": "1.0.0", "license": "Apache-2.0", "source": null},
                {"id": "l", "name": "lib", "version": "2.0.0", "license": licence, "source": "registry"},
                {"id": "b", "name": "built", "version": "3.0.0", "license": null, "source": "registry"},
            ],
            "resolve": {"nodes": [
                {"id": "a", "deps": [
                    {"pkg": "l", "dep_kinds": [{"kind": null}, {"kind": "dev"}]},
                    {"pkg": "b", "dep_kinds": [{"kind": "build"}]},
                ]},
                {"id": "l", "deps": [{"pkg": "a", "dep_kinds": [{"kind": null}]}]},
            ]},
            }))
            .unwrap()
        };
        let metadata = licensed("MIT/Zlib".into());
        let crates = closure(&metadata, &["agentd"]).unwrap();
        assert_eq!(crates[1].licence, "MIT OR Zlib");
        let names: Vec<_> = crates.iter().map(|c| (c.name.as_str(), c.ours)).collect();
        assert_eq!(names, [("agentd", true), ("lib", false)]);
        assert!(closure(&metadata, &["agentd", "engine"]).is_err());
        let error = closure(&licensed(serde_json::Value::Null), &["agentd"]).unwrap_err();
        assert!(error.to_string().contains("crate lib 2.0.0: its manifest names none"), "{error}");
    }
}
