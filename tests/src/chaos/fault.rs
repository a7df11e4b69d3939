//! What can be done to a cluster, and what of it comes next.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A kind of fault: one row in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `kill -9` of one node.
    KillOne,
    /// `kill -9` of several nodes, not of all.
    KillSeveral,
    /// `kill -9` of all nodes.
    KillAll,
    /// `kill -9` of some nodes, and a loss of power on their disks: what was not synced is gone, or torn.
    Power,
    /// SIGSTOP, and SIGCONT later.
    Pause,
    /// The network falls in two.
    Partition,
    /// A node is not heard any more, or hears nobody.
    OneWay,
    /// Two nodes don't reach each other, and all others reach both.
    Link,
    /// A node is far away, on a narrow line.
    Slow,
    /// All connections of a node break.
    Reset,
    /// No space is left on a node's disk.
    FullDisk,
    /// SIGTERM to one node after the other, each waited for until it has caught up again.
    Rolling,
    /// A node comes back with other clocks.
    Clock,
}

impl Kind {
    /// All kinds, in the order of the report.
    pub const ALL: [Self; 13] = [
        Self::KillOne,
        Self::KillSeveral,
        Self::KillAll,
        Self::Power,
        Self::Pause,
        Self::Partition,
        Self::OneWay,
        Self::Link,
        Self::Slow,
        Self::Reset,
        Self::FullDisk,
        Self::Rolling,
        Self::Clock,
    ];

    /// What it is called in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KillOne => "kill -9 of one",
            Self::KillSeveral => "kill -9 of several",
            Self::KillAll => "kill -9 of all",
            Self::Power => "loss of power",
            Self::Pause => "pause (SIGSTOP)",
            Self::Partition => "partition",
            Self::OneWay => "one-way cut",
            Self::Link => "one link cut",
            Self::Slow => "slow, narrow line",
            Self::Reset => "connections break",
            Self::FullDisk => "full disk",
            Self::Rolling => "rolling restart",
            Self::Clock => "restart, other clocks",
        }
    }

    /// What it is called on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::KillOne => "kill-one",
            Self::KillSeveral => "kill-several",
            Self::KillAll => "kill-all",
            Self::Power => "power",
            Self::Pause => "pause",
            Self::Partition => "partition",
            Self::OneWay => "one-way",
            Self::Link => "link",
            Self::Slow => "slow",
            Self::Reset => "reset",
            Self::FullDisk => "full-disk",
            Self::Rolling => "rolling",
            Self::Clock => "clock",
        }
    }

    /// Whether it concerns the network alone, so that something may happen to the nodes at the same time.
    fn is_of_the_network(self) -> bool {
        match self {
            Self::Partition | Self::OneWay | Self::Link | Self::Slow => true,
            Self::KillOne
            | Self::KillSeveral
            | Self::KillAll
            | Self::Power
            | Self::Pause
            | Self::Reset
            | Self::FullDisk
            | Self::Rolling
            | Self::Clock => false,
        }
    }

    /// Whether it is over soon, whatever the network does meanwhile.
    fn goes_with_a_bad_network(self) -> bool {
        match self {
            Self::KillOne
            | Self::KillSeveral
            | Self::KillAll
            | Self::Power
            | Self::Pause
            | Self::Reset
            | Self::Clock => true,
            Self::Partition | Self::OneWay | Self::Link | Self::Slow | Self::FullDisk | Self::Rolling => false,
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.word() == text)
            .ok_or_else(|| format!("no kind of fault; there are {}", Self::ALL.map(Self::word).join(", ")))
    }
}

/// One fault, and whom it hits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its kind.
    pub kind: Kind,
    /// Whom it hits. With [`Kind::Link`]: both ends.
    pub victims: Vec<u64>,
    /// What else there is to know.
    pub how: How,
}

/// Details of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// There are none.
    Plain,
    /// A one-way cut: nobody hears the victim.
    Mute,
    /// A one-way cut: the victim hears nobody.
    Deaf,
    /// A bad line.
    Line {
        /// How long each byte takes.
        delay: Duration,
        /// How many pass in a second.
        bytes_per_second: u32,
    },
    /// How many seconds ahead of the machine's the clocks are.
    Ahead(i64),
}

impl Fault {
    /// How many processes get a SIGKILL.
    #[must_use]
    pub fn killed(&self) -> usize {
        match self.kind {
            Kind::KillOne | Kind::KillSeveral | Kind::KillAll | Kind::Power | Kind::Clock => self.victims.len(),
            Kind::Pause
            | Kind::Partition
            | Kind::OneWay
            | Kind::Link
            | Kind::Slow
            | Kind::Reset
            | Kind::FullDisk
            | Kind::Rolling => 0,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let victims: Vec<_> = self.victims.iter().map(|id| format!("n{id}")).collect();
        write!(f, "{} ({}", self.kind.name(), victims.join(" "))?;
        match self.how {
            How::Plain => write!(f, ")"),
            How::Mute => write!(f, " is not heard)"),
            How::Deaf => write!(f, " hears nobody)"),
            How::Line { delay, bytes_per_second } => write!(f, ", {delay:?}, {} kB/s)", bytes_per_second / 1000),
            How::Ahead(seconds) => write!(f, ", {seconds:+} s)"),
        }
    }
}

/// What is known of the cluster when a fault is drawn.
#[derive(Clone, Debug)]
pub struct Scene {
    /// All nodes.
    pub ids: Vec<u64>,
    /// Who leads, if anybody.
    pub leader: Option<u64>,
    /// The kinds that can be done here.
    pub kinds: BTreeSet<Kind>,
    /// Whose disk can be filled.
    pub small_disk: Option<u64>,
    /// The clocks' offsets must not make them negative.
    pub uptime: Duration,
}

impl Scene {
    /// What happens in a round: one fault, or one of the network with one of the nodes.
    pub fn round(&self, random: &mut fastrand::Rng) -> Vec<Fault> {
        let Some(first) = self.draw(random, |_| true) else { return Vec::new() };
        if first.kind.is_of_the_network() && random.u32(..3) == 0 {
            let second = self.draw(random, Kind::goes_with_a_bad_network);
            return std::iter::once(first).chain(second).collect();
        }
        vec![first]
    }

