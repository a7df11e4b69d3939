//! The only place that awaits a backend.
//!
//! | what happens | where |
//! |---|---|
//! | a node comes up | `boot.rs` |
//! | receive → step → dispatch | `driver.rs` |
//! | … and what is about to come is waited for without sleep | `busy.rs` |
//! | a client's request is admitted | `intake.rs` |
//! | … and waits for its answer | `pending.rs` |
//! | a peer's message comes | `inbox.rs` |
//! | a message leaves | `outbox.rs` |
//! | the log is written, and read back | `log_writer.rs`, `fetcher.rs` |
//! | a task or a timer is started | `host.rs`, `clock.rs` |
//! | the machine is too slow for the timeouts | `lateness.rs` |
//! | what happens is counted, and a stall noticed | `meter.rs`, `stall.rs` |
//! | committed entries reach the state machine, and it is frozen | `applier.rs`, in batches that `pace.rs` measures |
//! | … which of them are repetitions of a session's write | `replica.rs` |
//! | an image is written | `snapshotter.rs`, in the layout of `image.rs` |
//! | an image is received, or read for a peer | `images.rs` |

mod applier;
mod boot;
mod busy;
mod clock;
mod deferred;
mod driver;
mod events;
mod fetcher;
mod host;
pub(crate) mod image;
mod images;
mod inbox;
mod intake;
mod lateness;
mod leaving;
mod log_writer;
mod mailbox;
mod meter;
mod outbox;
mod pace;
mod pending;
pub(crate) mod random;
mod replica;
mod shared;
mod snapshotter;
mod stall;

use std::any::Any;

pub(crate) use boot::{Parts, find_configurations, start};
pub use events::{Event, Events, Stall};
#[doc(hidden)]
pub use host::Host;
pub(crate) use host::Tasks;
pub use inbox::{Arrivals, Inbox};
pub(crate) use intake::{NotAdmitted, Request};
pub(crate) use shared::{Control, Shared};

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a text")
}
