//! Named sets of bounds.

use super::bounds::Bounds;
use super::marks::Mark;

/// Some searches.
#[derive(Clone, Debug)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// The searches.
    pub searches: Vec<Bounds>,
    /// After how many different states each of them ends, if it has not seen all.
    pub max_states: u64,
}

/// All presets.
#[must_use]
pub fn presets() -> Vec<Preset> {
    let preset = |name, about, searches| Preset { name, about, searches, max_states: 50_000_000 };
    vec![
        preset("tiny", "seconds in a debug build", tiny()),
        preset("ci", "a minute in a release build", ci()),
        preset(
            "reconfiguration",
            "changes of the configuration alone: some minutes in a release build, and up to 6 GiB",
            reconfigurations(),
        ),
        preset("campaign", "an hour or so in a release build, and up to 6 GiB", campaign()),
    ]
}

fn names(marks: &[Mark]) -> Vec<&'static str> {
    [Mark::Elected, Mark::Committed].iter().chain(marks).map(|mark| mark.name()).collect()
}

/// All nodes of three.
const ALL: u8 = 0b111;

fn tiny() -> Vec<Bounds> {
    vec![
        Bounds {
            in_flight: 3,
            must_meet: names(&[Mark::VoteRefused, Mark::SteppedDown, Mark::AppendRejected]),
            ..Bounds::new("elections")
        },
        Bounds {
            nodes: 2,
            crashes: 1,
            slow_disks: ALL,
            in_flight: 3,
            must_meet: names(&[Mark::Crashed, Mark::TornWrite]),
            ..Bounds::new("two nodes that crash")
        },
        Bounds {
            max_term: 1,
            campaigns: 1,
            proposals: 1,
            duplicates: 1,
            in_flight: 4,
            must_meet: names(&[Mark::DuplicatedMessage]),
            ..Bounds::new("duplicates")
        },
    ]
}

fn ci() -> Vec<Bounds> {
    let mut searches = tiny();
    searches.extend([
        Bounds { nodes: 5, max_term: 1, campaigns: 2, in_flight: 6, ..Bounds::new("five nodes") },
        Bounds {
            nodes: 2,
            max_term: 3,
            slow_disks: ALL,
            crashes: 1,
            proposals: 1,
            durable_machines: true,
            must_meet: names(&[Mark::TornWrite, Mark::CommittedIndirectly]),
            ..Bounds::new("two nodes and a client")
        },
        Bounds {
            in_flight: 5,
            must_meet: names(&[Mark::ElectedLate, Mark::CommittedLate, Mark::Truncated, Mark::CommittedIndirectly]),
            ..Bounds::new("late messages")
        },
        Bounds {
            max_term: 3,
            must_meet: names(&[Mark::Truncated, Mark::CommittedIndirectly, Mark::TwoLeaders]),
            ..Bounds::new("three terms")
        },
        Bounds { must_meet: names(&[Mark::Figure8, Mark::Truncated, Mark::CommittedIndirectly]), ..figure_8(2, 1) },
        Bounds { logs: vec![vec![1, 1, 1], vec![], vec![2]], ..figure_8(2, 0) }.named("a longer, older log"),
        Bounds {
            campaigns: 2,
            in_flight: 3,
            crashes: 1,
            slow_disks: ALL,
            must_meet: names(&[Mark::TornWrite, Mark::Truncated, Mark::CommittedLate]),
            ..Bounds::new("disks and crashes")
        },
        Bounds {
            campaigns: 2,
            in_flight: 4,
            reads: 1,
            must_meet: names(&[Mark::LeaderRead, Mark::TwoLeaders]),
            ..Bounds::new("reads")
        },
        Bounds {
            campaigns: 2,
            pre_vote: true,
            check_quorum: true,
            lapses: 1,
            must_meet: names(&[Mark::SteppedDown, Mark::TwoLeaders]),
            ..Bounds::new("polls")
        },
        Bounds {
            max_term: 1,
            campaigns: 1,
            forwarding: true,
            proposals: 1,
            reads: 1,
            duplicates: 1,
            must_meet: names(&[Mark::FollowerRead, Mark::LeaderRead, Mark::DuplicatedMessage]),
            ..Bounds::new("forwarding")
        },
        stepping_down(3),
        Bounds { nodes: 2, ..stepping_down(4) }.named("stepping down, two nodes"),
        reconfiguration(4),
        removal(4),
    ]);
    searches
}

