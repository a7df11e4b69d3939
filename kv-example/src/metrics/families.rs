//! Every family of numbers that is served. Whoever adds one adds a line to the table in README.md.

use std::time::SystemTime;

use raftkv::Metrics;
use raftkv::consensus::RoleKind;
use raftkv::metrics::{Failed, Histogram, Refused, Traffic};
use raftkv::transport_kit::Tls;

use super::requests::RequestMeter;
use super::text::{Kind, Latencies, Text};
use crate::gate::Gate;
use crate::machine::KvView;
use crate::room::Disk;

const ROLES: [RoleKind; 4] = [RoleKind::Follower, RoleKind::PreCandidate, RoleKind::Candidate, RoleKind::Leader];

/// What is taken of the node, and what it has refused.
pub(super) fn limits(text: &mut Text, peers: &Refused, gate: &Gate) {
    let count = |count: usize| count as u64;
    text.one(Kind::Gauge, "raftkv_kv_connections", "Connections of clients that are open.", count(gate.connections()));
    let help = "What clients' requests in progress hold, with answers that were not fetched yet.";
    text.one(Kind::Gauge, "raftkv_kv_held_bytes", help, count(gate.held_bytes()));
    let refused: Vec<_> = gate.refusals().collect();
    let help = "How often something was refused to clients, by the option that sets the limit.";
    text.by(Kind::Counter, "raftkv_kv_limits_exceeded_total", help, "limit", &refused);
    let refused = [("limit", peers.limit), ("silence", peers.silence), ("error", peers.error)];
    let help = "Connections at the members' port that were refused: beyond a limit, as nobody said in time who it is, or for another error.";
    text.by(Kind::Counter, "raftkv_peers_refused_total", help, "reason", &refused);
}

