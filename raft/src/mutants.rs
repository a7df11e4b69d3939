//! Known bugs that can be compiled in, to see whether the tests would find them.
//!
//! A place in production code that asks `mutant!("name")` holds the bug of that name; the answer is a constant `false`
//! unless the code is compiled with `--cfg mutants` (by `RUSTFLAGS`, or `.ci/with-known-bugs`). Then [`choose`] switches one of them on, for the whole process.
//! [`MUTANTS`] says what is wrong with each. The command `sim --mutants` lists how many seeds find it.

#[cfg(mutants)]
use std::sync::atomic::{AtomicUsize, Ordering};

/// A known bug.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// Its name, in the code and on the command line.
    pub name: &'static str,
    /// What is wrong.
    pub wrong: &'static str,
    /// Where.
    pub file: &'static str,
    /// Which depth of the simulator finds it: `consensus`, `node`, or `engine`, which is `node` with `--engine redb`.
    pub depth: &'static str,
}

/// All of them.
pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "vote-before-durable",
        wrong: "A vote is told before it is on disk.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "candidate-counts-itself-early",
        wrong: "A candidate counts its vote for itself, and asks for others, before it is on disk.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "step-down-forgets-vote",
        wrong: "A leader that steps down within its term forgets that it voted.",
        file: "raft/src/consensus/heartbeat.rs",
        depth: "consensus",
    },
    Mutant {
        name: "repeated-vote-counts-twice",
        wrong: "A vote that comes twice is counted twice.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "log-compared-by-index-first",
        wrong: "Logs are compared by index before term.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "votes-twice-in-a-term",
        wrong: "A node votes for each candidate of a term.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "votes-for-any-log",
        wrong: "A vote is given whatever the candidate's log holds.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "poll-granted-against-a-live-leader",
        wrong: "A poll is granted although a live leader is heard.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "campaigns-disturb-a-live-leader",
        wrong: "A campaign of a later term deposes a leader that is alive.",
        file: "raft/src/consensus/mod.rs",
        depth: "consensus",
    },
    Mutant {
        name: "leader-heard-does-not-reset-the-timer",
        wrong: "A follower that hears its leader goes on waiting for its election timeout.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "lease-counted-from-the-reply",
        wrong: "A leader counts a promise from when it hears of it, not from when it asked.",
        file: "raft/src/consensus/lease.rs",
        depth: "consensus",
    },
    Mutant {
        name: "lease-ignores-drift",
        wrong: "A leader takes other clocks to go as fast as its own.",
        file: "raft/src/consensus/lease.rs",
        depth: "consensus",
    },
    Mutant {
        name: "lease-kept-across-a-transfer",
        wrong: "A leader answers reads by its lease after it told another node to campaign.",
        file: "raft/src/consensus/lease.rs",
        depth: "consensus",
    },
    Mutant {
        name: "restarted-voter-votes-at-once",
        wrong: "A node that starts takes part in elections at once, whatever it promised before.",
        file: "raft/src/consensus/mod.rs",
        depth: "consensus",
    },
    Mutant {
        name: "suspicion-breaks-the-promise",
        wrong: "A node that lost the connection with its leader takes part in elections before its promise is over.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "promise-forgotten-with-the-term",
        wrong: "A node that moves to a later term forgets what it promised.",
        file: "raft/src/consensus/mod.rs",
        depth: "consensus",
    },
    Mutant {
        name: "timeouts-in-step",
        wrong: "All nodes draw the same election timeouts.",
        file: "raft/src/consensus/random.rs",
        depth: "consensus",
    },
    Mutant {
        name: "term-not-stored",
        wrong: "A new term is not written to disk before anything is said in it.",
        file: "raft/src/consensus/durability.rs",
        depth: "consensus",
    },
    Mutant {
        name: "promises-outlive-their-term",
        wrong: "What waits for the disk is said even when the term has moved on.",
        file: "raft/src/consensus/durability.rs",
        depth: "consensus",
    },
    Mutant {
        name: "stale-completion-after-a-truncation",
        wrong: "A write that completes after a truncation vouches for what was removed.",
        file: "raft/src/consensus/durability.rs",
        depth: "consensus",
    },
    Mutant {
        name: "truncation-leaves-the-durable-cursor",
        wrong: "A truncation leaves the position up to which the log is on disk where it was.",
        file: "raft/src/consensus/log.rs",
        depth: "consensus",
    },
    Mutant {
        name: "acknowledged-before-durable",
        wrong: "A follower acknowledges entries that are not on its disk.",
        file: "raft/src/consensus/durability.rs",
        depth: "consensus",
    },
    Mutant {
        name: "acknowledged-before-the-term-is-durable",
        wrong: "A follower acknowledges entries in a term that is not on its disk.",
        file: "raft/src/consensus/durability.rs",
        depth: "consensus",
    },
    Mutant {
        name: "commit-by-counting-an-earlier-term",
        wrong: "An entry of an earlier term is committed by counting (figure 8).",
        file: "raft/src/consensus/commit.rs",
        depth: "consensus",
    },
    Mutant {
        name: "leader-counts-itself-early",
        wrong: "A leader counts its own entries before they are on its disk.",
        file: "raft/src/consensus/commit.rs",
        depth: "consensus",
    },
    Mutant {
        name: "unsorted-quorum",
        wrong: "A quorum is computed from an unsorted array.",
        file: "raft/src/consensus/quorum.rs",
        depth: "consensus",
    },
    Mutant {
        name: "half-is-a-majority",
        wrong: "Half of an even number of voters is taken for a majority.",
        file: "raft/src/consensus/quorum.rs",
        depth: "consensus",
    },
    Mutant {
        name: "joint-counts-only-the-new-half",
        wrong: "A joint configuration decides by a majority of its new half alone.",
        file: "raft/src/consensus/quorum.rs",
        depth: "consensus",
    },
    Mutant {
        name: "learner-is-counted",
        wrong: "A learner's disk counts in the quorum that commits.",
        file: "raft/src/consensus/quorum.rs",
        depth: "consensus",
    },
    Mutant {
        name: "removed-leader-counts-itself",
        wrong: "A leader counts itself under a configuration in which it does not vote.",
        file: "raft/src/consensus/quorum.rs",
        depth: "consensus",
    },
    Mutant {
        name: "uncommitted-configuration-not-taken-back",
        wrong: "A configuration whose entry is truncated stays in force.",
        file: "raft/src/consensus/membership.rs",
        depth: "consensus",
    },
    Mutant {
        name: "second-change-before-the-first-is-committed",
        wrong: "A change begins while the configuration in force is not committed.",
        file: "raft/src/consensus/change.rs",
        depth: "consensus",
    },
    Mutant {
        name: "change-before-the-term-is-open",
        wrong: "A new leader changes the configuration before it has committed an entry of its term.",
        file: "raft/src/consensus/change.rs",
        depth: "consensus",
    },
    Mutant {
        name: "no-joint-configuration",
        wrong: "Any number of voters is replaced in a single step.",
        file: "raft/src/consensus/change.rs",
        depth: "consensus",
    },
    Mutant {
        name: "removed-leader-stays",
        wrong: "A leader goes on leading when it was removed.",
        file: "raft/src/consensus/change.rs",
        depth: "consensus",
    },
    Mutant {
        name: "removed-node-is-not-told",
        wrong: "A leader says nothing more to a node that it removes.",
        file: "raft/src/consensus/membership.rs",
        depth: "consensus",
    },
    Mutant {
        name: "promoted-before-it-caught-up",
        wrong: "A new node votes before it has the log.",
        file: "raft/src/consensus/change.rs",
        depth: "consensus",
    },
    Mutant {
        name: "promoted-learner-refuses-votes",
        wrong: "A learner that does not know that it was promoted gives no vote.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "heartbeat-commit-past-the-match",
        wrong: "A heartbeat carries a commit index beyond what the follower has matched.",
        file: "raft/src/consensus/heartbeat.rs",
        depth: "consensus",
    },
    Mutant {
        name: "applied-before-durable",
        wrong: "Committed entries are applied before they are on this node's disk.",
        file: "raft/src/consensus/commit.rs",
        depth: "consensus",
    },
    Mutant {
        name: "append-removes-all-after-prev",
        wrong: "An append removes everything after its prev, matching or not.",
        file: "raft/src/consensus/replication.rs",
        depth: "consensus",
    },
    Mutant {
        name: "fetched-entries-unchecked",
        wrong: "Entries that were read for a follower are sent though it needs others by now.",
        file: "raft/src/consensus/replication.rs",
        depth: "consensus",
    },
    Mutant {
        name: "full-window-never-reopens",
        wrong: "Appends that were lost are never sent again.",
        file: "raft/src/consensus/progress.rs",
        depth: "consensus",
    },
    Mutant {
        name: "window-without-a-bound",
        wrong: "A leader sends ahead without a bound.",
        file: "raft/src/consensus/progress.rs",
        depth: "consensus",
    },
    Mutant {
        name: "stale-leader-stays",
        wrong: "A leader that hears no quorum goes on leading.",
        file: "raft/src/consensus/heartbeat.rs",
        depth: "consensus",
    },
    Mutant {
        name: "stalled-leader-stays",
        wrong: "A leader whose disk has stalled goes on leading.",
        file: "raft/src/consensus/stall.rs",
        depth: "consensus",
    },
    Mutant {
        name: "round-of-an-earlier-term-confirms",
        wrong: "An answer to an earlier term's heartbeat confirms a round of this one.",
        file: "raft/src/consensus/mod.rs",
        depth: "consensus",
    },
    Mutant {
        name: "read-before-the-term-is-open",
        wrong: "A leader serves reads before it has committed an entry of its term.",
        file: "raft/src/consensus/read.rs",
        depth: "consensus",
    },
    Mutant {
        name: "read-without-a-quorum",
        wrong: "A leader answers reads without asking whether it still leads.",
        file: "raft/src/consensus/read.rs",
        depth: "consensus",
    },
    Mutant {
        name: "reads-forgotten-with-leadership",
        wrong: "Reads that wait when leadership is lost are never answered.",
        file: "raft/src/consensus/read.rs",
        depth: "consensus",
    },
    Mutant {
        name: "lost-question-never-repeated",
        wrong: "A follower's question for a read index is asked once only.",
        file: "raft/src/consensus/read.rs",
        depth: "consensus",
    },
    Mutant {
        name: "repeated-forward-appended-twice",
        wrong: "A forwarded batch that comes twice enters the log twice.",
        file: "raft/src/consensus/forward.rs",
        depth: "consensus",
    },
    Mutant {
        name: "refused-batch-taken-later",
        wrong: "A batch refused to a node that is no member is taken when a copy comes and it is one; one taken is refused when it is none any more.",
        file: "raft/src/consensus/forward.rs",
        depth: "consensus",
    },
    Mutant {
        name: "unknown-told-as-refused",
        wrong: "A batch whose fate is not known is told to be refused.",
        file: "raft/src/consensus/forward.rs",
        depth: "consensus",
    },
    Mutant {
        name: "uncommitted-without-a-bound",
        wrong: "A leader takes commands without a bound on what is not committed.",
        file: "raft/src/consensus/forward.rs",
        depth: "consensus",
    },
    Mutant {
        name: "backlog-outlives-its-clients",
        wrong: "A leader takes commands however long those before them have been waiting.",
        file: "raft/src/consensus/forward.rs",
        depth: "consensus",
    },
    Mutant {
        name: "memory-drops-what-is-not-durable",
        wrong: "Entries are dropped from memory before they are on disk.",
        file: "raft/src/consensus/log.rs",
        depth: "consensus",
    },
    Mutant {
        name: "followers-refuse-reads",
        wrong: "A follower refuses reads although it knows its leader.",
        file: "raft/src/consensus/read.rs",
        depth: "consensus",
    },
    Mutant {
        name: "told-taken-for-heard",
        wrong: "A leader takes those that it tells of itself for those that it hears.",
        file: "raft/src/consensus/heartbeat.rs",
        depth: "consensus",
    },
    Mutant {
        name: "window-not-counted",
        wrong: "What a leader sent ahead is not counted, so that its bound is never reached.",
        file: "raft/src/consensus/progress.rs",
        depth: "consensus",
    },
    Mutant {
        name: "applying-not-counted",
        wrong: "What was given to the state machine is not counted, so that its bound is never reached.",
        file: "raft/src/consensus/commit.rs",
        depth: "consensus",
    },
    Mutant {
        name: "acknowledged-by-length",
        wrong: "A follower acknowledges all of its own log, although it may differ from the leader's.",
        file: "raft/src/consensus/durability.rs",
        depth: "consensus",
    },
    Mutant {
        name: "elected-leader-commits-its-log",
        wrong: "A new leader takes all of its log for committed.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "read-before-applied",
        wrong: "A read is answered before the index it was given is applied here.",
        file: "raft/src/runtime/pending/reads.rs",
        depth: "node",
    },
    Mutant {
        name: "failed-write-taken-for-done",
        wrong: "A write of the log that failed is taken for done.",
        file: "raft/src/runtime/log_writer.rs",
        depth: "node",
    },
    Mutant {
        name: "waiters-forgotten-at-the-end",
        wrong: "Clients that wait are told nothing when the node stops.",
        file: "raft/src/runtime/driver.rs",
        depth: "node",
    },
    Mutant {
        name: "torn-tail-kept",
        wrong: "A torn tail is left in place, and later writes are mixed with it.",
        file: "storage-file/src/wal.rs",
        depth: "node",
    },
    Mutant {
        name: "fsync-error-ignored",
        wrong: "An fsync that failed is taken for one that succeeded.",
        file: "storage-file/src/wal.rs",
        depth: "node",
    },
    Mutant {
        name: "fsync-skipped",
        wrong: "A write is told to be durable without an fsync.",
        file: "storage-file/src/wal.rs",
        depth: "node",
    },
    Mutant {
        name: "cut-short-write-believed",
        wrong: "A large batch of which the disk took a part, or nothing, is not written again.",
        file: "storage-file/src/direct.rs",
        depth: "node",
    },
    Mutant {
        name: "recovered-tail-believed",
        wrong: "What was found after an unclean stop is relied on without being written again.",
        file: "storage-file/src/wal.rs",
        depth: "node",
    },
    Mutant {
        name: "directory-not-synced",
        wrong: "The name of a new segment is never made durable.",
        file: "storage-file/src/segment.rs",
        depth: "node",
    },
    Mutant {
        name: "corruption-read-as-the-end",
        wrong: "Damage in the middle of the log is read as its end.",
        file: "storage-file/src/recovery.rs",
        depth: "node",
    },
    Mutant {
        name: "checksums-not-compared",
        wrong: "The checksums of batches and entries are not compared.",
        file: "storage-file/src/frame.rs",
        depth: "node",
    },
    Mutant {
        name: "note-ahead-of-log",
        wrong: "The note of what was synced names a batch too many.",
        file: "storage-file/src/wal.rs",
        depth: "node",
    },
    Mutant {
        name: "deadline-told-as-refused",
        wrong: "A write that was proposed and not answered in time is said to be refused.",
        file: "raft/src/runtime/pending/writes.rs",
        depth: "node",
    },
    Mutant {
        name: "request-names-repeat",
        wrong: "Each run of a node names its forwarded batches anew from 0.",
        file: "raft/src/runtime/pending.rs",
        depth: "node",
    },
    Mutant {
        name: "answer-of-another-term",
        wrong: "A client gets the answer to what was applied at its index, in whatever term.",
        file: "raft/src/runtime/pending/results.rs",
        depth: "node",
    },
    Mutant {
        name: "failed-snapshot-stalls-compaction",
        wrong: "An image that came to nothing is the last one that is taken.",
        file: "raft/src/consensus/snapshot.rs",
        depth: "consensus",
    },
    Mutant {
        name: "compacted-beyond-the-snapshot",
        wrong: "The log is cut up to what is applied, not to what the image holds.",
        file: "raft/src/consensus/snapshot.rs",
        depth: "consensus",
    },
    Mutant {
        name: "stalled-holder-is-asked-for-ever",
        wrong: "A receiver of an image goes on asking whoever it asked first, though nothing comes any more.",
        file: "raft/src/consensus/image.rs",
        depth: "consensus",
    },
    Mutant {
        name: "damaged-image-installed",
        wrong: "A whole image is installed although its checksum is not the one that was offered.",
        file: "raft/src/consensus/image.rs",
        depth: "consensus",
    },
    Mutant {
        name: "image-published-before-the-term",
        wrong: "A received image is published before the term that it belongs to is on disk.",
        file: "raft/src/consensus/image.rs",
        depth: "consensus",
    },
    Mutant {
        name: "parts-taken-out-of-order",
        wrong: "A part of an image is added wherever it belongs, so that one that came twice is there twice.",
        file: "raft/src/consensus/image.rs",
        depth: "consensus",
    },
    Mutant {
        name: "parts-unchecked",
        wrong: "A part of an image that was damaged on its way is stored.",
        file: "raft/src/consensus/image.rs",
        depth: "consensus",
    },
    Mutant {
        name: "installed-over-newer-state",
        wrong: "An image that appends have overtaken is installed, and what is applied goes backwards.",
        file: "raft/src/consensus/image.rs",
        depth: "consensus",
    },
    Mutant {
        name: "install-drops-the-rest-of-the-log",
        wrong: "An installed image takes the place of the whole log, also of what was acknowledged after its last entry.",
        file: "raft/src/consensus/image.rs",
        depth: "consensus",
    },
    Mutant {
        name: "installed-image-leaves-the-old-configuration",
        wrong: "An installed image leaves the configuration in force that was there before.",
        file: "raft/src/consensus/membership.rs",
        depth: "consensus",
    },
    Mutant {
        name: "image-replaced-while-it-is-restored",
        wrong: "A received image takes the place of the one before while the state machine still reads that.",
        file: "raft/src/consensus/image.rs",
        depth: "consensus",
    },
    Mutant {
        name: "expected-configuration-ignored",
        wrong: "A change is made although another configuration is in force than the one it was meant for.",
        file: "raft/src/consensus/change.rs",
        depth: "consensus",
    },
    Mutant {
        name: "joint-configuration-is-not-left",
        wrong: "Nobody ends a joint configuration.",
        file: "raft/src/consensus/change.rs",
        depth: "consensus",
    },
    Mutant {
        name: "removed-node-campaigns",
        wrong: "A node campaigns although it knows that it votes no more.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "held-proposals-dropped",
        wrong: "Commands that come while leadership is being handed over are neither answered nor kept.",
        file: "raft/src/consensus/transfer.rs",
        depth: "consensus",
    },
    Mutant {
        name: "every-campaign-says-transfer",
        wrong: "Every request for a vote claims that the leader wants it, so that live leaders are disturbed.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "suspicion-outlives-the-leaders-word",
        wrong: "A lost connection makes a follower doubt its leader for good, although it hears it again.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "stuck-machine-leads",
        wrong: "A node leads, and campaigns, although its state machine gets nothing done.",
        file: "raft/src/consensus/stall.rs",
        depth: "consensus",
    },
    Mutant {
        name: "slow-machine-counts-as-stalled",
        wrong: "What a state machine gets done does not count while more is waiting for it.",
        file: "raft/src/consensus/commit.rs",
        depth: "consensus",
    },
    Mutant {
        name: "kept-from-leading-campaigns",
        wrong: "A node that is kept from leading campaigns all the same.",
        file: "raft/src/consensus/preference.rs",
        depth: "consensus",
    },
    Mutant {
        name: "kept-from-leading-stays",
        wrong: "A leader that is kept from leading does not hand over.",
        file: "raft/src/consensus/preference.rs",
        depth: "consensus",
    },
    Mutant {
        name: "yields-without-patience",
        wrong: "A leader hands over to a higher priority at once, and again and again when that fails.",
        file: "raft/src/consensus/preference.rs",
        depth: "consensus",
    },
    Mutant {
        name: "yields-to-equals",
        wrong: "Nodes of one priority hand leadership over to each other without end.",
        file: "raft/src/consensus/preference.rs",
        depth: "consensus",
    },
    Mutant {
        name: "any-lost-peer-is-the-leader",
        wrong: "A lost connection with any node makes a follower doubt its leader, which it hears.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "turns-are-one",
        wrong: "All voters that lost their leader poll at the same moment, and none of them is elected.",
        file: "raft/src/consensus/election.rs",
        depth: "consensus",
    },
    Mutant {
        name: "leader-does-not-hurry",
        wrong: "A leader whose connections broke is silent until its next heartbeat, and replaced although it lives.",
        file: "raft/src/consensus/progress.rs",
        depth: "consensus",
    },
    Mutant {
        name: "session-repeat-applied",
        wrong: "A session's write that was applied is applied again when it comes again.",
        file: "raft/src/session/table.rs",
        depth: "node",
    },
    Mutant {
        name: "session-late-write-applied",
        wrong: "A session's write is applied although the session has said that it has its answer.",
        file: "raft/src/session/table.rs",
        depth: "node",
    },
    Mutant {
        name: "session-ages-begin-anew",
        wrong: "An image does not bring the time by which sessions age: nodes differ in which ones have expired.",
        file: "raft/src/session/image.rs",
        depth: "node",
    },
    Mutant {
        name: "image-without-sessions",
        wrong: "The sessions are not in the image.",
        file: "raft/src/runtime/replica.rs",
        depth: "node",
    },
    Mutant {
        name: "restore-without-sessions",
        wrong: "The sessions are not replaced with the state machine by an image that is installed.",
        file: "raft/src/runtime/replica.rs",
        depth: "node",
    },
    Mutant {
        name: "durable-machine-replays",
        wrong: "A state machine that is durable by itself gets again, at the start, what it has applied before.",
        file: "raft/src/runtime/boot.rs",
        depth: "node",
    },
    Mutant {
        name: "image-restored-over-newer-state",
        wrong: "At the start the newest image takes the place of a durable state that is newer.",
        file: "raft/src/runtime/boot.rs",
        depth: "node",
    },
    Mutant {
        name: "records-of-sessions-lost",
        wrong: "What a durable state machine has kept of sessions is not read at the start.",
        file: "raft/src/runtime/boot.rs",
        depth: "node",
    },
    Mutant {
        name: "image-ends-before-it-is-durable",
        wrong: "An image ends before what it reflects is durable in the database that it is of.",
        file: "kv-example/src/backends/redb/database.rs",
        depth: "engine",
    },
    Mutant {
        name: "applied-apart-from-its-contents",
        wrong: "What a database reflects is noted in another transaction than what was applied.",
        file: "kv-example/src/backends/redb/database.rs",
        depth: "engine",
    },
    Mutant {
        name: "restore-told-before-it-is-durable",
        wrong: "An image is told to be restored before a loss of power can't take it away any more.",
        file: "kv-example/src/backends/redb/database.rs",
        depth: "engine",
    },
    Mutant {
        name: "database-never-synced",
        wrong: "What is written to a database is told to be durable without an fsync.",
        file: "kv-example/src/backends/redb/place.rs",
        depth: "engine",
    },
    Mutant {
        name: "failed-disk-trusted",
        wrong: "A database under which the disk has failed is opened again.",
        file: "kv-example/src/backends/redb/trouble.rs",
        depth: "engine",
    },
];

