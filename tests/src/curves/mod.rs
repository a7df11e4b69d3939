//! How cost grows: throughput, latency, processor time and memory over the number of clients, the size of values, the number of nodes, the
//! number of keys, and the distance between nodes.
//!
//! Each point has a cluster of its own, of real server processes on 127.0.0.1, with the keys already there, so that no point pays for what
//! another has left. The points of a sweep take turns: what else the machine does meanwhile meets all of them alike, and each figure shows
//! how far the rounds went apart. `--bin curves` is the command.
//!
//! * [`Sweep`] says what is varied; the load generator is that of `kv-example`.
//! * [`Table`] is what was measured, one line a run, and stays beside the figures: they can be drawn again without measuring.
//! * [`svg`] draws.

mod figure;
mod stage;
pub mod svg;
mod sweep;
mod table;
mod usage;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::watch;

pub use figure::draw;
pub use sweep::{Series, Setting, Sweep};
pub use table::{Measured, Origin, Row, Table};

use stage::{Ran, Stage};

/// What is measured, and where it goes.
#[derive(Clone, Debug)]
pub struct Options {
    /// `kv-example`: server and load generator.
    pub kv: PathBuf,
    /// Which sweeps.
    pub sweeps: Vec<Sweep>,
    /// Where; empty: where each sweep wants.
    pub points: Vec<u64>,
    /// How often.
    pub rounds: u32,
    /// How long a run is measured.
    pub duration: Duration,
    /// How long it goes on before that.
    pub warmup: Duration,
    /// How many keys there are at most, where their number is varied.
    pub max_keys: u64,
    /// How many nodes there are, where their number is not varied.
    pub nodes: u64,
    /// More options for every server.
    pub server: Vec<String>,
    /// Where the servers' data goes, in a directory of its own that is removed.
    pub dir: PathBuf,
    /// Where figures go, and tables into `curves` below it.
    pub out: PathBuf,
}

impl Options {
    fn points(&self, sweep: Sweep) -> Vec<u64> {
        if self.points.is_empty() { sweep.points(self.max_keys) } else { self.points.clone() }
    }

    /// How many runs that makes, and how long they take, about.
    #[must_use]
    pub fn estimate(&self) -> (u32, Duration) {
        // To start a cluster, to write the keys, and to end it; to begin a run, after servers were idle.
        const CLUSTER: Duration = Duration::from_millis(1200);
        const RUN: Duration = Duration::from_millis(500);
        let mut all = (0, Duration::ZERO);
        for sweep in &self.sweeps {
            let clusters = self.points(*sweep).len() as u32 * self.rounds;
            let runs = clusters * sweep.series().len() as u32;
            all.0 += runs;
            all.1 += CLUSTER * clusters + (RUN + self.warmup + self.duration) * runs;
        }
        all
    }
}

