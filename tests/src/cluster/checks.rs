//! The questions at the end of a test: what every node holds, and whether that fits what clients were told.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use raftkv::testing::linearizability::KeyValueOp;

use super::{Cluster, PATIENCE, first_few};
use crate::history::{Summary, check};
use crate::hot;
use crate::load::History;

impl Cluster {
    /// Checks a history: by itself, and against what every single node holds, once all have the same.
    ///
    /// # Errors
    /// Every contradiction, in words.
    pub async fn verify(&self, history: &History) -> Result<Summary> {
        if !history.stale.is_empty() {
            bail!("{} stale reads of {}: {}", history.stale.len(), history.reads, first_few(&history.stale));
        }
        self.converged().await?;
        let mut hot = history.hot.clone();
        let mut summary = None;
        for (id, node) in &self.nodes {
            for serializable in [false, true] {
                // All nodes have all there is, so that any kind of read must fit.
                for key in 0..history.hot_keys {
                    let begun = hot.begin(KeyValueOp::Get(key));
                    let result = hot::get(&node.endpoint, &history.prefix, key, serializable, PATIENCE).await;
                    hot.end(&begun, &result);
                    result.with_context(|| format!("n{id} can't be read"))?;
                }
                let found = node.endpoint.list(&history.prefix, serializable, PATIENCE).await;
                let found = found.with_context(|| format!("n{id} can't be read"))?;
                match check(&history.writes, &found.kvs) {
                    Ok(result) => summary = Some(result),
                    Err(faults) => {
                        bail!("n{id} tells another story, in {} points: {}", faults.len(), first_few(&faults))
                    }
                }
            }
        }
        let hot = hot.check()?;
        let summary = summary.context("there is no node")?;
        Ok(Summary { hot: hot.answered, hot_unknown: hot.open, ..summary })
    }

    /// Waits until all nodes have the same revision, and the same contents at it. Nobody may write meanwhile.
    ///
    /// # Errors
    /// They have not, in time.
    pub async fn same_contents(&self) -> Result<()> {
        self.converged().await?;
        let mut hashes = BTreeMap::new();
        for (id, node) in &self.nodes {
            let hash = node.endpoint.hash(PATIENCE).await;
            hashes.insert(*id, hash.with_context(|| format!("n{id} does not tell the checksum of its contents"))?);
        }
        let mut different = hashes.values().collect::<Vec<_>>();
        different.dedup();
        if different.len() > 1 {
            bail!("DIVERGED: the nodes hold different contents: (revision, checksum) by node: {hashes:?}");
        }
        Ok(())
    }
}
