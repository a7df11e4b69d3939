//! How many threads serve.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use super::{ConfigError, Layers, ServerArgs};

/// Far more than are of use.
const MOST: usize = 1024;

/// Half of the cores, unless it is said. The log, images and whatever may block have threads of their own, and threads that serve wake each other with each
/// event that comes: on a machine whose cores are busy, that is time that requests wait for.
pub(super) fn count(args: &ServerArgs, layers: &Layers<'_>) -> Result<usize, ConfigError> {
    let cores = available_parallelism().map_or(1, NonZeroUsize::get);
    let given = layers.number("workers", args.workers.as_ref(), |f| f.workers, cores.div_ceil(2) as u64)?;
    let workers = usize::try_from(given.value).ok().filter(|workers| *workers <= MOST);
    workers.ok_or_else(|| {
        ConfigError(format!("{}: must be at most {MOST}; more threads than cores gain nothing", given.origin))
    })
}