/// From figure 8 (b) of the paper on, with three nodes: a leader of term 1 and one of term 2 each stored their entries nowhere else.
fn figure_8(campaigns: u32, crashes: u32) -> Bounds {
    Bounds {
        max_term: 4,
        campaigns,
        campaigners: 0b101,
        crashes,
        logs: vec![vec![1], vec![], vec![2]],
        must_meet: names(&[Mark::Truncated, Mark::CommittedIndirectly]),
        ..Bounds::new("figure 8")
    }
}

/// A leader gives up within its term, and is asked again for what it may have done.
fn stepping_down(in_flight: usize) -> Bounds {
    Bounds {
        max_term: 1,
        campaigns: 1,
        in_flight,
        forwarding: true,
        proposals: 1,
        duplicates: 1,
        check_quorum: true,
        lapses: 1,
        heartbeats: 1,
        must_meet: names(&[Mark::SteppedDown, Mark::DuplicatedMessage]),
        ..Bounds::new("stepping down")
    }
}

/// One of two voters gives way to a third node, whoever leads: by a joint configuration, as two voters differ (paper §6).
fn reconfiguration(in_flight: usize) -> Bounds {
    Bounds {
        voters: 2,
        changes: vec![vec![2, 3]],
        campaigns: 2,
        in_flight,
        must_meet: names(&[Mark::Joint, Mark::Changed, Mark::Removed, Mark::SteppedDown]),
        ..Bounds::new("reconfiguration")
    }
}

/// A leader removes itself or another by a single entry, and may fall before that is committed.
fn removal(in_flight: usize) -> Bounds {
    Bounds {
        voters: 3,
        changes: vec![vec![2, 3]],
        must_meet: names(&[Mark::Changed, Mark::ChangeTakenBack, Mark::Removed, Mark::TwoLeaders]),
        ..reconfiguration(in_flight)
    }
    .named("removal")
}

fn reconfigurations() -> Vec<Bounds> {
    vec![
        reconfiguration(5),
        removal(4),
        Bounds {
            changes: vec![vec![1, 2], vec![2, 3]],
            must_meet: names(&[Mark::Joint, Mark::Changed, Mark::ChangeRefused, Mark::Removed]),
            ..removal(3)
        }
        .named("one change after another"),
        Bounds {
            nodes: 4,
            changes: vec![vec![2, 3, 4]],
            must_meet: names(&[Mark::Joint, Mark::Changed, Mark::ChangeTakenBack, Mark::Removed]),
            ..removal(4)
        }
        .named("replacement"),
        Bounds {
            changes: vec![vec![1], vec![1, 2, 3]],
            crashes: 1,
            slow_disks: ALL,
            must_meet: names(&[Mark::Joint, Mark::Changed, Mark::ChangeTakenBack, Mark::Crashed, Mark::TornWrite]),
            ..removal(3)
        }
        .named("disks and crashes"),
    ]
}

fn campaign() -> Vec<Bounds> {
    vec![
        Bounds { max_term: 3, in_flight: 6, ..Bounds::new("elections") },
        Bounds {
            campaigns: 3,
            in_flight: 4,
            crashes: 2,
            slow_disks: ALL,
            proposals: 1,
            durable_machines: true,
            must_meet: names(&[Mark::TornWrite, Mark::Truncated, Mark::CommittedLate]),
            ..Bounds::new("disks and crashes")
        },
        Bounds {
            in_flight: 5,
            single_entries: true,
            must_meet: names(&[Mark::Figure8, Mark::Truncated, Mark::CommittedIndirectly]),
            ..figure_8(3, 1)
        },
        Bounds {
            max_term: 3,
            in_flight: 5,
            reads: 2,
            forwarding: true,
            must_meet: names(&[Mark::LeaderRead, Mark::FollowerRead, Mark::TwoLeaders]),
            ..Bounds::new("reads")
        },
        // Answers to a leader of an earlier term must not confirm a later one that it leads, too.
        Bounds {
            max_term: 3,
            campaigners: 0b101,
            reads: 1,
            heartbeats: 1,
            must_meet: names(&[Mark::LeaderRead, Mark::TwoLeaders, Mark::SteppedDown]),
            ..Bounds::new("reads across terms")
        },
        Bounds {
            max_term: 3,
            in_flight: 5,
            pre_vote: true,
            check_quorum: true,
            lapses: 2,
            heartbeats: 1,
            must_meet: names(&[Mark::SteppedDown, Mark::TwoLeaders]),
            ..Bounds::new("polls")
        },
        Bounds { slow_disks: ALL, heartbeats: 1, in_flight: 4, ..Bounds::new("slow disks and heartbeats") },
        stepping_down(5),
        Bounds { nodes: 5, in_flight: 7, max_term: 2, campaigns: 2, ..Bounds::new("five nodes") },
    ]
}
