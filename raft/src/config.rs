//! Every limit and time of a node, by name.

use std::time::Duration;

use crate::consensus::CLOCK_INTERVAL;

/// The largest piece of an image that is sent at once, whatever the receiver asks for.
pub(crate) const MAX_PART_BYTES: u64 = 1 << 20;

/// How much of a promise is sure to be left on a clock that may be slower than the other by so much in a second.
pub(crate) fn shortened(promise: Duration, drift: Duration) -> Duration {
    let second = Duration::from_secs(1).as_nanos();
    let nanos = promise.as_nanos() * second / (second + drift.as_nanos());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The most sessions, and the most that is kept for them: together they make less than the 4 GiB whose length an image can tell.
const MAX_SESSIONS: usize = 100_000;
/// A task that has been idle for longer is better off asleep.
const MAX_BUSY_POLL: Duration = Duration::from_millis(10);
const MAX_SESSION_BYTES: u64 = 1 << 30;

/// Times and limits. The defaults suit a cluster in one data centre.
///
/// Bytes are counted by [`Entry::cost`](crate::Entry::cost): the payload and a fixed overhead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a follower waits for its leader before it campaigns. Each wait is drawn anew from once to twice this
    /// (paper §5.2). A leader that hears no quorum for this long steps down (thesis §6.2).
    pub election_timeout: Duration,
    /// How often an idle leader speaks, the same on every node. At most half of the election timeout; with a third of it one heartbeat may be lost, or be late
    /// by as much, and with less of it more. When connections tell that a leader is lost, it is replaced soon after it should have spoken next, though
    /// not before half of this and a sixth of the election timeout are over: it may be connecting again.
    pub heartbeat_interval: Duration,
    /// Whether to ask before raising the term (thesis §9.6), so that a node that comes back disturbs nobody.
    pub pre_vote: bool,
    /// Whether a leader that hears no quorum steps down, and followers of a live leader ignore campaigns (thesis §4.2.3). Without it nodes follow
    /// a leader for ever that they hear and that hears no quorum.
    pub check_quorum: bool,
    /// Lets this node, when it leads, answer reads that allow it ([`Consistency::Lease`](crate::Consistency::Lease)) by its clock, and promise other
    /// leaders what they need to do so. The value is what you vouch for: of the clocks of any two members, none gains more than this on the
    /// other in a second. Some 10 ms are far beyond what healthy hardware does. None, the default: no leases.
    ///
    /// * What counts is how fast clocks go, not what they show, so corrections of the time of day do no harm. A process that stands still does
    ///   none either, nor does a suspended machine on Linux, where the time counts for which it slept. A virtual machine whose clock
    ///   is stopped and continued with it breaks what you vouched for: reads there may then be stale.
    /// * A leader that is lost is replaced only when its lease is over, up to an election timeout later, and then at a voter's turn, whatever connections tell.
    /// * A node that starts stays out of elections for an election timeout, for it may have promised so before. For the same reason leave a node
    ///   down for as long as its old election timeout when you make that shorter, or this none.
    pub lease_drift: Option<Duration>,

    /// A leader hands over to a voter with a higher priority than its own. 0, the default of all, is the lowest. Where one data centre is near the
    /// clients, give its nodes a higher one. Can be changed while the node runs ([`Raft::set_priority`](crate::Raft::set_priority)).
    pub priority: u32,
    /// Whether the node may lead. One that may not follows and votes, and never campaigns; when it leads as it is told so, it hands over. A
    /// cluster needs others that hold everything that is committed: where none of them is left, nobody leads. Can be changed while the node
    /// runs ([`Raft::set_may_lead`](crate::Raft::set_may_lead)).
    pub may_lead: bool,
    /// How long a voter with a higher priority must have been heard and have kept up with the log, without a break, before a leader hands over to
    /// it. Also the pause after a transfer that failed, which is then doubled from one failure to the next, up to 32 times this.
    pub priority_settle: Duration,

    /// The most that one append message carries. A single larger entry passes alone.
    pub max_append_bytes: u64,
    /// How many unacknowledged append messages may be under way to one follower.
    pub max_inflight_appends: usize,
    /// How many bytes of them.
    pub max_inflight_bytes: u64,
    /// What one write to the log store carries at most, before a single larger entry.
    pub max_write_bytes: u64,
    /// The most that may be handed to the state machine and not be applied yet.
    pub max_applying_bytes: u64,
    /// Recent entries kept in memory for followers and the state machine; older ones are read from the log store.
    /// Entries that are not committed, or not on disk, are kept in addition, within `max_uncommitted_bytes`.
    pub max_tail_bytes: u64,
    /// Proposals beyond this many uncommitted bytes get `Overloaded`.
    pub max_uncommitted_bytes: u64,
    /// The largest command. Beyond it, `TooLarge`.
    pub max_command_bytes: u64,
    /// Requests (writes and reads, in the runtime's queue and awaiting an answer) before `Overloaded`.
    pub max_pending_requests: usize,

    /// How long the thread that runs this node looks again and again for the next request before it sleeps, once nobody waits for an answer any more, and that of a
    /// client for his answer, if nobody else waits for one. Each only where it came within this time the last two times, and the first only where no more than four requests
    /// have come together within a tenth of a second. A thread that sleeps on a core that has gone idle wakes up some 20 µs late: longer than a write takes where log and clients
    /// are in this process. Zero: never, as on a machine with one core. At most 10 ms.
    pub busy_poll: Duration,

    /// How many members a change of the configuration may lead to, voters and learners.
    pub max_members: usize,
    /// How long a node that is to vote may take to catch up with the log; past it the change is given up, and the node stays a learner.
    /// Also how long a leader tries to tell a removed node that it is removed.
    pub catch_up_timeout: Duration,
    /// An image of the state machine is taken, and the log cut for it, after this many entries since the last one. `u64::MAX`: never for
    /// their number. While somebody fetches the last one, it may be four times as many, and as many bytes of entries as the image has.
    pub snapshot_entries: u64,
    /// … or after this many bytes of entries. `u64::MAX`: never for their bytes.
    pub snapshot_bytes: u64,
    /// How many entries in front of an image stay in the log, so that a follower that is a little behind needs no image.
    pub trailing_entries: u64,
    /// How much of the time a node that writes an image of its state machine is busy with that, in percent, 1 to 100. In the rest of it the
    /// disk and the processor are left to what clients wait for: the less, the less they notice, and the longer an image takes. A pause lasts a second at
    /// most, and there are none while somebody waits for the image: the owner who asked for it, or a follower that there is no image for. Nor are there any once
    /// entries of four times the length of the newest image were applied meanwhile, and of no less than four times `snapshot_bytes` (of 1 GiB, where that is
    /// more): they stay in the log until it is written. As long as an image is written, the state machine keeps the view of what it is of; one that is in
    /// a database (redb) can't give free meanwhile what has been overwritten since, so the file may grow.
    pub snapshot_busy_percent: u32,
    /// In what pieces an image is written, read and sent, in bytes.
    pub snapshot_chunk_bytes: u64,
    /// How much of an image a node that receives one asks for ahead of what its disk has, in bytes. Also what it may hold in memory of it.
    pub snapshot_window_bytes: u64,
    /// How much of an image a node receives in a second at most, in bytes. `u64::MAX`, the default: as fast as it goes.
    pub snapshot_bytes_per_second: u64,

    /// How many client sessions there may be in the group: more than there are clients at a time, for one more takes the place of that which was
    /// not used for the longest time. A session that never says that it has its answers takes some 20 KB beside the answers. At most 100 000.
    pub max_sessions: usize,
    /// How long a client session may be unused before it expires; at least a second. Counted is the time that leaders have led, with a precision
    /// of a second, up to the last use of any session.
    pub session_idle: Duration,
    /// How long [`Session::write`](crate::Session::write) goes on repeating a write.
    pub session_patience: Duration,
    /// How many bytes of answers are kept for the repetitions of sessions' writes, with a fixed overhead for each. Beyond it the oldest are
    /// forgotten: a repetition is still not applied again, but gets `AnswerForgotten`. At most 1 GiB.
    pub max_session_bytes: u64,

    /// How long a write may take. Past it the answer is `OutcomeUnknown`, or `Unavailable` if it was never proposed. While the leader's oldest entry
    /// has waited for half of this to be applied, further commands get `Overloaded`, for they would not be done in time.
    pub write_timeout: Duration,
    /// How long a read may take. Past it the answer is `Unavailable`.
    pub read_timeout: Duration,
    /// How long a disk write may take before a leader gives way to a node with a better disk, and a node stops campaigning; and how long the
    /// state machine may go without a sign of progress while it has something to do, before the same happens for it. A batch that is applied is one, and a
    /// part of an image that is restored; a single command must not take this long.
    pub stall_timeout: Duration,
    /// How long a disk write may take before the log warns of it.
    pub slow_disk: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            election_timeout: Duration::from_millis(300),
            heartbeat_interval: Duration::from_millis(100),
            pre_vote: true,
            check_quorum: true,
            priority: 0,
            may_lead: true,
            priority_settle: Duration::from_secs(3),
            lease_drift: None,
            max_append_bytes: 1 << 20,
            max_inflight_appends: 256,
            max_inflight_bytes: 16 << 20,
            max_write_bytes: 4 << 20,
            max_applying_bytes: 16 << 20,
            max_tail_bytes: 8 << 20,
            max_uncommitted_bytes: 64 << 20,
            max_command_bytes: 8 << 20,
            max_pending_requests: 65_536,
            busy_poll: Duration::from_micros(50),
            max_members: 64,
            catch_up_timeout: Duration::from_secs(60),
            snapshot_entries: 100_000,
            snapshot_bytes: 256 << 20,
            trailing_entries: 10_000,
            snapshot_busy_percent: 20,
            snapshot_chunk_bytes: 256 << 10,
            snapshot_window_bytes: 4 << 20,
            snapshot_bytes_per_second: u64::MAX,
            max_sessions: 10_000,
            session_idle: Duration::from_secs(3600),
            session_patience: Duration::from_secs(20),
            max_session_bytes: 16 << 20,
            write_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(1),
            slow_disk: Duration::from_millis(200),
        }
    }
}

