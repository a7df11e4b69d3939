//! What was measured, as a table that stays: comma-separated values, a line a run, and a line before them that says where it comes from.

use std::fmt::Write;

use anyhow::{Context, Result, bail};

use super::sweep::Setting;

const COLUMNS: &str = "x,series,round,clients,value_bytes,keys,nodes,delay_ms,operations_per_s,p50_ms,p99_ms,p999_ms,max_ms,errors,\
                       server_cores,generator_cores,other_cores,memory_mib";

/// Where a table comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// The commit that was measured.
    pub commit: String,
    /// How long each run took.
    pub seconds: f64,
    /// How many cores servers and load generator shared.
    pub cores: usize,
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The value of what is varied.
    pub x: u64,
    /// Which line of the figure.
    pub series: String,
    /// Which round, from 1.
    pub round: u32,
    /// All that it depends on, with this series' own number of clients.
    pub setting: Setting,
    /// What was measured.
    pub measured: Measured,
}

/// The outcome of a run. What is not known is not a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Requests that succeeded, a second.
    pub throughput: f64,
    /// Half of them took no longer than this, in milliseconds.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// Requests that failed.
    pub errors: u64,
    /// How many cores all the servers together kept busy.
    pub servers: f64,
    /// How many the load generator did, and who delays what nodes say.
    pub generator: f64,
    /// How many everybody else on the machine did.
    pub others: f64,
    /// What the largest server had in memory at the end, in MiB.
    pub memory: f64,
}

/// A sweep's runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Where they come from.
    pub origin: Origin,
    /// Each run.
    pub rows: Vec<Row>,
}

impl Table {
    /// The table as text.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let Origin { commit, seconds, cores } = &self.origin;
        let mut text = format!("# commit={commit} seconds={seconds} cores={cores}\n{COLUMNS}\n");
        for row in &self.rows {
            let Setting { clients, value_size, keys, nodes, delay_ms } = row.setting;
            let delay = delay_ms.map_or_else(String::new, |ms| ms.to_string());
            let m = &row.measured;
            let figures = [m.throughput, m.p50, m.p99, m.p999, m.max].map(figure).join(",");
            let costs = [m.servers, m.generator, m.others, m.memory].map(figure).join(",");
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{},{},{},{clients},{value_size},{keys},{nodes},{delay},{figures},{},{costs}",
                row.x, row.series, row.round, m.errors
            );
        }
        text
    }

    /// Reads such a text.
    ///
    /// # Errors
    /// It is none; which line is not.
    pub fn from_csv(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let origin = lines.next().and_then(origin).context("line 1 is not `# commit=… seconds=… cores=…`")?;
        if lines.next() != Some(COLUMNS) {
            bail!("line 2 does not name the columns {COLUMNS}");
        }
        let numbered = lines.enumerate().filter(|(_, line)| !line.is_empty());
        let rows = numbered.map(|(n, line)| row(line).with_context(|| format!("line {}: {line:?}", n + 3)));
        Ok(Self { origin, rows: rows.collect::<Result<_>>()? })
    }
}

/// Three digits after the point are enough; nothing stands for what is not known.
fn figure(value: f64) -> String {
    if value.is_finite() { ((value * 1000.0).round() / 1000.0).to_string() } else { String::new() }
}

fn origin(line: &str) -> Option<Origin> {
    let mut fields = line.strip_prefix("# ")?.split(' ');
    let mut field = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=');
    Some(Origin {
        commit: field("commit")?.to_owned(),
        seconds: field("seconds")?.parse().ok()?,
        cores: field("cores")?.parse().ok()?,
    })
}

fn row(line: &str) -> Result<Row> {
    let fields: Vec<_> = line.split(',').collect();
    if fields.len() != COLUMNS.split(',').count() {
        bail!("it has {} fields", fields.len());
    }
    let whole = |n: usize| fields[n].parse::<u64>().with_context(|| format!("{:?} is not a whole number", fields[n]));
    let figure = |n: usize| match fields[n] {
        "" => Ok(f64::NAN),
        text => text.parse::<f64>().with_context(|| format!("{text:?} is not a number")),
    };
    let delay_ms = if fields[7].is_empty() { None } else { Some(whole(7)?) };
    Ok(Row {
        x: whole(0)?,
        series: fields[1].to_owned(),
        round: fields[2].parse().with_context(|| format!("{:?} is no round", fields[2]))?,
        setting: Setting { clients: whole(3)?, value_size: whole(4)?, keys: whole(5)?, nodes: whole(6)?, delay_ms },
        measured: Measured {
            throughput: figure(8)?,
            p50: figure(9)?,
            p99: figure(10)?,
            p999: figure(11)?,
            max: figure(12)?,
            errors: whole(13)?,
            servers: figure(14)?,
            generator: figure(15)?,
            others: figure(16)?,
            memory: figure(17)?,
        },
    })
}

/// A table for tests of what is drawn from it.
#[cfg(test)]
pub(super) fn example(x: u64, series: &str, round: u32, setting: Setting, throughput: f64) -> Row {
    let measured = Measured {
        throughput,
        p50: 1.25,
        p99: 4.0,
        p999: 6.125,
        max: 9.5,
        errors: 2,
        servers: 1.25,
        generator: 0.5,
        others: f64::NAN,
        memory: 96.5,
    };
    Row { x, series: series.into(), round, setting, measured }
}

#[cfg(test)]
mod tests {
    use super::super::sweep::Sweep;
    use super::*;

    fn table() -> Table {
        let rows = [0, 50].map(|x| example(x, "puts by 64 clients", 1, Sweep::Delay.setting(x, 3), 31_000.5)).into();
        Table { origin: Origin { commit: "abc1234".into(), seconds: 0.5, cores: 2 }, rows }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut table = table();
        table.rows.push(example(16, "puts", 2, Sweep::Clients.setting(16, 1), 7.0));
        let read = Table::from_csv(&table.to_csv()).unwrap();
        // What is not a number is not equal to itself.
        assert_eq!(format!("{read:?}"), format!("{table:?}"));
        assert!(read.rows[0].measured.others.is_nan());
    }

    #[test]
    fn the_fault_in_a_table_is_told_with_its_line() {
        let text = table().to_csv();
        for (from, to, fault) in [
            ("# commit", "commit", "line 1"),
            ("p50_ms,", "", "line 2"),
            (",31000.5,", ",many,", "line 3"),
            (",1,64,", ",1,64", "line 3"),
        ] {
            let error = Table::from_csv(&text.replacen(from, to, 1)).unwrap_err();
            assert!(format!("{error:#}").contains(fault), "{error:#}");
        }
    }
}
