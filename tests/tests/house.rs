//! The shape of the house: which crate may lean on which, where libtorch and libvirt may be named,
//! and what licences come in.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// Arrows that a crate's own code may have; tests and build scripts may have more.
const ARROWS: [(&str, &[&str]); 10] = [
    ("blkpilot-proto", &[]),
    ("blkpilot-env", &[]),
    ("blkpilot-host", &["blkpilot-env"]),
    ("blkpilot-models", &["blkpilot-env"]),
    ("blkpilot-log", &["blkpilot-env", "blkpilot-models"]),
    (
        "blkpilot-evaluate",
        &["blkpilot-env", "blkpilot-models", "blkpilot-log"],
    ),
    (
        "blkpilot-learn",
        &["blkpilot-env", "blkpilot-models", "blkpilot-log"],
    ),
    (
        "blkpilot-agent",
        &[
            "blkpilot-env",
            "blkpilot-host",
            "blkpilot-models",
            "blkpilot-log",
            "blkpilot-evaluate",
            "blkpilot-proto",
        ],
    ),
    (
        "blkpilot-lab",
        &[
            "blkpilot-env",
            "blkpilot-host",
            "blkpilot-models",
            "blkpilot-log",
            "blkpilot-evaluate",
            "blkpilot-proto",
            "blkpilot-agent",
            "blkpilot-learn",
        ],
    ),
    (
        "blkpilot-tests",
        &[
            "blkpilot-env",
            "blkpilot-host",
            "blkpilot-models",
            "blkpilot-log",
            "blkpilot-evaluate",
            "blkpilot-proto",
            "blkpilot-agent",
            "blkpilot-learn",
            "blkpilot-lab",
        ],
    ),
];

/// External crates with a home: nothing outside it may name them.
const HOMES: [(&str, &[&str]); 8] = [
    ("tch", &["blkpilot-learn"]),
    // Whoever has a binary or test that links libtorch needs its path from torch-sys.
    (
        "torch-sys",
        &["blkpilot-learn", "blkpilot-lab", "blkpilot-tests"],
    ),
    ("virt", &["blkpilot-host"]),
    ("virt-sys", &["blkpilot-host"]),
    ("procfs", &["blkpilot-host"]),
    (
        "rusqlite",
        &["blkpilot-host", "blkpilot-agent", "blkpilot-lab"],
    ),
    (
        "tokio",
        &["blkpilot-agent", "blkpilot-lab", "blkpilot-tests"],
    ),
    (
        "tonic",
        &[
            "blkpilot-proto",
            "blkpilot-agent",
            "blkpilot-lab",
            "blkpilot-tests",
        ],
    ),
];

fn metadata() -> Metadata {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    MetadataCommand::new()
        .manifest_path(manifest)
        .other_options(["--locked".to_owned()])
        .exec()
        .expect("cargo metadata reads the workspace")
}

fn members(metadata: &Metadata) -> BTreeMap<String, &Package> {
    metadata
        .workspace_packages()
        .into_iter()
        .map(|p| (p.name.to_string(), p))
        .collect()
}

/// Names that a crate's own code may use: its dependencies but not its dev-dependencies.
fn named_by(package: &Package) -> BTreeSet<String> {
    package
        .dependencies
        .iter()
        .filter(|d| d.kind == DependencyKind::Normal)
        .map(|d| d.name.clone())
        .collect()
}

#[test]
fn arrows_between_crates_point_one_way() {
    let metadata = metadata();
    let members = members(&metadata);
    let planned: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        members.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        planned
    );
    for (name, allowed) in ARROWS {
        for dependency in named_by(members[name])
            .iter()
            .filter(|d| planned.contains(d.as_str()))
        {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} must not lean on {dependency}"
            );
        }
    }
}

#[test]
fn external_crates_stay_in_their_homes() {
    let metadata = metadata();
    for (name, package) in members(&metadata) {
        let named = named_by(package);
        for (external, homes) in HOMES {
            assert!(
                !named.contains(external) || homes.contains(&name.as_str()),
                "{name} names {external}, whose home is {homes:?}"
            );
        }
    }
}

#[test]
fn what_a_plain_build_makes_does_not_reach_libtorch() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().expect("cargo metadata resolves");
    let id_of = |name: &str| {
        &metadata
            .packages
            .iter()
            .find(|p| p.name == name)
            .expect("is in the graph")
            .id
    };
    let torch = id_of("torch-sys");
    for member in &metadata.workspace_default_members[..] {
        let mut seen = BTreeSet::new();
        let mut left = vec![member];
        while let Some(id) = left.pop() {
            if !seen.insert(id) {
                continue;
            }
            assert_ne!(id, torch, "{member} reaches torch-sys");
            let node = resolve
                .nodes
                .iter()
                .find(|n| n.id == *id)
                .expect("each package has a node");
            let normal = |d: &&cargo_metadata::NodeDep| {
                d.dep_kinds
                    .iter()
                    .any(|k| k.kind != DependencyKind::Development)
            };
            left.extend(node.deps.iter().filter(normal).map(|d| &d.pkg));
        }
    }
}

#[test]
fn every_dependency_has_a_licence_that_deny_toml_allows() {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deny.toml")).unwrap();
    let deny: toml::Table = text.parse().unwrap();
    let allowed: BTreeSet<&str> = deny["licenses"]["allow"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l.as_str().unwrap())
        .collect();
    for package in &metadata().packages {
        let licence = package.license.as_deref().unwrap_or("none");
        // Old manifests separate alternatives by a slash.
        let expression = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX)
            .unwrap_or_else(|e| panic!("{}: licence `{licence}`: {e}", package.name));
        let fits = expression.evaluate(|requirement| {
            let full = requirement.to_string();
            allowed.contains(full.as_str())
        });
        assert!(
            fits,
            "{} {} is licensed {licence}, which deny.toml does not allow",
            package.name, package.version
        );
    }
}
