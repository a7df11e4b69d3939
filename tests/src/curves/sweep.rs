//! What is varied, from where to where, and what stays as it is meanwhile.

use clap::ValueEnum;

use super::svg::{Scale, number};

/// One thing that is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sweep {
    /// How many requests are under way at a time.
    Clients,
    /// The size of a value.
    Values,
    /// How many nodes the cluster has.
    Nodes,
    /// How many keys there are.
    Keys,
    /// How long the way from one node to another takes.
    Delay,
}

/// One line of a figure: what the clients do, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// Its name, in the figure and in the table.
    pub name: &'static str,
    /// What the load generator calls it.
    pub workload: &'static str,
    /// How many clients; none: as many as the point says.
    pub clients: Option<u64>,
}

/// One point of a sweep: all that a run depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Requests under way at a time.
    pub clients: u64,
    /// Bytes of a value.
    pub value_size: u64,
    /// Different keys, all of which are there.
    pub keys: u64,
    /// Nodes of the cluster.
    pub nodes: u64,
    /// Milliseconds from each node to each other; none: they are not held up, and nobody stands between them.
    pub delay_ms: Option<u64>,
}

/// No more than this is written before a run with values that are large.
const MAX_FILL_BYTES: u64 = 64 << 20;
const DEFAULT_CLIENTS: u64 = 64;
const DEFAULT_KEYS: u64 = 10_000;
const DEFAULT_VALUE: u64 = 256;

const fn series(name: &'static str, workload: &'static str, clients: Option<u64>) -> Series {
    Series { name, workload, clients }
}

impl Sweep {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Clients, Self::Values, Self::Nodes, Self::Keys, Self::Delay];

    /// Its name, in file names and options.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Values => "values",
            Self::Nodes => "nodes",
            Self::Keys => "keys",
            Self::Delay => "delay",
        }
    }

    /// What its figure is called.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Clients => "Clients: requests under way at a time",
            Self::Values => "Size of a value",
            Self::Nodes => "Nodes of the cluster",
            Self::Keys => "Keys that are there",
            Self::Delay => "Delay between nodes, each way",
        }
    }

    /// The name of the horizontal axis, with its unit.
    #[must_use]
    pub fn axis(self) -> &'static str {
        match self {
            Self::Clients => "clients",
            Self::Values => "size of a value",
            Self::Nodes => "nodes",
            Self::Keys => "keys",
            Self::Delay => "delay between nodes, each way, ms",
        }
    }

    /// A value of the horizontal axis, in words.
    #[must_use]
    pub fn label(self, x: u64) -> String {
        match self {
            Self::Values => match x {
                _ if x >= 1 << 20 => format!("{} MiB", x >> 20),
                _ if x >= 1 << 10 => format!("{} KiB", x >> 10),
                _ => format!("{x} B"),
            },
            Self::Keys | Self::Clients | Self::Nodes | Self::Delay => number(x as f64),
        }
    }

    /// The horizontal axis for these points.
    #[must_use]
    pub fn scale(self, points: &[f64]) -> Scale {
        match self {
            Self::Clients | Self::Values | Self::Keys => Scale::Log,
            // Few, and one of them is zero.
            Self::Nodes | Self::Delay => Scale::Categories(points.to_vec()),
        }
    }

    /// Where it is measured, with no more keys than this.
    #[must_use]
    pub fn points(self, max_keys: u64) -> Vec<u64> {
        match self {
            Self::Clients => vec![1, 4, 16, 64, 256, 1024],
            Self::Values => vec![16, 256, 4 << 10, 64 << 10, 1 << 20],
            Self::Nodes => vec![1, 3, 5],
            Self::Keys => (3..=7).map(|n| 10u64.pow(n)).filter(|keys| *keys <= max_keys).collect(),
            Self::Delay => vec![0, 1, 10, 50],
        }
    }

    /// Its lines, in the order in which they are measured.
    #[must_use]
    pub fn series(self) -> &'static [Series] {
        const PUTS: Series = series("puts by 64 clients", "put", None);
        const GETS: Series = series("linearizable gets by 64", "get", None);
        const ONE: Series = series("puts by 1 client", "put", Some(1));
        match self {
            Self::Clients => const { &[series("puts", "put", None), series("linearizable gets", "get", None)] },
            Self::Values | Self::Keys => const { &[PUTS, GETS] },
            Self::Nodes => const { &[PUTS, GETS, ONE] },
            Self::Delay => const { &[PUTS, GETS, ONE, series("puts by 1024", "put", Some(1024))] },
        }
    }

    /// All that a point depends on.
    #[must_use]
    pub fn setting(self, x: u64, nodes: u64) -> Setting {
        let usual =
            Setting { clients: DEFAULT_CLIENTS, value_size: DEFAULT_VALUE, keys: DEFAULT_KEYS, nodes, delay_ms: None };
        match self {
            Self::Clients => Setting { clients: x, ..usual },
            Self::Values => {
                let keys = (MAX_FILL_BYTES / x.max(1)).clamp(DEFAULT_CLIENTS, DEFAULT_KEYS);
                Setting { value_size: x, keys, ..usual }
            }
            Self::Nodes => Setting { nodes: x, ..usual },
            Self::Keys => Setting { keys: x, ..usual },
            Self::Delay => Setting { delay_ms: Some(x), ..usual },
        }
    }
}

