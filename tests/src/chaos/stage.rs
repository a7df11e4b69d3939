//! A cluster, its disks, and the hands that hurt them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::fault::{Fault, How, Kind, Scene};
use crate::disk::SmallDisk;
#[cfg(target_os = "linux")]
use crate::lossy_disk::LossyDisk;
use crate::{Cluster, ClusterOptions, Network, PATIENCE};

/// The size of a disk that is to be filled. The log reserves a part of it in advance, which has to be used up too.
const SMALL_DISK_BYTES: u64 = 24 << 20;
/// The size of the values that use it up.
const FLOOD_BYTES: usize = 1 << 20;
/// By how much more it grows then: a database takes several times what is written into it, and as much again while it is copied after a failure.
const ROOM: u64 = 128 << 20;
const FLOOD_LIMIT: Duration = Duration::from_secs(2);
/// How often in an act: each flood is in the log for good, which every node reads when it starts.
const MOST_FLOODS: usize = 2;

/// What can be done on this machine, and why the rest can't.
#[derive(Clone, Debug, Default)]
pub struct Means {
    /// Kinds of faults that can't be done, with the reasons.
    pub skipped: BTreeMap<Kind, String>,
}

impl Means {
    /// Tries everything out.
    #[must_use]
    pub fn find() -> Self {
        let mut skipped = BTreeMap::new();
        if !Network::is_supported() {
            for kind in [Kind::Partition, Kind::OneWay, Kind::Link, Kind::Slow, Kind::Reset] {
                skipped.insert(kind, "cutting links needs Linux, which tells in /proc who opened a connection".into());
            }
        }
        if let Err(error) = SmallDisk::mount(1 << 20) {
            skipped.insert(Kind::FullDisk, format!("{error:#}"));
        }
        if let Err(error) = lossy_disk() {
            skipped.insert(Kind::Power, format!("{error:#}"));
        }
        if let Err(error) = time_namespace() {
            skipped.insert(Kind::Clock, format!("{error:#}"));
        }
        Self { skipped }
    }

    fn has(&self, kind: Kind) -> bool {
        !self.skipped.contains_key(&kind)
    }
}

/// How long the machine runs, in whole seconds; 0 where it does not tell.
fn uptime() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    Duration::from_secs(text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0))
}

