//! From a table to a figure: medians, panels, and which lines are in them.

use std::collections::BTreeMap;

use super::svg::{Axis, Line, Mark, Page, Panel, Scale};
use super::sweep::Sweep;
use super::table::{Row, Table};

/// How many requests failed, and where.
fn failures(sweep: Sweep, table: &Table) -> Option<String> {
    let mut at: BTreeMap<u64, u64> = BTreeMap::new();
    for row in table.rows.iter().filter(|row| row.measured.errors > 0) {
        *at.entry(row.x).or_default() += row.measured.errors;
    }
    let each: Vec<_> = at.iter().map(|(x, count)| format!("{count} at {}", sweep.label(*x))).collect();
    (!each.is_empty()).then(|| format!("Requests that failed: {}.", each.join(", ")))
}

type Quantity = fn(&Row) -> f64;

/// The figure of a sweep.
#[must_use]
pub fn draw(sweep: Sweep, table: &Table) -> Page {
    let throughput: Quantity = |row| row.measured.throughput;
    let mut panels = vec![
        log_panel(sweep, table, "Throughput", "operations/s", throughput),
        log_panel(sweep, table, "Latency, 99th percentile", "ms", |row| row.measured.p99),
        cores_panel(sweep, table),
    ];
    panels.push(match sweep {
        Sweep::Values => log_panel(sweep, table, "Payload", "MB/s", |row| {
            row.measured.throughput * row.setting.value_size as f64 / 1e6
        }),
        Sweep::Keys => log_panel(sweep, table, "Memory of a server", "MiB", |row| row.measured.memory),
        Sweep::Clients | Sweep::Nodes | Sweep::Delay => {
            log_panel(sweep, table, "Latency, median", "ms", |row| row.measured.p50)
        }
    });
    let rounds = table.rows.iter().map(|row| row.round).max().unwrap_or(0);
    let (seconds, cores) = (table.origin.seconds, table.origin.cores);
    let of = if rounds == 1 {
        "1 run".to_owned()
    } else {
        format!("Medians of {rounds} runs, bars from the least to the most,")
    };
    Page {
        title: sweep.title().into(),
        legend: sweep.series().iter().map(|series| series.name.into()).collect(),
        dashed: None,
        panels,
        notes: [
            Some(format!(
                "{of} of {seconds} s each at {}; servers and load generator on {cores} cores and one disk.",
                table.origin.commit
            )),
            failures(sweep, table),
        ]
        .into_iter()
        .flatten()
        .collect(),
    }
}

fn log_panel(sweep: Sweep, table: &Table, title: &str, unit: &str, quantity: Quantity) -> Panel {
    let lines = lines(sweep, table, quantity, false);
    let y = Axis::log(unit, extremes(&lines));
    Panel { title: title.into(), x: x_axis(sweep, table), y, lines, level: None }
}

fn cores_panel(sweep: Sweep, table: &Table) -> Panel {
    let mut all = lines(sweep, table, |row| row.measured.servers, false);
    all.extend(lines(sweep, table, |row| row.measured.generator, true));
    let cores = table.origin.cores as f64;
    let y = Axis::linear("cores", extremes(&all).into_iter().chain([cores]));
    Panel {
        title: "Busy cores: servers; broken: load generator".into(),
        x: x_axis(sweep, table),
        y,
        lines: all,
        level: Some((cores, "all there are".into())),
    }
}

fn x_axis(sweep: Sweep, table: &Table) -> Axis {
    let mut points: Vec<u64> = table.rows.iter().map(|row| row.x).collect();
    points.sort_unstable();
    points.dedup();
    let scale: Scale = sweep.scale(&points.iter().map(|x| *x as f64).collect::<Vec<_>>());
    Axis::marked(sweep.axis(), scale, points.into_iter().map(|x| (x as f64, sweep.label(x))).collect())
}

fn extremes(lines: &[Line]) -> Vec<f64> {
    lines.iter().flat_map(|line| &line.marks).flat_map(|mark| [mark.least, mark.most]).collect()
}

