//! What keeps the contents.

use super::{ConfigError, Given, Layers, ServerArgs};
use crate::backends::EngineKind;

const CACHE_MIB: u64 = 256;

/// The engine, and the memory that it may take for what is kept elsewhere, in bytes.
pub(super) fn chosen(args: &ServerArgs, layers: &Layers<'_>) -> Result<(EngineKind, u64), ConfigError> {
    let engine = match layers.text("engine", args.engine.as_ref(), |f| f.engine.clone()) {
        Some(Given { value, origin }) => {
            value.trim().parse().map_err(|reason| ConfigError(format!("{origin}: {reason}")))?
        }
        None => EngineKind::default(),
    };
    let cache = layers.number("engine-cache-mib", args.engine_cache_mib.as_ref(), |f| f.engine_cache_mib, CACHE_MIB)?;
    Ok((engine, cache.value.saturating_mul(1 << 20)))
}
