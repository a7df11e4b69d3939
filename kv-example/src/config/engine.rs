//! What a node is made of, where there is a choice.

use std::str::FromStr;

use super::{ConfigError, Given, Layers, ServerArgs};
use crate::backends::{EngineKind, StoreKind, TransportKind};

const CACHE_MIB: u64 = 256;

/// How members talk to each other.
pub(super) fn transport(args: &ServerArgs, layers: &Layers<'_>) -> Result<TransportKind, ConfigError> {
    let given = layers.text("transport", args.transport.as_ref(), |f| f.transport.clone());
    Ok(given.map(kind).transpose()?.unwrap_or_default())
}

/// What keeps log and images, if it is said.
pub(super) fn store(args: &ServerArgs, layers: &Layers<'_>) -> Result<Option<StoreKind>, ConfigError> {
    let given = layers.text("store", args.store.as_ref(), |f| f.store.clone());
    given.map(kind).transpose()
}

fn kind<K: FromStr<Err = String>>(Given { value, origin }: Given<String>) -> Result<K, ConfigError> {
    value.trim().parse().map_err(|reason| ConfigError(format!("{origin}: {reason}")))
}

/// The engine, and the memory that it may take for what is kept elsewhere, in bytes.
pub(super) fn chosen(args: &ServerArgs, layers: &Layers<'_>) -> Result<(EngineKind, u64), ConfigError> {
    let said = layers.text("engine", args.engine.as_ref(), |f| f.engine.clone());
    let said_at = said.as_ref().map(|given| given.origin.rank());
    let engine = said.map(kind).transpose()?.unwrap_or_default();
    let cache = layers.number("engine-cache-mib", args.engine_cache_mib.as_ref(), |f| f.engine_cache_mib, CACHE_MIB)?;
    // Whoever overrides the engine for once need not take the cache out of the file.
    let overridden = said_at.is_some_and(|rank| rank < cache.origin.rank());
    if engine != EngineKind::Redb && !cache.origin.is_default() && !overridden {
        let origin = cache.origin;
        return Err(ConfigError(format!("{origin}: it is the cache of --engine redb, and the engine is {engine}")));
    }
    Ok((engine, cache.value.saturating_mul(1 << 20)))
}