/// Measures, and writes a table and a figure for each sweep. `stopped` ends it before the next run; a sweep that is not at its end leaves nothing.
///
/// # Errors
/// A server or the load generator failed, or a file can't be written.
pub async fn measure(options: &Options, stopped: &watch::Receiver<bool>, say: &dyn Fn(&str)) -> Result<()> {
    let origin = Origin {
        commit: commit(),
        seconds: options.duration.as_secs_f64(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
    };
    for sweep in &options.sweeps {
        let mut rows = Vec::new();
        for round in 1..=options.rounds {
            for x in options.points(*sweep) {
                let mut stage = Stage::build(options, sweep.setting(x, options.nodes)).await?;
                for series in sweep.series() {
                    if *stopped.borrow() {
                        stage.end()?;
                        bail!("stopped on the way through {}", sweep.word());
                    }
                    let Ran { setting, measured, kinds } = stage.run(series, options.warmup, options.duration).await?;
                    let row = Row { x, series: series.name.into(), round, setting, measured };
                    say(&line(*sweep, options.rounds, &row));
                    for (kind, count) in kinds {
                        say(&format!("    {count} requests failed: {kind}"));
                    }
                    rows.push(row);
                }
                stage.end()?;
            }
        }
        let path = table_path(&options.out, *sweep);
        write(&path, &Table { origin: origin.clone(), rows }.to_csv())?;
        say(&path.display().to_string());
        // From the table as it was written, with its rounded numbers: drawn again it is the same.
        redraw(&options.out, &[*sweep], say)?;
    }
    Ok(())
}

/// Draws the figures of the tables that are there.
///
/// # Errors
/// There is none, or it can't be read; or a file can't be written.
pub fn redraw(out: &Path, sweeps: &[Sweep], say: &dyn Fn(&str)) -> Result<()> {
    let mut drawn = 0;
    for sweep in sweeps {
        let path = table_path(out, *sweep);
        if !path.exists() {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        let table = Table::from_csv(&text).with_context(|| path.display().to_string())?;
        say(&save_figure(out, *sweep, &table)?.display().to_string());
        drawn += 1;
    }
    if drawn == 0 {
        bail!("there is no table in {}: measure first, without --redraw", out.join("curves").display());
    }
    Ok(())
}

fn table_path(out: &Path, sweep: Sweep) -> PathBuf {
    out.join("curves").join(format!("{}.csv", sweep.word()))
}

fn save_figure(out: &Path, sweep: Sweep, table: &Table) -> Result<PathBuf> {
    let path = out.join(format!("curves-{}.svg", sweep.word()));
    write(&path, &draw(sweep, table).to_svg())?;
    Ok(path)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}

/// The commit of the current directory, and whether anything but the figures differs from it.
fn commit() -> String {
    let git = |args: &[&str]| Command::new("git").args(args).output().ok().filter(|output| output.status.success());
    let Some(head) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".into() };
    let changed = git(&["diff", "--quiet", "HEAD", "--", ":(top)", ":(top,exclude)docs"]).is_none();
    format!("{}{}", String::from_utf8_lossy(&head.stdout).trim(), if changed { "+changes" } else { "" })
}

fn line(sweep: Sweep, rounds: u32, row: &Row) -> String {
    let Row { x, series, round, measured, .. } = row;
    format!(
        "{round}/{rounds} {:<7} {:>7}  {series:<23} {:>7.0}/s  p50 {:>7.2} ms  p99 {:>7.2} ms  cores: servers {:.2}, load {:.2}, others {:.2}  {:>5.0} MiB",
        sweep.word(),
        sweep.label(*x),
        measured.throughput,
        measured.p50,
        measured.p99,
        measured.servers,
        measured.generator,
        measured.others,
        measured.memory,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_drawn_again_from_tables_alone() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = redraw(dir.path(), &Sweep::ALL, &|_| ()).unwrap_err();
        assert!(nothing.to_string().contains("without --redraw"), "{nothing}");
        let rows = Sweep::Keys
            .points(100_000)
            .into_iter()
            .map(|x| table::example(x, "puts by 64 clients", 1, Sweep::Keys.setting(x, 3), 30_000.0));
        let origin = Origin { commit: "abc1234".into(), seconds: 2.0, cores: 2 };
        let table = Table { origin, rows: rows.collect() };
        write(&table_path(dir.path(), Sweep::Keys), &table.to_csv()).unwrap();
        redraw(dir.path(), &Sweep::ALL, &|_| ()).unwrap();
        let drawn = std::fs::read_to_string(dir.path().join("curves-keys.svg")).unwrap();
        assert_eq!(drawn, draw(Sweep::Keys, &table).to_svg());
        assert!(!dir.path().join("curves-nodes.svg").exists());
        std::fs::write(table_path(dir.path(), Sweep::Nodes), "nonsense").unwrap();
        let error = redraw(dir.path(), &[Sweep::Nodes], &|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("nodes.csv: line 1"), "{error:#}");
    }
}