fn time_namespace() -> Result<()> {
    let output = Command::new("unshare").args(["--time", "--monotonic", "1", "--", "true"]).output();
    let output = output.context("can't run `unshare`")?;
    ensure!(
        output.status.success(),
        "`unshare --time` is not permitted: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(target_os = "linux")]
fn lossy_disk() -> Result<LossyDisk> {
    LossyDisk::mount()
}

#[cfg(not(target_os = "linux"))]
fn lossy_disk() -> Result<()> {
    bail!("a disk that loses power needs Linux")
}

/// Where the data of the nodes is.
#[derive(Debug, Default)]
struct Disks {
    small: Option<(u64, SmallDisk)>,
    #[cfg(target_os = "linux")]
    lossy: BTreeMap<u64, LossyDisk>,
}

/// A cluster that is being hurt.
#[derive(Debug)]
pub(super) struct Stage {
    /// The nodes. First of all fields: they end before their disks go.
    pub(super) cluster: Cluster,
    disks: Disks,
    kinds: BTreeSet<Kind>,
    /// How many bytes were written to use up a full disk, the last time.
    flooded: u64,
    floods: usize,
    /// Draws what a loss of power takes.
    random: fastrand::Rng,
}

/// What a stage is built of.
#[derive(Clone, Debug)]
pub(super) struct StageOptions {
    /// The server.
    pub(super) program: PathBuf,
    /// How many nodes.
    pub(super) nodes: u64,
    /// More arguments for every node.
    pub(super) args: Vec<String>,
    /// Where its directories are made.
    pub(super) dir: Option<PathBuf>,
    /// No other kinds of faults than these; empty: all.
    pub(super) only: Vec<Kind>,
    /// Whether there is nothing but `kill -9`.
    pub(super) only_kills: bool,
}

impl Stage {
    /// Makes a cluster ready: on disks that can lose power, or on plain ones of which one can be filled, as the random numbers say.
    /// No node runs yet.
    ///
    /// # Errors
    /// Something can't be mounted any more, or there are no ports.
    pub(super) fn set(options: &StageOptions, means: &Means, random: &mut fastrand::Rng) -> Result<Self> {
        let mut disks = Disks::default();
        let mut data = BTreeMap::new();
        let only = |kind| !options.only.is_empty() && options.only.iter().all(|other| *other == kind);
        let lossy = random.bool() && !only(Kind::FullDisk) || only(Kind::Power);
        let small = random.u64(1..=options.nodes);
        if options.only_kills {
            // Plain directories, and nothing between the nodes: rounds are to be quick.
        } else if lossy && means.has(Kind::Power) {
            #[cfg(target_os = "linux")]
            for id in 1..=options.nodes {
                let disk = lossy_disk()?;
                data.insert(id, disk.path().join("data"));
                disks.lossy.insert(id, disk);
            }
        } else if means.has(Kind::FullDisk) && options.nodes > 1 {
            let disk = SmallDisk::mount(SMALL_DISK_BYTES)?;
            data.insert(small, disk.path().join("data"));
            disks.small = Some((small, disk));
        }
        let wanted = |kind: Kind| options.only.is_empty() || options.only.contains(&kind);
        let possible = |kind: Kind| means.has(kind) && disks.permit(kind);
        let kinds: BTreeSet<_> = Kind::ALL.into_iter().filter(|kind| wanted(*kind) && possible(*kind)).collect();
        ensure!(!kinds.is_empty(), "none of the faults that are wanted can be done here");
        let cluster = Cluster::prepare(&ClusterOptions {
            nodes: options.nodes,
            network: !options.only_kills && means.has(Kind::Partition),
            args: options.args.clone(),
            data,
            dir: options.dir.clone(),
            ..ClusterOptions::new(&options.program)
        })?;
        Ok(Self { cluster, disks, kinds, flooded: 0, floods: 0, random: random.fork() })
    }

    /// What the nodes write to.
    #[must_use]
    pub(super) fn disks_in_words(&self) -> String {
        if self.disks.permit(Kind::Power) {
            return "on disks that can lose power".into();
        }
        match &self.disks.small {
            Some((id, _)) => format!("n{id} on a small disk"),
            None => "on plain disks".into(),
        }
    }

    /// Whether any fault is left that can be done.
    pub(super) fn has_more(&self) -> bool {
        !self.kinds.is_empty()
    }

    /// What there is to draw faults from.
    pub(super) async fn scene(&self) -> Scene {
        Scene {
            ids: self.cluster.ids(),
            leader: self.cluster.leader_now().await,
            kinds: self.kinds.clone(),
            small_disk: self.disks.small.as_ref().map(|(id, _)| *id),
            uptime: uptime(),
        }
    }

    /// Lets a fault happen.
    ///
    /// # Errors
    /// It can't be done.
    pub(super) async fn begin(&mut self, fault: &Fault) -> Result<()> {
        match fault.kind {
            Kind::KillOne | Kind::KillSeveral | Kind::KillAll | Kind::Clock => self.kill(&fault.victims)?,
            Kind::Power => {
                self.kill(&fault.victims)?;
                // It looks at every sector, which takes a while.
                tokio::task::block_in_place(|| self.disks.lose_power(&fault.victims, &mut self.random));
            }
            Kind::Pause => self.signal(&fault.victims, Signal::STOP)?,
            Kind::Partition => self.cluster.network()?.part(&fault.victims),
            Kind::Link => {
                if let [a, b] = fault.victims[..] {
                    self.cluster.network()?.cut(a, b);
                }
            }
            Kind::OneWay | Kind::Slow => {
                let network = self.cluster.network()?;
                for id in &fault.victims {
                    match fault.how {
                        How::Mute => network.mute(*id),
                        How::Deaf => network.deafen(*id),
                        How::Line { delay, bytes_per_second } => {
                            network.delay(*id, delay);
                            network.throttle(*id, bytes_per_second);
                        }
                        How::Plain | How::Ahead(_) => {}
                    }
                }
            }
            Kind::Reset => {
                for id in &fault.victims {
                    self.cluster.network()?.reset(*id);
                }
            }
            Kind::FullDisk => {
                if let Some((id, disk)) = &self.disks.small {
                    disk.fill(0)?;
                    self.flooded = flood(&mut self.cluster, *id).await?;
                }
            }
            Kind::Rolling => {
                for id in &fault.victims {
                    self.cluster.terminate(*id).await?;
                    self.cluster.launch(*id)?;
                    self.cluster.caught_up(*id).await?;
                }
            }
        }
        Ok(())
    }

    /// Mends what a fault has done.
    ///
    /// # Errors
    /// A node does not start, or has ended where it should not have.
    pub(super) fn end(&mut self, fault: &Fault) -> Result<()> {
        match fault.kind {
            Kind::KillOne | Kind::KillSeveral | Kind::KillAll | Kind::Power => self.launch(&fault.victims)?,
            Kind::Clock => {
                let wrapper = match fault.how {
                    How::Ahead(seconds) => in_another_time(seconds),
                    How::Plain | How::Mute | How::Deaf | How::Line { .. } => Vec::new(),
                };
                for id in &fault.victims {
                    self.cluster.process_mut(*id)?.set_wrapper(wrapper.clone());
                }
                self.launch(&fault.victims)?;
            }
            Kind::Pause => self.signal(&fault.victims, Signal::CONT)?,
            Kind::Partition | Kind::OneWay | Kind::Link | Kind::Slow => self.cluster.network()?.heal(),
            Kind::Reset | Kind::Rolling => {}
            Kind::FullDisk => {
                if let Some((_, disk)) = &mut self.disks.small {
                    disk.make_room()?;
                    // What was written meanwhile stays.
                    disk.grow(SMALL_DISK_BYTES + self.flooded / 4 * 5 + ROOM)?;
                }
                self.floods += 1;
                if self.floods == MOST_FLOODS {
                    self.kinds.remove(&Kind::FullDisk);
                }
                self.launch(&fault.victims)?;
            }
        }
        Ok(())
    }

    /// Fails if a node has ended by itself.
    ///
    /// # Errors
    /// It has.
    pub(super) fn ensure_all_run(&mut self) -> Result<()> {
        if let Some((id, status)) = self.cluster.ended()?.first() {
            bail!("n{id} ended by itself, with {status}");
        }
        for id in self.cluster.ids() {
            ensure!(self.cluster.process(id)?.is_started(), "n{id} was not started again");
        }
        Ok(())
    }

    fn kill(&mut self, ids: &[u64]) -> Result<()> {
        for id in ids {
            self.cluster.kill(*id)?;
        }
        Ok(())
    }

    fn launch(&mut self, ids: &[u64]) -> Result<()> {
        for id in ids {
            self.cluster.launch(*id)?;
        }
        Ok(())
    }

    fn signal(&self, ids: &[u64], signal: Signal) -> Result<()> {
        for id in ids {
            self.cluster.process(*id)?.signal(signal)?;
        }
        Ok(())
    }
}

/// Writes large values until a node has used up its full disk, says so, and ends. Returns how many bytes were sent.
async fn flood(cluster: &mut Cluster, victim: u64) -> Result<u64> {
    let value = "x".repeat(FLOOD_BYTES);
    let deadline = Instant::now() + 2 * PATIENCE;
    let others = cluster.others(victim);
    for (sent, id) in (0..).zip(others.iter().cycle()) {
        if let Some(status) = cluster.process_mut(victim)?.ended()? {
            let log = cluster.process(victim)?.log();
            let words = log.lines().rfind(|line| line.starts_with("kv-example: ")).unwrap_or_default();
            ensure!(
                status.code() == Some(1) && words.contains("no space left"),
                "n{victim} ended with {status} when its disk was full, and with these words: {words:?}"
            );
            return Ok(sent * FLOOD_BYTES as u64);
        }
        ensure!(
            Instant::now() < deadline,
            "n{victim} still runs on a full disk after {:?} of large writes",
            2 * PATIENCE
        );
        // Whether it is acknowledged does not matter. Other keys than those of the load.
        let _ = cluster.client(*id)?.put("flood", &value, FLOOD_LIMIT).await;
    }
    bail!("a cluster of one can't be flooded")
}

impl Disks {
    fn permit(&self, kind: Kind) -> bool {
        match kind {
            #[cfg(target_os = "linux")]
            Kind::Power => !self.lossy.is_empty(),
            #[cfg(not(target_os = "linux"))]
            Kind::Power => false,
            Kind::FullDisk => self.small.is_some(),
            Kind::KillOne
            | Kind::KillSeveral
            | Kind::KillAll
            | Kind::Pause
            | Kind::Partition
            | Kind::OneWay
            | Kind::Link
            | Kind::Slow
            | Kind::Reset
            | Kind::Rolling
            | Kind::Clock => true,
        }
    }

    #[cfg(target_os = "linux")]
    fn lose_power(&self, ids: &[u64], random: &mut fastrand::Rng) {
        for disk in ids.iter().filter_map(|id| self.lossy.get(id)) {
            disk.lose_power(random);
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn lose_power(&self, _ids: &[u64], _random: &mut fastrand::Rng) {}
}

/// What runs a program so many seconds ahead of this machine. It becomes that program, and keeps its process id.
fn in_another_time(seconds: i64) -> Vec<String> {
    let seconds = seconds.to_string();
    ["unshare", "--time", "--monotonic", &seconds, "--boottime", &seconds, "--"].map(str::to_owned).into()
}