impl Config {
    /// Why these values can't work together, if they can't.
    ///
    /// # Errors
    /// The reason, naming the option and what to set it to.
    pub fn validate(&self) -> Result<(), String> {
        if self.heartbeat_interval.is_zero() {
            return Err("heartbeat_interval is zero: set it to a third of election_timeout".into());
        }
        if self.heartbeat_interval.saturating_mul(2) > self.election_timeout {
            return Err(format!(
                "heartbeat_interval ({:?}) must be at most half of election_timeout ({:?}), or followers campaign against a live leader",
                self.heartbeat_interval, self.election_timeout
            ));
        }
        if let Some(drift) = self.lease_drift {
            let length = shortened(self.election_timeout, drift);
            if length <= self.heartbeat_interval {
                return Err(format!(
                    "lease_drift ({drift:?} a second) leaves {length:?} of an election timeout of {:?}: less than a heartbeat_interval ({:?}), \
                     so that a lease would always be over before it is renewed",
                    self.election_timeout, self.heartbeat_interval
                ));
            }
        }
        if self.snapshot_chunk_bytes > MAX_PART_BYTES {
            return Err(format!(
                "snapshot_chunk_bytes ({}) must be at most {MAX_PART_BYTES}: a larger piece would not pass in one message",
                self.snapshot_chunk_bytes
            ));
        }
        if self.snapshot_busy_percent > 100 {
            return Err(format!(
                "snapshot_busy_percent ({}) must be at most 100: it is a part of the time",
                self.snapshot_busy_percent
            ));
        }
        if self.busy_poll > MAX_BUSY_POLL {
            return Err(format!(
                "busy_poll ({:?}) must be at most {MAX_BUSY_POLL:?}: a thread that looks again and again keeps a core busy",
                self.busy_poll
            ));
        }
        if self.session_idle < CLOCK_INTERVAL {
            return Err(format!(
                "session_idle ({:?}) must be at least {CLOCK_INTERVAL:?}, the precision with which it is measured",
                self.session_idle
            ));
        }
        if self.max_sessions > MAX_SESSIONS || self.max_session_bytes > MAX_SESSION_BYTES {
            return Err(format!(
                "max_sessions ({}) must be at most {MAX_SESSIONS}, and max_session_bytes ({}) at most {MAX_SESSION_BYTES}: all sessions are \
                 in memory, and at the beginning of each image",
                self.max_sessions, self.max_session_bytes
            ));
        }
        let limits = [
            ("max_append_bytes", self.max_append_bytes),
            ("max_inflight_appends", self.max_inflight_appends as u64),
            ("max_inflight_bytes", self.max_inflight_bytes),
            ("max_write_bytes", self.max_write_bytes),
            ("max_applying_bytes", self.max_applying_bytes),
            ("max_tail_bytes", self.max_tail_bytes),
            ("max_uncommitted_bytes", self.max_uncommitted_bytes),
            ("max_command_bytes", self.max_command_bytes),
            ("max_pending_requests", self.max_pending_requests as u64),
            ("max_members", self.max_members as u64),
            ("max_sessions", self.max_sessions as u64),
            ("max_session_bytes", self.max_session_bytes),
            ("snapshot_entries", self.snapshot_entries),
            ("snapshot_bytes", self.snapshot_bytes),
            ("snapshot_busy_percent", u64::from(self.snapshot_busy_percent)),
            ("snapshot_chunk_bytes", self.snapshot_chunk_bytes),
            ("snapshot_window_bytes", self.snapshot_window_bytes),
            ("snapshot_bytes_per_second", self.snapshot_bytes_per_second),
        ];
        match limits.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(format!("{name} is 0: nothing could ever pass")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn a_heartbeat_too_slow_for_the_election_timeout_is_refused() {
        let config = Config { heartbeat_interval: Duration::from_millis(200), ..Config::default() };
        assert!(config.validate().unwrap_err().contains("at most half"));
    }

    #[test]
    fn a_time_that_means_never_is_valid() {
        let never = Config { write_timeout: Duration::MAX, slow_disk: Duration::MAX, ..Config::default() };
        assert_eq!(never.validate(), Ok(()));
        assert!(Config { heartbeat_interval: Duration::MAX, ..Config::default() }.validate().is_err());
    }

    #[test]
    fn a_promise_is_shortened_by_what_a_clock_may_gain() {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        assert_eq!(shortened(ms(300), Duration::ZERO), ms(300));
        assert_eq!(shortened(ms(300), s(1)), ms(150));
        assert_eq!(shortened(ms(303), ms(10)), ms(300));
        // Never a nanosecond too many.
        assert_eq!(shortened(Duration::from_nanos(1000), Duration::from_nanos(1)), Duration::from_nanos(999));
        assert_eq!(shortened(Duration::MAX, Duration::ZERO), Duration::from_nanos(u64::MAX));
        assert_eq!(shortened(Duration::MAX, Duration::MAX).as_secs(), 0);
    }

    #[test]
    fn clocks_that_leave_nothing_of_a_lease_are_refused() {
        let drifting = |drift| Config { lease_drift: Some(drift), ..Config::default() }.validate();
        assert_eq!(drifting(Duration::from_millis(10)), Ok(()));
        assert_eq!(drifting(Duration::from_millis(1900)), Ok(()));
        assert!(drifting(Duration::from_secs(2)).unwrap_err().contains("lease_drift (2s a second) leaves 100ms"));
        assert!(drifting(Duration::MAX).is_err());
    }

    #[test]
    fn a_thread_that_would_hardly_ever_sleep_is_refused() {
        let busy = |micros| Config { busy_poll: Duration::from_micros(micros), ..Config::default() }.validate();
        assert_eq!((busy(0), busy(10_000)), (Ok(()), Ok(())));
        assert!(busy(10_001).unwrap_err().contains("busy_poll (10.001ms) must be at most 10ms"));
    }

    #[test]
    fn pieces_of_images_that_are_too_large_for_a_message_are_refused() {
        let config = Config { snapshot_busy_percent: 101, ..Config::default() };
        assert!(config.validate().unwrap_err().contains("snapshot_busy_percent"));
        let config = Config { snapshot_chunk_bytes: 64 << 20, ..Config::default() };
        assert!(config.validate().unwrap_err().contains("snapshot_chunk_bytes"));
    }

    #[test]
    fn sessions_that_no_image_could_hold_are_refused() {
        for config in [
            Config { max_sessions: 1_000_000, ..Config::default() },
            Config { max_session_bytes: 2 << 30, ..Config::default() },
        ] {
            assert!(config.validate().unwrap_err().contains("max_sessions"));
        }
        let config = Config { session_idle: Duration::from_millis(1), ..Config::default() };
        assert!(config.validate().unwrap_err().contains("session_idle"));
    }

    #[test]
    fn a_limit_of_zero_is_refused_by_name() {
        let config = Config { max_tail_bytes: 0, ..Config::default() };
        assert!(config.validate().unwrap_err().contains("max_tail_bytes"));
    }
}