/// Whether the code was compiled with its mutants.
pub const COMPILED_IN: bool = cfg!(mutants);

/// The mutant that is switched on: its place in the table, and one; 0 while there is none.
#[cfg(mutants)]
static CHOSEN: AtomicUsize = AtomicUsize::new(0);

/// Switches one mutant on and all others off; or all off.
///
/// # Errors
/// There is no such mutant, or none is compiled in.
pub fn choose(name: Option<&str>) -> Result<(), String> {
    let Some(name) = name else {
        #[cfg(mutants)]
        CHOSEN.store(0, Ordering::SeqCst);
        return Ok(());
    };
    let place = MUTANTS.iter().position(|mutant| mutant.name == name);
    let Some(place) = place else {
        let names: Vec<_> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        return Err(format!("there is no mutant {name:?}; there are {}", names.join(", ")));
    };
    if !COMPILED_IN {
        return Err(
            "the mutants are not compiled in: build with RUSTFLAGS='--cfg mutants' and a target directory of its own"
                .into(),
        );
    }
    #[cfg(mutants)]
    CHOSEN.store(place + 1, Ordering::SeqCst);
    let _ = place;
    Ok(())
}

/// The place of a mutant in the table. For [`mutant!`](crate::mutant!), at compile time: a name that is not there does not compile.
#[must_use]
pub const fn place_of(name: &str) -> usize {
    let mut place = 0;
    while place < MUTANTS.len() {
        if same(MUTANTS[place].name.as_bytes(), name.as_bytes()) {
            return place;
        }
        place += 1;
    }
    #[expect(clippy::panic, reason = "evaluated by the compiler alone")]
    {
        panic!("this mutant is not in the table")
    }
}