/// A line for each series that was measured, by the median of its rounds.
fn lines(sweep: Sweep, table: &Table, quantity: Quantity, dashed: bool) -> Vec<Line> {
    let of = |(colour, name): (usize, &str)| {
        let rows: Vec<_> = table.rows.iter().filter(|row| row.series == name).collect();
        let mut points: Vec<u64> = rows.iter().map(|row| row.x).collect();
        points.sort_unstable();
        points.dedup();
        let at = |x: u64| mark(x, rows.iter().filter(|row| row.x == x).map(|row| quantity(row)).collect());
        Line { colour, dashed, marks: points.into_iter().filter_map(at).collect() }
    };
    let all = sweep.series().iter().map(|series| series.name).enumerate().map(of);
    all.filter(|line| !line.marks.is_empty()).collect()
}

/// The median of the rounds, the lower one of two, and how far they went; none where nothing is known.
fn mark(x: u64, mut rounds: Vec<f64>) -> Option<Mark> {
    rounds.retain(|value| value.is_finite());
    rounds.sort_by(f64::total_cmp);
    let (least, most) = (*rounds.first()?, *rounds.last()?);
    Some(Mark { x: x as f64, y: rounds[(rounds.len() - 1) / 2], least, most })
}

#[cfg(test)]
mod tests {
    use super::super::table::{Origin, example};
    use super::*;

    fn table(sweep: Sweep) -> Table {
        let mut rows = Vec::new();
        for (n, x) in sweep.points(10_000_000).into_iter().enumerate() {
            for series in sweep.series() {
                for round in 1..=3 {
                    let throughput = 1000.0 * (n + 1) as f64 + f64::from(round);
                    rows.push(example(x, series.name, round, sweep.setting(x, 3), throughput));
                }
            }
        }
        Table { origin: Origin { commit: "abc1234".into(), seconds: 2.0, cores: 2 }, rows }
    }

    #[test]
    fn every_sweep_is_drawn_with_all_of_its_lines_and_points() {
        for sweep in Sweep::ALL {
            let table = table(sweep);
            let page = draw(sweep, &table);
            assert_eq!(page.panels.len(), 4);
            for panel in &page.panels {
                let solid: Vec<_> = panel.lines.iter().filter(|line| !line.dashed).collect();
                assert_eq!(solid.len(), sweep.series().len(), "{sweep:?} {}", panel.title);
                for line in &panel.lines {
                    assert_eq!(line.marks.len(), sweep.points(10_000_000).len());
                    for mark in &line.marks {
                        for (axis, value) in [(&panel.x, mark.x), (&panel.y, mark.least), (&panel.y, mark.most)] {
                            let place = axis.place(value).unwrap();
                            assert!((0.0..=1.0).contains(&place), "{sweep:?} {}: {value} is at {place}", panel.title);
                        }
                    }
                }
            }
            let svg = page.to_svg();
            roxmltree::Document::parse(&svg).unwrap();
            assert!(svg.contains("abc1234") && !svg.contains("NaN"));
        }
    }

    #[test]
    fn a_line_goes_through_the_medians() {
        assert_eq!(mark(4, vec![3.0, f64::NAN, 1.0, 2.0]), Some(Mark { x: 4.0, y: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(mark(4, vec![2.0, 1.0]).unwrap().y, 1.0);
        assert_eq!(mark(4, vec![f64::NAN]), None);
    }

    #[test]
    fn requests_that_failed_are_told() {
        let mut table = table(Sweep::Values);
        table.rows.retain(|row| row.round == 1 && row.x >= 64 << 10);
        assert_eq!(draw(Sweep::Values, &table).notes[1], "Requests that failed: 4 at 64 KiB, 4 at 1 MiB.");
        table.rows.iter_mut().for_each(|row| row.measured.errors = 0);
        assert_eq!(draw(Sweep::Values, &table).notes.len(), 1);
    }

    #[test]
    fn payload_is_what_values_make_of_throughput() {
        let page = draw(Sweep::Values, &table(Sweep::Values));
        let last = *page.panels[3].lines[0].marks.last().unwrap();
        assert!((last.y - 5002.0 * 1.048_576).abs() < 1e-6, "{last:?}");
    }

    #[test]
    fn a_series_that_was_not_measured_has_no_line() {
        let mut table = table(Sweep::Nodes);
        table.rows.retain(|row| row.series == "puts by 1 client");
        let page = draw(Sweep::Nodes, &table);
        assert!(page.panels.iter().all(|panel| panel.lines.iter().all(|line| line.colour == 2)));
        table.rows.clear();
        roxmltree::Document::parse(&draw(Sweep::Nodes, &table).to_svg()).unwrap();
    }
}
