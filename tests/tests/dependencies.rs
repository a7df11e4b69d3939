//! What `deny.toml` allows of the crates that the workspace depends on, without cargo-deny and without a network: licences, one version of each crate,
//! and where they come from. Not to be told without a network: advisories, and versions that were yanked. `cargo deny check` tells.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use raftkv_tests::process::notice;
use serde_json::Value as Json;
use toml::Value as Toml;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn rules() -> Toml {
    std::fs::read_to_string(format!("{ROOT}/deny.toml")).unwrap().parse::<toml::Table>().unwrap().into()
}

fn texts(list: &Toml) -> Vec<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// All crates on the platform that nodes run on, and how they depend on each other.
fn metadata() -> Json {
    metadata_of(".", &["--offline"]).unwrap()
}

/// The same of what is in this directory, or what cargo has against it.
fn metadata_of(dir: &str, more: &[&str]) -> Result<Json, String> {
    let platform = texts(&rules()["graph"]["targets"]).remove(0);
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--all-features", "--filter-platform", &platform])
        .args(["--manifest-path", &format!("{ROOT}/{dir}/Cargo.toml")])
        .args(more)
        .output()
        .unwrap();
    if !cargo.status.success() {
        return Err(String::from_utf8_lossy(&cargo.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&cargo.stdout).unwrap())
}

/// What is built apart from the workspace, with a lock file of its own.
struct Apart {
    dir: &'static str,
    /// Licences that one crate has there which no other may have.
    licences: &'static [(&'static str, &'static str)],
    /// Crates that are there twice, and not at all in the workspace.
    doubled: &'static [&'static str],
}

const APART: [Apart; 2] = [
    // LLVM's, for the part of it that the crate brings along. It is in no program that anybody runs but to fuzz.
    Apart { dir: "fuzz", licences: &[("libfuzzer-sys", "NCSA")], doubled: &[] },
    // Both for postcard with its feature `use-std`.
    Apart { dir: "tests/downstream", licences: &[], doubled: &["embedded-io"] },
];

/// What a lock file names that comes from elsewhere: the versions of each crate, and where each is from.
fn locked(dir: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let lock = std::fs::read_to_string(format!("{ROOT}/{dir}/Cargo.lock")).unwrap().parse::<toml::Table>().unwrap();
    let mut all: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let text = |key| package.get(key).map(|text| text.as_str().unwrap().to_owned());
        if let Some(source) = text("source") {
            all.entry(text("name").unwrap()).or_default().insert(text("version").unwrap(), source);
        }
    }
    all
}

fn text<'a>(json: &'a Json, key: &str) -> &'a str {
    json[key].as_str().unwrap_or_else(|| panic!("no {key} in {json}"))
}

fn list(json: &Json) -> &[Json] {
    json.as_array().unwrap()
}

/// Whether a licence expression (SPDX, or with the slashes of old) can be met with these licences.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ").replace(" WITH ", "~");
    let tokens: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = &tokens[..];
    let met = any_of(&mut rest, allowed);
    assert!(rest.is_empty(), "{expression:?} is no expression");
    met
}

fn any_of(tokens: &mut &[&str], allowed: &[String]) -> bool {
    let mut met = all_of(tokens, allowed);
    while let ["OR", rest @ ..] = *tokens {
        *tokens = rest;
        met |= all_of(tokens, allowed);
    }
    met
}

fn all_of(tokens: &mut &[&str], allowed: &[String]) -> bool {
    let mut met = one(tokens, allowed);
    while let ["AND", rest @ ..] = *tokens {
        *tokens = rest;
        met &= one(tokens, allowed);
    }
    met
}

fn one(tokens: &mut &[&str], allowed: &[String]) -> bool {
    let (first, rest) = tokens.split_first().expect("a licence");
    *tokens = rest;
    if *first == "(" {
        let met = any_of(tokens, allowed);
        let (end, rest) = tokens.split_first().expect("an end");
        assert_eq!(*end, ")");
        *tokens = rest;
        return met;
    }
    // "Or any later version" is met by this one.
    let licence = first.trim_end_matches('+').replace('~', " WITH ");
    allowed.contains(&licence)
}

