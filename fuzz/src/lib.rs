//! Every decoder of the workspace that reads bytes from a peer, a client or a disk. Each package keeps its own list; here they get
//! names that are theirs alone.

use raftkv::testing::fuzzing::{Meter, Target};

/// Lets targets assert how much memory they take, as they do in tests.
#[global_allocator]
static METER: Meter = Meter;

/// The packages and their targets.
pub const PACKAGES: &[(&str, &[Target])] = &[
    ("raft", raftkv::testing::fuzzing::TARGETS),
    ("storage_file", raftkv_storage_file::fuzzing::TARGETS),
    ("storage_redb", raftkv_storage_redb::fuzzing::TARGETS),
    ("transport_grpc", raftkv_transport_grpc::fuzzing::TARGETS),
    ("transport_tarpc", raftkv_transport_tarpc::fuzzing::TARGETS),
    ("kv_example", kv_example::fuzzing::TARGETS),
];

/// The target with a name such as `storage_file_log`.
pub fn target(name: &str) -> Target {
    let all = PACKAGES.iter().flat_map(|(package, targets)| targets.iter().map(move |target| (package, target)));
    let found = all.into_iter().find(|(package, target)| format!("{package}_{}", target.name) == name);
    found.map_or_else(|| panic!("there is no target {name}"), |(_, target)| *target)
}

/// Makes a fuzz target of the file that it stands in.
#[macro_export]
macro_rules! fuzz {
    ($name:literal) => {
        static TARGET: std::sync::LazyLock<raftkv::testing::fuzzing::Target> =
            std::sync::LazyLock::new(|| $crate::target($name));
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
    };
}
