//! `--bin curves`: a table and a figure, from real servers and the real load generator.

use std::time::Duration;

use anyhow::{Result, ensure};
use raftkv_tests::curves::{Sweep, Table};
use raftkv_tests::process::{exclusive, run};
use raftkv_tests::stack;

use crate::SERVER;

const CURVES: &str = env!("CARGO_BIN_EXE_curves");
const LIMIT: Duration = Duration::from_secs(120);

async fn curves(args: &[&str], dir: &str) -> Result<String> {
    let stack = stack();
    let stack: Vec<_> = stack.iter().map(String::as_str).collect();
    let args = [args, &["--out", dir, "--"], &stack].concat();
    let output = run(std::path::Path::new(CURVES), &args, &[], "", LIMIT).await?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}\n{out}\n{err}", output.status);
    Ok(out.into_owned())
}

/// The command must leave nothing but its table and its figure.
fn files(dir: &std::path::Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

async fn measured(sweep: Sweep, points: &str, seconds: &str, more: &[&str]) -> Result<Table> {
    let _alone = exclusive().await?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().display().to_string();
    let args = ["--only", sweep.word(), "--points", points, "--rounds", "1", "--seconds", seconds, "--warmup", "0.1"];
    let printed = curves(&[&args, &["--kv", SERVER, "--dir", &path][..], more].concat(), &path).await?;
    let figure = format!("curves-{}.svg", sweep.word());
    ensure!(files(dir.path())? == ["curves", &figure], "{:?}\n{printed}", files(dir.path()));
    let drawn = std::fs::read_to_string(dir.path().join(&figure))?;
    roxmltree::Document::parse(&drawn)?;
    std::fs::remove_file(dir.path().join(&figure))?;
    curves(&["--redraw"], &path).await?;
    ensure!(std::fs::read_to_string(dir.path().join(&figure))? == drawn, "drawn again it is another figure");
    Table::from_csv(&std::fs::read_to_string(dir.path().join(format!("curves/{}.csv", sweep.word())))?)
}

#[tokio::test]
async fn two_points_are_measured_and_drawn() -> Result<()> {
    let table = measured(Sweep::Clients, "1,4", "0.2", &["--nodes", "1"]).await?;
    let runs: Vec<_> = table.rows.iter().map(|row| (row.x, &*row.series, row.setting.clients)).collect();
    let gets = "linearizable gets";
    ensure!(runs == [(1, "puts", 1), (1, gets, 1), (4, "puts", 4), (4, gets, 4)], "{runs:?}");
    for row in &table.rows {
        let one = &row.measured;
        ensure!(row.setting.nodes == 1 && one.errors == 0 && one.throughput > 0.0, "{row:?}");
        ensure!(0.0 < one.p50 && one.p50 <= one.p99 && one.p99 <= one.max, "{row:?}");
        ensure!(one.memory > 1.0 && one.servers > 0.0, "{row:?}");
    }
    Ok(())
}

/// A put takes a way to another node and back, at least: the delay is really there.
#[tokio::test]
async fn nodes_are_as_far_apart_as_the_point_says() -> Result<()> {
    // On a machine that is busy the first puts take several times that way.
    let table = measured(Sweep::Delay, "20", "1", &[]).await?;
    ensure!(table.rows.len() == Sweep::Delay.series().len(), "{table:?}");
    for row in &table.rows {
        ensure!(row.setting.delay_ms == Some(20) && row.measured.errors == 0, "{row:?}");
        ensure!(row.measured.p50 >= 40.0, "{row:?}");
    }
    Ok(())
}
