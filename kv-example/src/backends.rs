//! What a node is made of, where there is a choice: what the operator names is opened here, and only here does it matter what was compiled in.
//!
//! | option | kinds | cargo feature |
//! |---|---|---|
//! | `--engine` | `memory` | always there |
//! |  | `redb` | `redb` |

#[cfg(feature = "redb")]
pub mod redb;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use raftkv::{ClusterId, Fatal, NodeId, StateMachine};

use crate::machine::{KvMachine, KvView};

/// What keeps the contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// Memory alone: the fastest. A start reads the newest image and the log after it.
    #[default]
    Memory,
    /// A redb database in the data directory: contents may exceed the memory, and a start reads nothing again.
    Redb,
}

impl EngineKind {
    const ALL: [Self; 2] = [Self::Memory, Self::Redb];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redb => "redb",
        }
    }

    /// The cargo feature that this program was built without, but would need for this.
    fn missing(self) -> Option<&'static str> {
        match self {
            Self::Redb if !cfg!(feature = "redb") => Some("redb"),
            Self::Memory | Self::Redb => None,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EngineKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        choose("an engine", &Self::ALL, Self::name, Self::missing, text)
    }
}

/// Finds a kind by its name. The error says what there is, or what it would take.
fn choose<K: Copy>(
    what: &str,
    all: &[K],
    name: impl Fn(K) -> &'static str,
    missing: impl Fn(K) -> Option<&'static str>,
    text: &str,
) -> Result<K, String> {
    let Some(kind) = all.iter().copied().find(|kind| name(*kind) == text) else {
        let known: Vec<_> = all.iter().map(|kind| name(*kind)).collect();
        return Err(format!("{text:?} is not {what}; there are {}", known.join(", ")));
    };
    match missing(kind) {
        None => Ok(kind),
        Some(feature) => Err(format!(
            "this program was built without {text}: build it again with `cargo build --release -p kv-example --features {feature}`"
        )),
    }
}

/// A state machine, and how readers see it.
pub(crate) type Machine = (Box<dyn StateMachine>, KvView);

/// Opens the state machine of a node, in its data directory if it keeps anything. `cache_bytes` is the memory that a database may take for pages.
pub(crate) fn open_machine(
    kind: EngineKind,
    data: &Path,
    (cluster, node): (ClusterId, NodeId),
    cache_bytes: u64,
) -> Result<Machine, Fatal> {
    match kind {
        EngineKind::Memory => {
            let machine = KvMachine::new();
            let view = machine.view();
            Ok((Box::new(machine), view))
        }
        EngineKind::Redb => open_redb(&data.join("kv.redb"), cluster, node, cache_bytes),
    }
}

#[cfg(feature = "redb")]
fn open_redb(path: &Path, cluster: ClusterId, node: NodeId, cache_bytes: u64) -> Result<Machine, Fatal> {
    let options =
        redb::Options { cache_bytes: usize::try_from(cache_bytes).unwrap_or(usize::MAX), ..redb::Options::default() };
    let machine = redb::RedbMachine::open(path, redb::Owner { cluster, node }, options)?;
    let view = machine.view();
    Ok((Box::new(machine), view))
}

#[cfg(not(feature = "redb"))]
fn open_redb(path: &Path, _: ClusterId, _: NodeId, _: u64) -> Result<Machine, Fatal> {
    // The configuration refused it already.
    Err(Fatal::state_machine(format!("{}: this program was built without the feature redb", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_by_its_name_and_else_it_is_told_what_there_is() {
        for kind in EngineKind::ALL {
            match kind.missing() {
                None => assert_eq!(kind.to_string().parse(), Ok(kind)),
                Some(feature) => {
                    let error = kind.to_string().parse::<EngineKind>().unwrap_err();
                    assert!(error.contains(&format!("--features {feature}")), "{error}");
                }
            }
        }
        let error = "rocks".parse::<EngineKind>().unwrap_err();
        assert_eq!(error, "\"rocks\" is not an engine; there are memory, redb");
        let missing = choose("an engine", &[1], |_| "x", |_| Some("y"), "x").unwrap_err();
        assert!(missing.contains("built without x") && missing.contains("--features y"), "{missing}");
    }
}