#[test]
fn expressions_are_read_as_they_are_meant() {
    let allowed = ["MIT".to_owned(), "ISC".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()];
    for met in [
        "MIT",
        "MIT+",
        "GPL-3.0 OR MIT",
        "GPL-3.0/MIT",
        "MIT AND ISC",
        "(GPL-3.0 OR MIT) AND ISC",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in ["GPL-3.0", "GPL-3.0 AND MIT", "MIT AND (GPL-3.0 OR Zlib)", "Apache-2.0"] {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}

/// The registry that something comes from is one that is allowed.
fn assert_source(name: &str, source: &str) {
    let registries = texts(&rules()["sources"]["allow-registry"]);
    let registry = source.strip_prefix("registry+").unwrap_or_else(|| panic!("{name} comes from {source}"));
    assert!(registries.iter().any(|known| known == registry), "{name} comes from {registry}");
}

#[test]
fn every_crate_has_a_licence_that_is_allowed_and_comes_from_the_registry() {
    let metadata = metadata();
    let allowed = texts(&rules()["licenses"]["allow"]);
    let mut crates = 0;
    for package in list(&metadata["packages"]) {
        let name = format!("{} {}", text(package, "name"), text(package, "version"));
        assert!(is_met(text(package, "license"), &allowed), "{name}: {}", package["license"]);
        let Some(source) = package["source"].as_str() else { continue };
        assert_source(&name, source);
        crates += 1;
    }
    assert!(crates > 100, "{crates} crates");
}

/// What is built apart is held to the same: its lock file is no way around these rules, and does not fall behind.
#[test]
fn what_is_built_apart_has_the_workspaces_versions_and_else_one_of_each_from_the_registry() {
    let workspace = locked(".");
    for Apart { dir, doubled, .. } in &APART {
        let mut doubled: BTreeSet<_> = doubled.iter().copied().collect();
        let all = locked(dir);
        assert!(all.len() > 20, "{} crates in {dir}", all.len());
        for (name, versions) in &all {
            for (version, source) in versions {
                assert_source(&format!("{name} {version} of {dir}"), source);
            }
            match workspace.get(name) {
                Some(known) => {
                    let other = versions.keys().find(|version| !known.contains_key(*version));
                    assert!(
                        other.is_none(),
                        "{dir}/Cargo.lock has {name} {versions:?}, and the workspace {known:?}: \
                         cargo update --manifest-path {dir}/Cargo.toml {name} --precise VERSION"
                    );
                }
                None if versions.len() > 1 => {
                    assert!(doubled.remove(&**name), "{dir}: {name} is there as {versions:?}");
                }
                None => {}
            }
        }
        assert!(doubled.is_empty(), "{dir}: not there, or there once: {doubled:?}");
    }
}

/// Which licence a crate has stands in itself. What was not downloaded yet cargo gets now; where it can't, nothing is said of what is in that directory.
#[test]
fn what_is_built_apart_has_licences_that_are_allowed() {
    let allowed = texts(&rules()["licenses"]["allow"]);
    for Apart { dir, licences, .. } in &APART {
        let metadata = metadata_of(dir, &["--offline"]).or_else(|_| metadata_of(dir, &[]));
        let metadata = match metadata {
            Ok(metadata) => metadata,
            Err(error) if error.contains("--locked was passed") => panic!("{error}"),
            Err(error) => {
                notice(&format!(
                    "SKIPPED: the licences in {dir}, which takes `cargo fetch --locked --manifest-path {dir}/Cargo.toml`: {error}"
                ));
                continue;
            }
        };
        let mut besides: BTreeMap<_, _> = licences.iter().copied().collect();
        // What stands here is no crate that anybody gets.
        for package in list(&metadata["packages"]).iter().filter(|package| !package["source"].is_null()) {
            let name = text(package, "name");
            let licence = text(package, "license");
            let also = besides.remove(name).map(str::to_owned);
            assert!(also.is_none() || !is_met(licence, &allowed), "{dir}: {name} is {licence}: no exception is needed");
            let allowed: Vec<_> = allowed.iter().cloned().chain(also).collect();
            assert!(is_met(licence, &allowed), "{dir}: {name} is {licence}");
        }
        assert!(besides.is_empty(), "{dir}: these are not there: {besides:?}");
    }
}

/// Those that tests alone need don't count.
#[test]
fn every_crate_is_there_once_save_those_that_are_named() {
    let metadata = metadata();
    let nodes: BTreeMap<_, _> =
        list(&metadata["resolve"]["nodes"]).iter().map(|node| (text(node, "id"), node)).collect();
    let mut seen = BTreeSet::new();
    let mut next: Vec<&str> = list(&metadata["workspace_members"]).iter().map(|id| id.as_str().unwrap()).collect();
    while let Some(id) = next.pop() {
        if seen.insert(id) {
            let needed = |dep: &&Json| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
            next.extend(list(&nodes[id]["deps"]).iter().filter(needed).map(|dep| text(dep, "pkg")));
        }
    }
    let mut versions: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for package in list(&metadata["packages"]).iter().filter(|package| seen.contains(text(package, "id"))) {
        versions.entry(text(package, "name")).or_default().push(text(package, "version"));
    }
    let rules = rules();
    let mut skipped: BTreeSet<_> =
        rules["bans"]["skip"].as_array().unwrap().iter().map(|skip| skip["crate"].as_str().unwrap()).collect();
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        let known: Vec<_> = versions
            .iter()
            .filter(|version| {
                let is_named = |skip: &&&str| {
                    let (crate_name, wanted) = skip.split_once('@').unwrap();
                    crate_name == *name && (**version == wanted || version.starts_with(&format!("{wanted}.")))
                };
                let found = skipped.iter().find(is_named).copied();
                found.is_some_and(|found| skipped.remove(found))
            })
            .collect();
        assert_eq!(known.len(), versions.len() - 1, "{name} is there as {versions:?}; deny.toml names {known:?}");
    }
    assert!(skipped.is_empty(), "deny.toml names what is not there, or there once: {skipped:?}");
}