/// Where the node stands.
pub(super) fn node(text: &mut Text, raft: &Metrics) {
    use Kind::Gauge;
    text.family(Gauge, "raftkv_build_info", "Always 1; the label is this server's version.");
    text.number("raftkv_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.family(Gauge, "raftkv_role", "1 for the node's role, 0 for the others.");
    for role in ROLES {
        text.number("raftkv_role", &[("role", &role.to_string())], u64::from(role == raft.role));
    }
    let leader = raft.leader.map_or(0, |id| id.0);
    text.one(
        Gauge,
        "raftkv_leader_id",
        "The id of the leader that this node follows, or its own; 0: it knows of none.",
        leader,
    );
    text.one(Gauge, "raftkv_term", "The node's term.", raft.term.0);
    text.one(
        Gauge,
        "raftkv_priority",
        "The node's priority: of those that can, the one with the highest leads.",
        raft.priority.into(),
    );
    text.one(Gauge, "raftkv_may_lead", "1, or 0 while the node is kept from leading.", raft.may_lead.into());
    let members = [("voter", raft.voters), ("learner", raft.learners)];
    text.by(Gauge, "raftkv_members", "The members of the configuration in force.", "kind", &members);
    let log = [
        ("base", raft.base.0),
        ("last", raft.last.0),
        ("stored", raft.stored.0),
        ("committed", raft.commit.0),
        ("applied", raft.applied.0),
    ];
    let help =
        "Indexes of the log: before the first entry, of the last entry, the last one on disk, committed, applied.";
    text.by(Gauge, "raftkv_log_index", help, "position", &log);
    let (last, len) = raft.snapshot.map_or((0, 0), |image| (image.last.index.0, image.len));
    text.one(
        Gauge,
        "raftkv_snapshot_index",
        "The last index that the newest image of the contents reflects; 0: none.",
        last,
    );
    text.one(Gauge, "raftkv_snapshot_bytes", "The length of the newest image.", len);
    text.one(
        Gauge,
        "raftkv_pending_requests",
        "Reads and writes that are admitted and not answered.",
        raft.pending_requests,
    );
    text.one(
        Gauge,
        "raftkv_pending_bytes",
        "What these requests count against the limit on uncommitted bytes.",
        raft.pending_bytes,
    );
    text.one(Gauge, "raftkv_sessions", "Sessions of clients that are open.", raft.sessions.open);
    let help = "What is kept to answer repetitions in sessions, with a fixed overhead for each answer.";
    text.one(Gauge, "raftkv_session_bytes", help, raft.sessions.kept_bytes);
    let stalls = [("disk", raft.disk_stalls.into()), ("state_machine", raft.machine_stalls.into())];
    text.by(Gauge, "raftkv_stalled", "Whether a part of the node stalls, so that it does not lead.", "part", &stalls);
}

/// What the node has done.
pub(super) fn activity(text: &mut Text, raft: &Metrics) {
    use Kind::Counter;
    elections(text, raft);
    let (requests, failed) = (&raft.requests, failed(&raft.requests.failed));
    let proposed = [("write", requests.writes), ("read", requests.reads)];
    text.by(Counter, "raftkv_requests_total", "Writes and linearizable reads that were admitted.", "kind", &proposed);
    text.by(
        Counter,
        "raftkv_requests_failed_total",
        "Writes and reads that failed, or were not admitted.",
        "reason",
        &failed,
    );
    text.one(Counter, "raftkv_reads_served_total", "Linearizable reads that were answered.", requests.reads_served);
    let help = "Rounds of heartbeats that this leader began to confirm reads; reads share them.";
    text.one(Counter, "raftkv_read_rounds_total", help, requests.read_rounds);
    let help = "Reads that this leader answered by its lease; those that came to a node together count once.";
    text.one(Counter, "raftkv_leased_reads_total", help, requests.leased_reads);
    let forwarded = [("out", requests.forwarded), ("in", requests.forwarded_here)];
    text.by(Counter, "raftkv_forwarded_total", "Batches of writes passed on to the leader.", "direction", &forwarded);
    messages(text, raft);
    let help = "Entries of the log that were written.";
    text.one(Counter, "raftkv_log_written_entries_total", help, raft.log_writes.entries);
    text.one(
        Counter,
        "raftkv_log_written_bytes_total",
        "The bytes of these entries, with a fixed overhead for each.",
        raft.log_writes.bytes,
    );
    let help = "How long a write of the log took, with its sync; each is a batch.";
    histogram(text, "raftkv_log_write_seconds", help, &raft.log_writes.latency);
    text.one(Counter, "raftkv_applied_entries_total", "Entries that the state machine applied.", raft.applies.entries);
    let help = "How long the state machine took to apply a batch.";
    histogram(text, "raftkv_apply_seconds", help, &raft.applies.latency);
    snapshots(text, raft);
    let help = "How often a configuration came into force.";
    text.one(Counter, "raftkv_membership_changes_total", help, raft.membership_changes);
    let stalls = [("disk", raft.leadership.disk_stalls), ("state_machine", raft.leadership.machine_stalls)];
    text.by(Counter, "raftkv_stalls_total", "How often a part of the node stalled.", "part", &stalls);
}

fn elections(text: &mut Text, raft: &Metrics) {
    use Kind::Counter;
    let leadership = &raft.leadership;
    let help = "How often this node asked whether it would be elected.";
    text.one(Counter, "raftkv_polls_total", help, leadership.polls);
    text.one(Counter, "raftkv_elections_total", "How often this node stood for election.", leadership.elections);
    text.one(Counter, "raftkv_elections_won_total", "How often this node was elected.", leadership.won);
    text.one(Counter, "raftkv_leadership_lost_total", "How often this node ceased to lead.", leadership.lost);
    let help = "How often this node knew of another leader than before.";
    text.one(Counter, "raftkv_leader_changes_total", help, leadership.leader_changes);
    let help = "How often this node began to hand leadership over.";
    text.one(Counter, "raftkv_transfers_total", help, leadership.transfers);
    let help = "How many of these were its own wish: for a higher priority, or because it is kept from leading.";
    text.one(Counter, "raftkv_yields_total", help, leadership.yields);
    let help = "How many transfers this node gave up, as the successor was not elected in time, or would not lead.";
    text.one(Counter, "raftkv_transfers_given_up_total", help, leadership.transfers_given_up);
}

fn failed(failed: &Failed) -> [(&'static str, u64); 12] {
    [
        ("not_leader", failed.not_leader),
        ("unavailable", failed.unavailable),
        ("overloaded", failed.overloaded),
        ("too_large", failed.too_large),
        ("lost", failed.lost),
        ("outcome_unknown", failed.outcome_unknown),
        ("never_committed", failed.never_committed),
        ("compacted", failed.compacted),
        ("session_expired", failed.session_expired),
        ("answer_forgotten", failed.answer_forgotten),
        ("out_of_sequence", failed.out_of_sequence),
        ("stopped", failed.stopped),
    ]
}

fn kinds(traffic: &Traffic) -> [(&'static str, u64); 9] {
    [
        ("append", traffic.appends),
        ("append_reply", traffic.append_replies),
        ("heartbeat", traffic.heartbeats),
        ("heartbeat_reply", traffic.heartbeat_replies),
        ("commit", traffic.commits),
        ("election", traffic.elections),
        ("read", traffic.reads),
        ("forward", traffic.forwards),
        ("snapshot", traffic.snapshots),
    ]
}

fn messages(text: &mut Text, raft: &Metrics) {
    use Kind::Counter;
    let (sent, received) = (kinds(&raft.sent), kinds(&raft.received));
    text.by(Counter, "raftkv_messages_sent_total", "Messages handed to the transport.", "kind", &sent);
    text.by(Counter, "raftkv_messages_received_total", "Messages that came from members.", "kind", &received);
    let entries = [("out", raft.sent.entries), ("in", raft.received.entries)];
    text.by(Counter, "raftkv_replicated_entries_total", "Entries in appends.", "direction", &entries);
    let bytes = [("out", raft.sent.bytes), ("in", raft.received.bytes)];
    text.by(
        Counter,
        "raftkv_message_bytes_total",
        "The bytes of messages, as they count against limits.",
        "direction",
        &bytes,
    );
    let dropped = [("not_queued", raft.dropped.not_queued), ("not_taken", raft.dropped.not_taken)];
    let help = "Messages that were never sent: the queue for the member was full, or there was no connection.";
    text.by(Counter, "raftkv_messages_dropped_total", help, "reason", &dropped);
}

fn snapshots(text: &mut Text, raft: &Metrics) {
    use Kind::Counter;
    let images = &raft.snapshots;
    text.one(Counter, "raftkv_snapshots_taken_total", "Images taken of this node's contents.", images.taken);
    text.one(Counter, "raftkv_snapshots_taken_bytes_total", "The bytes of these images.", images.taken_bytes);
    let help = "Received images that took the place of this node's contents.";
    text.one(Counter, "raftkv_snapshots_installed_total", help, images.installed);
    text.one(Counter, "raftkv_snapshots_installed_bytes_total", "The bytes of these images.", images.installed_bytes);
    let parts = [("out", images.sent_parts), ("in", images.received_parts)];
    text.by(Counter, "raftkv_snapshot_parts_total", "Parts of images sent and received.", "direction", &parts);
    let bytes = [("out", images.sent_bytes), ("in", images.received_bytes)];
    text.by(Counter, "raftkv_snapshot_part_bytes_total", "The bytes of these parts.", "direction", &bytes);
    let help = "How often what was received of an image was damaged.";
    text.one(Counter, "raftkv_snapshots_damaged_total", help, images.damaged);
}

/// What clients see.
pub(super) fn contents(text: &mut Text, view: &KvView) {
    use Kind::Gauge;
    let (stats, revision, compacted) = (view.stats(), view.revision(), view.compacted());
    let positive = |revision: i64| u64::try_from(revision).unwrap_or(0);
    text.one(Gauge, "raftkv_kv_keys", "Keys that exist.", stats.live);
    text.one(Gauge, "raftkv_kv_versions", "Versions of keys that are kept, deletions included.", stats.versions);
    text.one(
        Gauge,
        "raftkv_kv_bytes",
        "What keys and versions take, estimated, in bytes of memory or wherever they are kept.",
        stats.bytes,
    );
    text.one(Gauge, "raftkv_kv_revision", "The newest revision.", positive(revision));
    let help = "The revision of the last compaction; 0 before the first.";
    text.one(Gauge, "raftkv_kv_compacted_revision", help, positive(compacted));
}

/// What the node takes of the disk. Nothing is said where nobody knows yet.
pub(super) fn room(text: &mut Text, disk: Option<&Disk>) {
    const ENTRIES: &str = "raftkv_log_entries_bytes";
    let files =
        disk.map_or(Vec::new(), |disk| vec![("log", disk.log), ("images", disk.images), ("contents", disk.contents)]);
    let help = "What the files of the log, of images, and of contents in a database take of the disk.";
    text.by(Kind::Gauge, "raftkv_disk_bytes", help, "of", &files);
    text.family(
        Kind::Gauge,
        ENTRIES,
        "What entries take of the files of a log in a database; none for a log in files.",
    );
    if let Some(bytes) = disk.and_then(|disk| disk.entries) {
        text.number(ENTRIES, &[], bytes);
    }
}

/// What clients ask.
pub(super) fn requests(text: &mut Text, meter: &RequestMeter) {
    const OUTCOMES: &str = "raftkv_kv_requests_total";
    const LATENCY: &str = "raftkv_kv_request_seconds";
    text.one(
        Kind::Gauge,
        "raftkv_kv_requests_in_progress",
        "Clients' requests that are not answered.",
        meter.running(),
    );
    let help = "Clients' requests by method and gRPC code; GIVEN_UP: the client did not wait for the answer.";
    text.family(Kind::Counter, OUTCOMES, help);
    for (method, counts) in meter.methods() {
        for (outcome, count) in counts.outcomes().filter(|(_, count)| *count > 0) {
            text.number(OUTCOMES, &[("method", method), ("code", outcome)], count);
        }
    }
    text.family(Kind::Histogram, LATENCY, "How long clients' requests took until the answer was there, by method.");
    for (method, counts) in meter.methods() {
        let latency = counts.latency();
        if latency.count() > 0 {
            text.latencies(LATENCY, Some(("method", method)), &Latencies::from(&latency));
        }
    }
}

fn histogram(text: &mut Text, name: &str, help: &str, histogram: &Histogram) {
    text.family(Kind::Histogram, name, help);
    text.latencies(name, None, &Latencies::from(histogram));
}

impl<'a> From<&'a Histogram> for Latencies<'a> {
    fn from(histogram: &'a Histogram) -> Self {
        Self { bounds: &Histogram::BOUNDS, counts: &histogram.counts, sum: histogram.sum }
    }
}

/// When they have to be replaced.
pub(super) fn certificates(text: &mut Text, certificates: &[(&'static str, Tls)]) {
    const NAME: &str = "raftkv_certificate_expiry_timestamp_seconds";
    text.family(Kind::Gauge, NAME, "When the node's certificate expires, in seconds since 1970; none without TLS.");
    for (whom, tls) in certificates {
        let expires = tls.expires().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        if let Some(expires) = expires {
            text.number(NAME, &[("shown_to", whom)], expires.as_secs());
        }
    }
}
