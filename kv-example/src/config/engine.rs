//! What a node is made of, where there is a choice.

use std::str::FromStr;

use super::{ConfigError, Given, Layers, ServerArgs};
use crate::backends::{EngineKind, STORE_CACHE_BYTES, StoreKind, TransportKind};

const ENGINE_CACHE_MIB: u64 = 256;

/// How members talk to each other.
pub(super) fn transport(args: &ServerArgs, layers: &Layers<'_>) -> Result<TransportKind, ConfigError> {
    let given = layers.text("transport", args.transport.as_ref(), |f| f.transport.clone());
    Ok(given.map(kind).transpose()?.unwrap_or_default())
}

/// What keeps log and images, if it is said, and the memory that it may take for what it has read or is to write, in bytes.
pub(super) fn store(args: &ServerArgs, layers: &Layers<'_>) -> Result<(Option<StoreKind>, u64), ConfigError> {
    let said = layers.text("store", args.store.as_ref(), |f| f.store.clone());
    let said_at = said.as_ref().map(|given| given.origin.rank());
    let store = said.map(kind).transpose()?;
    let usual = STORE_CACHE_BYTES >> 20;
    let cache = layers.number("store-cache-mib", args.store_cache_mib.as_ref(), |f| f.store_cache_mib, usual)?;
    if store != Some(StoreKind::Redb) {
        let instead = store
            .map_or_else(|| "which is not said: say it as well".into(), |store| format!("and the store is {store}"));
        refuse_useless(&cache, said_at, "--store redb", &instead)?;
    }
    Ok((store, cache.value.saturating_mul(1 << 20)))
}

fn kind<K: FromStr<Err = String>>(Given { value, origin }: Given<String>) -> Result<K, ConfigError> {
    value.trim().parse().map_err(|reason| ConfigError(format!("{origin}: {reason}")))
}

/// The engine, and the memory that it may take for what is kept elsewhere, in bytes.
pub(super) fn chosen(args: &ServerArgs, layers: &Layers<'_>) -> Result<(EngineKind, u64), ConfigError> {
    let said = layers.text("engine", args.engine.as_ref(), |f| f.engine.clone());
    let said_at = said.as_ref().map(|given| given.origin.rank());
    let engine = said.map(kind).transpose()?.unwrap_or_default();
    let cache =
        layers.number("engine-cache-mib", args.engine_cache_mib.as_ref(), |f| f.engine_cache_mib, ENGINE_CACHE_MIB)?;
    if engine != EngineKind::Redb {
        refuse_useless(&cache, said_at, "--engine redb", &format!("and the engine is {engine}"))?;
    }
    Ok((engine, cache.value.saturating_mul(1 << 20)))
}

/// Refuses a cache that was said for what there is none of. Whoever overrides what it is of for once need not take the cache out of the file.
fn refuse_useless(cache: &Given<u64>, said_at: Option<u8>, of: &str, instead: &str) -> Result<(), ConfigError> {
    let Given { origin, .. } = cache;
    let overridden = said_at.is_some_and(|rank| rank < origin.rank());
    if origin.is_default() || overridden {
        return Ok(());
    }
    Err(ConfigError(format!("{origin}: it is the cache of {of}, {instead}")))
}
