//! The consensus core: a value and a function.

mod io;
mod role;

pub use io::{Boot, Effects, Fetch, FetchPurpose, InitializeRefused, Input, Note, RefusedReason, Reply, Time, Write};
pub use role::RoleKind;