const fn same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// Whether the mutant at this place in the table is switched on.
#[cfg(mutants)]
#[inline]
#[must_use]
pub fn is_on(place: usize) -> bool {
    CHOSEN.load(Ordering::Relaxed) == place + 1
}

/// Whether the mutant at this place in the table is switched on: none is compiled in.
#[cfg(not(mutants))]
#[inline(always)]
#[must_use]
pub const fn is_on(_place: usize) -> bool {
    false
}

/// Whether this known bug is switched on. `false`, a constant, unless compiled with `--cfg mutants`.
#[doc(hidden)]
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        $crate::mutants::is_on(const { $crate::mutants::place_of($name) })
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_has_a_name_of_its_own_and_a_place_in_the_code() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (n, mutant) in MUTANTS.iter().enumerate() {
            assert_eq!(place_of(mutant.name), n, "{} is there twice", mutant.name);
            let code = std::fs::read_to_string(root.join(mutant.file)).unwrap();
            assert!(
                code.contains(&format!("mutant!(\"{}\")", mutant.name)),
                "{} is not in {}",
                mutant.name,
                mutant.file
            );
            assert!(
                ["consensus", "node", "engine"].contains(&mutant.depth) && mutant.wrong.ends_with('.'),
                "{mutant:?}"
            );
        }
    }

    #[test]
    fn no_mutant_is_on_by_itself() {
        assert!(!mutant!("vote-before-durable"));
        assert!(choose(Some("no-such-mutant")).unwrap_err().contains("vote-before-durable"));
        assert_eq!(choose(None), Ok(()));
    }
}
