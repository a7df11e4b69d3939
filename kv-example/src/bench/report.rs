//! What was measured, for people and for programs.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::stats::Stats;
use super::{BenchArgs, Rate};
use crate::cli::{Failure, output};
use crate::config::HostPort;

const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p999", 99.9)];

pub(super) fn print(args: &BenchArgs, targets: &[HostPort], connections: usize, stats: &Stats) -> Result<(), Failure> {
    let all = stats.all().map_err(Failure::runtime)?;
    let throughput = stats.operations as f64 / args.duration.as_secs_f64();
    if args.json {
        return output::print_json(&json!({
            "workload": args.workload.name(),
            "consistency": args.freshness().map(|freshness| freshness.to_string()),
            "clients": args.clients,
            "connections": connections,
            "endpoints": targets.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "value_size": args.value_size,
            "keys": args.keys,
            "rate": match args.rate { Rate::Max => None, Rate::PerSecond(rate) => Some(rate) },
            "duration_s": args.duration.as_secs_f64(),
            "operations": stats.operations,
            "throughput": rounded(throughput),
            "unsent": stats.unsent,
            "errors": stats.errors,
            "per_second": stats.per_second,
            "latency_ms": {
                "all": latency_json(&all),
                "reads": latency_json(&stats.reads),
                "writes": latency_json(&stats.writes),
            },
        }));
    }
    let rate = match args.rate {
        Rate::Max => "as fast as they can".to_owned(),
        Rate::PerSecond(rate) => format!("{rate}/s wanted"),
    };
    output::print(format!(
        "{}, {} on {}, values of {} bytes, {} keys, {rate}, {:.1} s",
        args.workload.name(),
        counted(args.clients, "client"),
        counted(connections as u64, "connection"),
        args.value_size,
        args.keys,
        args.duration.as_secs_f64()
    ))?;
    if !all.is_empty() {
        output::print(latency_table(&all, stats))?;
    }
    output::print(format!("{throughput:.0} requests/s{}", spread(&stats.per_second)))?;
    if stats.unsent > 0 {
        output::print(format!(
            "{} requests were due and never sent: the rate is more than the servers can do",
            stats.unsent
        ))?;
    }
    for (kind, count) in &stats.errors {
        output::print(format!("{count} errors: {kind}"))?;
    }
    Ok(())
}

fn counted(count: impl Into<u64>, what: &str) -> String {
    match count.into() {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

fn latency_json(histogram: &Histogram<u64>) -> Value {
    let mut object = serde_json::Map::new();
    object.insert("count".into(), json!(histogram.len()));
    if !histogram.is_empty() {
        object.insert("mean".into(), json!(rounded(histogram.mean() / 1e6)));
        for (name, percentile) in PERCENTILES {
            object.insert(name.into(), json!(rounded(histogram.value_at_percentile(percentile) as f64 / 1e6)));
        }
        object.insert("max".into(), json!(rounded(histogram.max() as f64 / 1e6)));
    }
    Value::Object(object)
}

fn latency_table(all: &Histogram<u64>, stats: &Stats) -> comfy_table::Table {
    let mut table = output::table(["", "count", "mean", "p50", "p90", "p99", "p99.9", "max"]);
    for (name, histogram) in [("reads", &stats.reads), ("writes", &stats.writes), ("all", all)] {
        // With one kind only, "all" would say the same again.
        if histogram.is_empty() || (name == "all" && (stats.reads.is_empty() || stats.writes.is_empty())) {
            continue;
        }
        let mut row = vec![name.to_owned(), histogram.len().to_string(), ms(histogram.mean())];
        row.extend(PERCENTILES.iter().map(|(_, p)| ms(histogram.value_at_percentile(*p) as f64)));
        row.push(ms(histogram.max() as f64));
        table.add_row(row);
    }
    output::align_right(&mut table, 1..8);
    table
}

fn ms(nanoseconds: f64) -> String {
    format!("{:.2} ms", nanoseconds / 1e6)
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The slowest and fastest second, so that a stall within the run shows.
fn spread(per_second: &[u64]) -> String {
    match (per_second.iter().min(), per_second.iter().max()) {
        (Some(least), Some(most)) if per_second.len() > 1 => format!(" (from {least} to {most} in a second)"),
        _ => String::new(),
    }
}
