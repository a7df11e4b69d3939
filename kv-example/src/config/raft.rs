//! Raft's times and limits.

use std::time::Duration;

use raftkv::Config;

use super::{ConfigError, Given, Layers, ServerArgs};

pub(super) fn config(args: &ServerArgs, layers: &Layers<'_>) -> Result<Config, ConfigError> {
    let defaults = Config::default();
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let election = layers.number(
        "election-timeout-ms",
        args.election_timeout_ms.as_ref(),
        |f| f.election_timeout_ms,
        ms(defaults.election_timeout),
    )?;
    let heartbeat = layers.number(
        "heartbeat-ms",
        args.heartbeat_ms.as_ref(),
        |f| f.heartbeat_ms,
        ms(defaults.heartbeat_interval).min((election.value / 3).max(1)),
    )?;
    if election.value < 2 {
        return Err(ConfigError(format!(
            "{}: {} ms is too short for an election timeout: at least two heartbeats must fit in, of 1 ms or more",
            election.origin, election.value
        )));
    }
    if heartbeat.value.saturating_mul(2) > election.value {
        return Err(ConfigError(format!(
            "{}: {} ms is more than half of the election timeout ({} ms, {}), so followers would campaign against a live leader; \
             a third is good: {} ms",
            heartbeat.origin,
            heartbeat.value,
            election.value,
            election.origin,
            (election.value / 3).max(1)
        )));
    }
    let request =
        layers.number("request-timeout-ms", args.request_timeout_ms.as_ref(), |f| f.request_timeout_ms, 4000)?;
    let pending = layers.number(
        "max-pending-requests",
        args.max_pending_requests.as_ref(),
        |f| f.max_pending_requests,
        defaults.max_pending_requests as u64,
    )?;
    let defaults = snapshots(args, layers, defaults)?;
    let (priority, may_lead) = preference(args, layers)?;
    let config = Config {
        priority,
        may_lead,
        election_timeout: Duration::from_millis(election.value),
        heartbeat_interval: Duration::from_millis(heartbeat.value),
        lease_drift: lease_drift(args, layers)?,
        busy_poll: busy_poll(args, layers)?,
        write_timeout: Duration::from_millis(request.value),
        read_timeout: Duration::from_millis(request.value),
        max_pending_requests: usize::try_from(pending.value).unwrap_or(usize::MAX),
        ..defaults
    };
    config.validate().map_err(ConfigError)?;
    Ok(config)
}

/// What is vouched for of the members' clocks; none without leases.
fn lease_drift(args: &ServerArgs, layers: &Layers<'_>) -> Result<Option<Duration>, ConfigError> {
    let drift =
        layers.text("lease-drift-ms", args.lease_drift_ms.as_ref(), |f| f.lease_drift_ms.map(|n| n.to_string()));
    let drift = drift.map(|given| given.parse::<u64>("a whole number of milliseconds")).transpose()?;
    match drift {
        Some(Given { value: 0, origin }) => Err(ConfigError(format!(
            "{origin}: must be at least 1: no two clocks go alike; without it there are no leases"
        ))),
        drift => Ok(drift.map(|drift| Duration::from_millis(drift.value))),
    }
}

/// How long a thread looks for the next request before it sleeps. The default of the framework, 50 µs, is for clients in the same process: over a network requests come later.
fn busy_poll(args: &ServerArgs, layers: &Layers<'_>) -> Result<Duration, ConfigError> {
    let given = layers.text("busy-poll-us", args.busy_poll_us.as_ref(), |f| f.busy_poll_us.map(|n| n.to_string()));
    let given = given.map(|given| given.parse::<u64>("a whole number of microseconds, 0 for never")).transpose()?;
    match given {
        Some(Given { value, origin }) if value > 10_000 => Err(ConfigError(format!(
            "{origin}: must be at most 10000: a thread that looks again and again keeps a core busy"
        ))),
        given => Ok(given.map_or(Duration::ZERO, |given| Duration::from_micros(given.value))),
    }
}

/// The node's priority, and whether it may lead.
fn preference(args: &ServerArgs, layers: &Layers<'_>) -> Result<(u32, bool), ConfigError> {
    let priority = layers.text("priority", args.priority.as_ref(), |f| f.priority.map(|n| n.to_string()));
    let priority = priority.map(|given| given.parse::<u32>("a whole number from 0 to 4294967295")).transpose()?;
    let no_lead = layers.text("no-lead", None, |f| f.no_lead.map(|no_lead| no_lead.to_string()));
    let no_lead = no_lead.map(|given| given.parse::<bool>("true or false")).transpose()?;
    let may_lead = !(args.no_lead || no_lead.is_some_and(|given| given.value));
    Ok((priority.map_or(0, |given| given.value), may_lead))
}

/// When images are taken, what of the log stays, how busy a node is with writing one, and how many bytes of one it receives in a second.
fn snapshots(args: &ServerArgs, layers: &Layers<'_>, defaults: Config) -> Result<Config, ConfigError> {
    let entries = layers.number(
        "snapshot-entries",
        args.snapshot_entries.as_ref(),
        |f| f.snapshot_entries,
        defaults.snapshot_entries,
    )?;
    let mib =
        layers.number("snapshot-mib", args.snapshot_mib.as_ref(), |f| f.snapshot_mib, defaults.snapshot_bytes >> 20)?;
    let trailing = layers.number(
        "trailing-entries",
        args.trailing_entries.as_ref(),
        |f| f.trailing_entries,
        defaults.trailing_entries,
    )?;
    let rate = layers.number(
        "snapshot-kib-per-second",
        args.snapshot_kib_per_second.as_ref(),
        |f| f.snapshot_kib_per_second,
        u64::MAX,
    )?;
    let busy = layers.number(
        "snapshot-busy-percent",
        args.snapshot_busy_percent.as_ref(),
        |f| f.snapshot_busy_percent,
        defaults.snapshot_busy_percent.into(),
    )?;
    let busy_percent = u32::try_from(busy.value).ok().filter(|percent| *percent <= 100);
    let Some(snapshot_busy_percent) = busy_percent else {
        return Err(ConfigError(format!("{}: it is a part of the time, 1 to 100 percent", busy.origin)));
    };
    Ok(Config {
        snapshot_busy_percent,
        snapshot_entries: entries.value,
        snapshot_bytes: mib.value.saturating_mul(1 << 20),
        trailing_entries: trailing.value,
        snapshot_bytes_per_second: rate.value.saturating_mul(1024),
        ..defaults
    })
}
