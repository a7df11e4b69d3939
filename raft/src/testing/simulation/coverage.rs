//! What simulated runs went through: a campaign that never met a situation has proven nothing about it.

use std::collections::BTreeMap;
use std::fmt;

/// How often each situation occurred, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    /// Declares a class that must occur, so that its absence shows.
    pub fn expect(&mut self, class: &'static str) {
        self.0.entry(class).or_default();
    }

    /// It occurred.
    pub fn hit(&mut self, class: &'static str) {
        self.add(class, 1);
    }

    /// It occurred so often.
    pub fn add(&mut self, class: &'static str, times: u64) {
        *self.0.entry(class).or_default() += times;
    }

    /// How often it occurred.
    #[must_use]
    pub fn count(&self, class: &str) -> u64 {
        self.0.get(class).copied().unwrap_or(0)
    }

    /// Adds what other runs went through.
    pub fn merge(&mut self, other: &Self) {
        for (class, times) in &other.0 {
            self.add(class, *times);
        }
    }

    /// The declared classes that never occurred.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.0.iter().filter(|(_, times)| **times == 0).map(|(class, _)| *class).collect()
    }

    /// Each class with how often it occurred, by name.
    pub fn classes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(class, times)| (*class, *times))
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.keys().map(|class| class.len()).max().unwrap_or(0);
        for (class, times) in &self.0 {
            writeln!(f, "{class:width$}  {times:>12}")?;
        }
        Ok(())
    }
}
