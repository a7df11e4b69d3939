//! What a cluster is like, and what its servers are made of.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a cluster is like.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The server.
    pub program: PathBuf,
    /// How many nodes; their ids count from 1.
    pub nodes: u64,
    /// Whether nodes meet through a [`Network`](crate::Network) that can be cut.
    pub network: bool,
    /// More arguments for every node.
    pub args: Vec<String>,
    /// Data directories that are not below the cluster's own directory.
    pub data: BTreeMap<u64, PathBuf>,
    /// Where the cluster makes its own directory; none: where the system wants temporary files.
    pub dir: Option<PathBuf>,
}

impl ClusterOptions {
    /// Three nodes with default settings, of what [`stack`] says.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), nodes: 3, network: false, args: stack(), data: BTreeMap::new(), dir: None }
    }

    /// With more arguments for every node. An option that is there already gets the new value.
    #[must_use]
    pub fn with(mut self, args: &[&str]) -> Self {
        for option in args.iter().filter(|arg| arg.starts_with("--")) {
            if let Some(at) = self.args.iter().position(|arg| arg == option) {
                let has_value = self.args.get(at + 1).is_some_and(|next| !next.starts_with("--"));
                self.args.drain(at..=at + usize::from(has_value));
            }
        }
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Whether logs and images are in databases.
    #[must_use]
    pub fn is_over_redb(&self) -> bool {
        self.args.windows(2).any(|pair| pair == ["--store", "redb"])
    }
}

/// What servers are to be made of, in their own options: the words of `RAFTKV_TEST_SERVER`. None: the defaults.
#[must_use]
pub fn stack() -> Vec<String> {
    let words = std::env::var("RAFTKV_TEST_SERVER").unwrap_or_default();
    words.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_value_of_an_option_counts() {
        let none = ClusterOptions { args: Vec::new(), ..ClusterOptions::new("kv") };
        let options = none.with(&["--engine", "memory", "--no-prevote", "--store", "redb"]);
        assert!(options.is_over_redb());
        let options = options.with(&["--engine", "redb", "--no-prevote", "--store", "file"]);
        assert_eq!(options.args, ["--engine", "redb", "--no-prevote", "--store", "file"]);
        assert!(!options.is_over_redb());
    }
}