    /// `kill -9`, most often of the leader.
    pub fn kill(&self, random: &mut fastrand::Rng) -> Fault {
        let kind = match random.u32(..20) {
            0..14 => Kind::KillOne,
            14..17 => Kind::KillSeveral,
            _ => Kind::KillAll,
        };
        self.fault(kind, random)
    }

    fn draw(&self, random: &mut fastrand::Rng, fits: impl Fn(Kind) -> bool) -> Option<Fault> {
        let kinds: Vec<_> = self.kinds.iter().copied().filter(|kind| fits(*kind)).collect();
        let kind = *kinds.get(random.usize(..kinds.len().max(1)))?;
        Some(self.fault(kind, random))
    }

    fn fault(&self, kind: Kind, random: &mut fastrand::Rng) -> Fault {
        let count = self.ids.len();
        let victims = match kind {
            Kind::KillOne | Kind::Pause | Kind::OneWay | Kind::Slow | Kind::Reset | Kind::Clock => self.some(1, random),
            Kind::KillSeveral => self.some(random.usize(2..=count.saturating_sub(1).max(2)), random),
            // Up to a half of them: the greater part goes on.
            Kind::Partition => self.some(random.usize(1..=(count / 2).max(1)), random),
            Kind::Link => self.some(2, random),
            Kind::Power => self.some(random.usize(1..=count), random),
            Kind::KillAll | Kind::Rolling => self.ids.clone(),
            Kind::FullDisk => self.small_disk.into_iter().collect(),
        };
        let how = match kind {
            Kind::OneWay if random.bool() => How::Mute,
            Kind::OneWay => How::Deaf,
            Kind::Slow => {
                let delay = Duration::from_millis(random.u64(1..150));
                How::Line { delay, bytes_per_second: random.u32(20_000..500_000) }
            }
            Kind::Clock => {
                let most = i64::try_from(self.uptime.as_secs()).unwrap_or(i64::MAX).min(1_000_000);
                How::Ahead(random.i64(-most / 2..=10 * most))
            }
            Kind::KillOne
            | Kind::KillSeveral
            | Kind::KillAll
            | Kind::Power
            | Kind::Pause
            | Kind::Partition
            | Kind::Link
            | Kind::Reset
            | Kind::FullDisk
            | Kind::Rolling => How::Plain,
        };
        Fault { kind, victims, how }
    }

    /// So many nodes; the leader is among them more often than chance would have it.
    fn some(&self, count: usize, random: &mut fastrand::Rng) -> Vec<u64> {
        let mut ids = self.ids.clone();
        random.shuffle(&mut ids);
        let rather_the_leader = random.u32(..3) > 0;
        if let Some(at) = ids.iter().position(|id| Some(*id) == self.leader)
            && rather_the_leader
        {
            ids.swap(0, at);
        }
        ids.truncate(count.max(1));
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene() -> Scene {
        Scene {
            ids: (1..=5).collect(),
            leader: Some(4),
            kinds: Kind::ALL.into(),
            small_disk: Some(2),
            uptime: Duration::from_secs(1000),
        }
    }

    #[test]
    fn a_seed_draws_the_same_faults_again() {
        let drawn = |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            (0..50).map(|_| scene().round(&mut random)).collect::<Vec<_>>()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }

    #[test]
    fn every_kind_has_a_word() {
        assert!(Kind::ALL.iter().all(|kind| kind.word().parse() == Ok(*kind)));
        assert!("kill".parse::<Kind>().unwrap_err().contains("kill-one, kill-several"));
    }

    #[test]
    fn every_kind_is_drawn_with_victims_that_fit() {
        let (scene, mut random) = (scene(), fastrand::Rng::with_seed(1));
        let mut seen = BTreeSet::new();
        for fault in (0..500).flat_map(|_| scene.round(&mut random)) {
            let hit = fault.victims.iter().collect::<BTreeSet<_>>().len();
            assert_eq!(hit, fault.victims.len(), "nobody twice: {fault}");
            let fits = match fault.kind {
                Kind::KillOne | Kind::Pause | Kind::OneWay | Kind::Slow | Kind::Reset | Kind::Clock => hit == 1,
                Kind::KillSeveral => (2..=4).contains(&hit),
                Kind::Partition => (1..=2).contains(&hit),
                Kind::Link => hit == 2,
                Kind::Power => (1..=5).contains(&hit),
                Kind::KillAll | Kind::Rolling => hit == 5,
                Kind::FullDisk => fault.victims == [2],
            };
            assert!(fits, "{fault}");
            if let How::Ahead(seconds) = fault.how {
                assert!(seconds > -1000, "{fault}");
            }
            seen.insert(fault.kind);
        }
        assert_eq!(seen, Kind::ALL.into());
    }

    #[test]
    fn what_can_not_be_done_is_not_drawn() {
        let scene = Scene { kinds: [Kind::Pause, Kind::Slow].into(), ..scene() };
        let mut random = fastrand::Rng::with_seed(1);
        let kinds: BTreeSet<_> = (0..100).flat_map(|_| scene.round(&mut random)).map(|fault| fault.kind).collect();
        assert_eq!(kinds, scene.kinds);
        assert!(Scene { kinds: BTreeSet::new(), ..scene }.round(&mut random).is_empty());
    }
}