impl Setting {
    /// What servers are told beside their addresses: where a round of messages takes long, elections must be more patient than by default.
    #[must_use]
    pub fn server_args(&self) -> &'static [&'static str] {
        match self.delay_ms {
            // All points of a sweep alike, so that they differ in the delay alone.
            Some(_) => &["--election-timeout-ms", "1000", "--heartbeat-ms", "100"],
            None => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_varies_one_thing() {
        for sweep in Sweep::ALL {
            let points = sweep.points(1_000_000);
            assert!(points.is_sorted() && points.len() >= 3, "{sweep:?}");
            let settings: Vec<_> = points.iter().map(|x| sweep.setting(*x, 3)).collect();
            let same = |what: fn(&Setting) -> u64| settings.iter().all(|one| what(one) == what(&settings[0]));
            assert_eq!(same(|s| s.clients), sweep != Sweep::Clients);
            assert_eq!(same(|s| s.value_size), sweep != Sweep::Values);
            assert_eq!(same(|s| s.nodes), sweep != Sweep::Nodes);
            // Large values are written to fewer keys.
            assert_eq!(same(|s| s.keys), !matches!(sweep, Sweep::Keys | Sweep::Values));
            assert_eq!(same(|s| s.delay_ms.map_or(0, |ms| ms + 1)), sweep != Sweep::Delay);
            assert!(settings.iter().all(|s| s.keys * s.value_size <= 512 << 20));
        }
    }

    #[test]
    fn ten_million_keys_are_for_those_who_ask() {
        assert_eq!(Sweep::Keys.points(1_000_000), [1_000, 10_000, 100_000, 1_000_000]);
        assert_eq!(Sweep::Keys.points(10_000_000).last(), Some(&10_000_000));
    }

    #[test]
    fn points_are_named_with_their_units() {
        let sizes: Vec<_> = Sweep::Values.points(0).iter().map(|x| Sweep::Values.label(*x)).collect();
        assert_eq!(sizes, ["16 B", "256 B", "4 KiB", "64 KiB", "1 MiB"]);
        assert_eq!(Sweep::Keys.label(1_000_000), "1M");
    }

    #[test]
    fn names_of_series_fit_into_a_table() {
        for series in Sweep::ALL.iter().flat_map(|sweep| sweep.series()) {
            assert!(!series.name.contains([',', '"', '\n']), "{}", series.name);
        }
    }
}
