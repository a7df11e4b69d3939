//! How an image reaches a node that lacks entries which were cut off (paper §7).
//!
//! A leader that can't help with its log *offers* its newest image with each heartbeat. The receiver *fetches* it, a part at a time within a
//! window and a rate, from the leader or whoever else has that very image, and each *part* is verified, stored, and never asked for again:
//! silence, a restart of either side and a change of leader cost a part or two. What is whole is verified as such, published once this
//! node's term is on disk, and then *installed*: it takes the place of the state machine's state and of the log up to its last entry. What the
//! log holds after that very entry stays, for it may have been acknowledged.
//!
//! A crash at any point is recovered from at the next start: before the image is published, by what was stored of it; after that, by
//! the image, for which the log is cut then if it was not yet (`runtime/boot.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::Consensus;
use super::io::{ImageWork, Note, Receipt, Time};
use super::role::{Follower, Role};
use crate::config::MAX_PART_BYTES;
use crate::message::{Body, Part};
use crate::metrics::ReceivingStatus;
use crate::mutant;
use crate::traits::{Published, SnapshotId};
use crate::types::{LogId, NodeId};

/// How many parts may be read for peers at a time. Who is not served asks again.
const MAX_SERVING: usize = 64;
/// After so many election timeouts without a part, another holder of the image is asked, and another image is taken.
const PATIENCE: u32 = 2;
/// The log tells how far it is once in so many election timeouts.
const REPORT: u32 = 10;

/// An image that is being received.
#[derive(Clone, Debug)]
pub(crate) struct Receiving {
    attempt: u64,
    image: Published,
    /// Who is asked for it.
    holder: NodeId,
    stage: Stage,
    /// What the store holds of it: so many bytes, with this checksum.
    stored: u64,
    checksum: u32,
    /// What was handed to the store.
    received: u64,
    /// What was asked for: all up to here.
    asked: u64,
    /// Parts that came before those in front of them, by where they begin. Within the window.
    early: BTreeMap<u64, Bytes>,
    /// The rate allows to ask again from then on.
    ask_at: Time,
    /// When a part came last, or the silence was noticed.
    heard: Time,
    /// Since when the next part is waited for, silences included; and the longest such wait lately.
    since: Time,
    gap: Duration,
    /// How much may be asked for ahead of what came, within the window. After a silence little: what was asked for may be on its way yet, over a slow
    /// link, and is not to be sent there again.
    room: u64,
    /// All that was ever asked for is up to here: it may still come.
    reach: u64,
    /// How many times in a row it was noticed.
    silences: u32,
    began: Time,
    /// What earlier attempts had left.
    resumed: u64,
    report_at: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The store looks for what it has of it.
    Opening,
    Pulling,
    /// It is whole, and waits for this node's term to be on disk, and for the one before it to be restored.
    Whole,
    Publishing,
}

impl Receiving {
    /// Whether nothing comes any more.
    fn stalls(&self) -> bool {
        self.stage == Stage::Pulling && self.silences >= PATIENCE
    }

    /// The next part goes to the store, and with it those that came before it and follow it.
    fn take(&mut self, data: Bytes, out: &mut Vec<ImageWork>) {
        let mut next = Some(data);
        while let Some(data) = next {
            self.received += data.len() as u64;
            out.push(ImageWork::Append { attempt: self.attempt, data });
            next = self.early.remove(&self.received);
        }
        let received = self.received;
        self.early.retain(|offset, _| *offset > received);
        self.asked = self.asked.max(received);
    }

    fn rate(&self, now: Time) -> u64 {
        let bytes = u128::from(self.stored - self.resumed.min(self.stored));
        let micros = now.since(self.began).as_micros().max(1);
        u64::try_from(bytes * 1_000_000 / micros).unwrap_or(u64::MAX)
    }

    /// When there is something to do, unless a part comes before.
    fn wake(&self, window: u64, election_timeout: Duration) -> Option<Time> {
        if self.stage != Stage::Pulling {
            return None;
        }
        let silent = (self.asked > self.received).then(|| self.heard.plus(self.patience(election_timeout)));
        let ask = (self.asked < self.image.len && self.has_room(window)).then_some(self.ask_at);
        [silent, ask].into_iter().flatten().min()
    }

    fn has_room(&self, window: u64) -> bool {
        self.asked == self.stored || (self.asked - self.stored < window && self.asked - self.received < self.room)
    }

    /// How long to wait for the next part. A slow link is not a broken one.
    fn patience(&self, election_timeout: Duration) -> Duration {
        election_timeout.max(self.gap * 4)
    }

    /// A part came.
    fn note_part(&mut self, now: Time, len: u64, election_timeout: Duration) {
        let waited = now.since(self.since).min(election_timeout * 4);
        self.gap = waited.max(self.gap / 2);
        (self.heard, self.since, self.silences) = (now, now, 0);
        self.room = self.room.saturating_add(len.saturating_mul(2));
    }
}

impl Consensus {
    /// Offers this leader's newest image to a peer.
    pub(crate) fn offer(&mut self, to: NodeId) {
        match self.snapshots.latest.clone() {
            Some(image) => self.send(to, Body::Offer { image }),
            // A state machine that is durable itself starts without one. Only that can help now.
            None => self.snapshots.missed = true,
        }
    }

    pub(crate) fn on_offer(&mut self, now: Time, from: NodeId, image: Published) {
        if let Err(why) = self.validate_offer(&image) {
            return self.violation(from, "Offer", why);
        }
        if !self.hear_leader(now, from, "Offer") {
            return;
        }
        let last = image.meta.last;
        if last.index <= self.commit {
            // The answer tells the leader where to go on.
            if let Role::Follower(follower) = &mut self.role {
                follower.ack_due = true;
            }
            return self.ignored(from, "Offer", "all that it reflects is committed here");
        }
        if self.snapshots.installing.is_some() {
            return self.ignored(from, "Offer", "an image is being installed");
        }
        match &mut self.snapshots.receiving {
            Some(receiving) if !receiving.stalls() || mutant!("stalled-holder-is-asked-for-ever") => {}
            Some(receiving) if receiving.image == image => {
                (receiving.holder, receiving.silences, receiving.asked) = (from, 0, receiving.received);
            }
            Some(_) | None => self.begin_to_receive(now, from, image),
        }
    }

    /// Whether a correct leader of this term could offer this.
    fn validate_offer(&self, image: &Published) -> Result<(), String> {
        let Published { meta, len, .. } = image;
        if meta.last.term > self.hard_state.term || meta.last.index > super::MAX_INDEX {
            return Err(format!("an image of {} can't be", meta.last));
        }
        if meta.membership_at > meta.last || *len == 0 || *len > 1 << 62 {
            return Err(format!("an image of {len} bytes with a configuration of {} can't be", meta.membership_at));
        }
        meta.membership.validate().map_err(|why| format!("the configuration of the image can't be: {why}"))
    }

    fn begin_to_receive(&mut self, now: Time, holder: NodeId, image: Published) {
        self.snapshots.attempts += 1;
        let attempt = self.snapshots.attempts;
        self.out.images.push(ImageWork::Begin { attempt, meta: image.meta.clone() });
        self.snapshots.receiving = Some(Receiving {
            attempt,
            image,
            holder,
            stage: Stage::Opening,
            stored: 0,
            checksum: 0,
            received: 0,
            asked: 0,
            early: BTreeMap::new(),
            ask_at: now,
            heard: now,
            since: now,
            gap: Duration::ZERO,
            room: u64::MAX,
            reach: 0,
            silences: 0,
            began: now,
            resumed: 0,
            report_at: now,
        });
    }

    /// The store of images is further with what is being received.
    pub(crate) fn on_receipt(&mut self, now: Time, attempt: u64, receipt: Receipt) {
        let Some(receiving) = self.snapshots.receiving.as_mut().filter(|receiving| receiving.attempt == attempt) else {
            return;
        };
        match receipt {
            Receipt::Stored { upto, checksum } => {
                (receiving.stored, receiving.checksum) = (upto, checksum);
                if receiving.stage == Stage::Opening {
                    receiving.stage = Stage::Pulling;
                    (receiving.received, receiving.asked, receiving.resumed) = (upto, upto, upto);
                    (receiving.began, receiving.heard) = (now, now);
                }
                if upto >= receiving.image.len {
                    self.verify_received();
                }
            }
            Receipt::Published => {
                self.snapshots.installing = self.snapshots.receiving.take().map(|receiving| receiving.image);
            }
            Receipt::Refused => self.snapshots.receiving = None,
        }
    }

    /// All of an image is stored: it must be the one that was offered.
    fn verify_received(&mut self) {
        let Some(receiving) = &mut self.snapshots.receiving else { return };
        let is_right = receiving.stored == receiving.image.len && receiving.checksum == receiving.image.checksum;
        if is_right || mutant!("damaged-image-installed") {
            receiving.stage = Stage::Whole;
            return;
        }
        let Receiving { attempt, holder, .. } = *receiving;
        let last = receiving.image.meta.last;
        self.snapshots.receiving = None;
        self.out.images.push(ImageWork::Discard { attempt });
        self.out.notes.push(Note::SnapshotDamaged { from: holder, last, part: false });
    }

    /// Takes the next step with the image that is being received.
    pub(crate) fn receive_image(&mut self, now: Time) {
        self.leave_off_what_is_overtaken();
        self.notice_silence(now);
        self.fetch_parts(now);
        // The store keeps the newest image alone: it must not lose one that is still read.
        let restoring = self.applying.restoring && !mutant!("image-replaced-while-it-is-restored");
        let term_is_stored = self.durability.hard_state_is_stored() || mutant!("image-published-before-the-term");
        let Some(receiving) = &mut self.snapshots.receiving else { return };
        if receiving.stage == Stage::Whole && term_is_stored && !restoring {
            receiving.stage = Stage::Publishing;
            self.out.images.push(ImageWork::Publish { attempt: receiving.attempt });
        }
        if receiving.stage == Stage::Pulling && now >= receiving.report_at {
            receiving.report_at = now.plus(self.config.election_timeout * REPORT);
            let (from, last, stored) = (receiving.holder, receiving.image.meta.last, receiving.stored);
            let (len, rate) = (receiving.image.len, receiving.rate(now));
            self.out.notes.push(Note::ReceivingSnapshot { from, last, stored, len, rate });
        }
    }

    /// Appends may bring all of an image before it is here: another leader still has the log. Nobody would offer it any more, and its holder
    /// may be gone: it would be asked for without end.
    fn leave_off_what_is_overtaken(&mut self) {
        let overtaken = |receiving: &mut Receiving| {
            receiving.image.meta.last.index <= self.commit && receiving.received < receiving.image.len
        };
        if let Some(Receiving { attempt, .. }) = self.snapshots.receiving.take_if(overtaken) {
            self.out.images.push(ImageWork::Discard { attempt });
        }
    }

    /// What was asked for and did not come is asked for again, of the leader if the one who was asked is silent for long.
    fn notice_silence(&mut self, now: Time) {
        let leader = self.leader().filter(|leader| *leader != self.id);
        let Some(receiving) = &mut self.snapshots.receiving else { return };
        let waits = receiving.stage == Stage::Pulling && receiving.asked > receiving.received;
        if !waits || now.since(receiving.heard) < receiving.patience(self.config.election_timeout) {
            return;
        }
        receiving.silences += 1;
        receiving.heard = now;
        receiving.asked = receiving.received;
        receiving.room = 1;
        if receiving.stalls()
            && let Some(leader) = leader
        {
            receiving.holder = leader;
        }
    }

    fn fetch_parts(&mut self, now: Time) {
        let term = self.hard_state.term;
        let (chunk, window) = (self.part_bytes(), self.config.snapshot_window_bytes);
        let Some(receiving) = &mut self.snapshots.receiving else { return };
        while receiving.stage == Stage::Pulling
            && receiving.asked < receiving.image.len
            && receiving.has_room(window)
            && now >= receiving.ask_at
        {
            if let Some(early) = receiving.early.get(&receiving.asked) {
                receiving.asked += early.len() as u64;
                continue;
            }
            let max = chunk.min(receiving.image.len - receiving.asked);
            let body = Body::Fetch { image: receiving.image.meta.id, offset: receiving.asked, max };
            self.out.send.push((receiving.holder, crate::message::Message { term, body }));
            if receiving.asked == receiving.received {
                // The silence begins when somebody is asked.
                receiving.heard = now;
                if receiving.silences == 0 {
                    receiving.since = now;
                }
            }
            receiving.asked += max;
            receiving.reach = receiving.reach.max(receiving.asked);
            let pause = (u128::from(max) * 1_000_000 / u128::from(self.config.snapshot_bytes_per_second)).try_into();
            receiving.ask_at = now.plus(Duration::from_micros(pause.unwrap_or(u64::MAX)));
        }
    }

    /// How much is asked for at a time: at a low rate so little that the holder hears of it more often than once in an election timeout. It takes
    /// the silence of a few for the end.
    fn part_bytes(&self) -> u64 {
        let pause = self.config.election_timeout / 2;
        let bytes = u128::from(self.config.snapshot_bytes_per_second) * pause.as_micros() / 1_000_000;
        self.config.snapshot_chunk_bytes.min(u64::try_from(bytes).unwrap_or(u64::MAX).max(1))
    }

    /// Somebody wants a part of an image that it thinks this node has.
    pub(crate) fn on_fetch(&mut self, now: Time, from: NodeId, image: SnapshotId, offset: u64, max: u64) {
        let has_it =
            self.snapshots.latest.as_ref().is_some_and(|latest| latest.meta.id == image && offset < latest.len);
        if !has_it {
            return self.send(from, Body::Chunk { image, offset, part: None });
        }
        self.snapshots.note_fetched(now, from, image, offset);
        self.note_fetched(now, from, offset);
        if self.snapshots.serving >= MAX_SERVING {
            return self.ignored(from, "Fetch", "too many parts of images are being read");
        }
        self.snapshots.serving += 1;
        self.out.images.push(ImageWork::Read { to: from, image, offset, max: max.min(MAX_PART_BYTES) });
    }

    /// A member that is to vote may take longer to catch up while it comes on with an image.
    fn note_fetched(&mut self, now: Time, from: NodeId, offset: u64) {
        let Role::Leader(leader) = &mut self.role else { return };
        let further = leader.peers.get_mut(&from).is_some_and(|progress| progress.fetches(offset));
        if let Some(change) = &mut leader.change
            && further
            && change.catching_up.contains_key(&from)
        {
            change.until = change.until.max(now.plus(self.config.catch_up_timeout));
        }
    }

    /// A part was read for a peer.
    pub(crate) fn on_image_read(&mut self, to: NodeId, image: SnapshotId, offset: u64, data: Option<Bytes>) {
        self.snapshots.serving = self.snapshots.serving.saturating_sub(1);
        if data.is_none() && self.snapshots.latest.as_ref().is_some_and(|latest| latest.meta.id == image) {
            self.snapshots.missed = true;
        }
        let part = data.map(|data| Part { checksum: crc32c::crc32c(&data), data });
        self.send(to, Body::Chunk { image, offset, part });
    }

    pub(crate) fn on_chunk(&mut self, now: Time, from: NodeId, image: SnapshotId, offset: u64, part: Option<Part>) {
        let Some(receiving) = self.snapshots.receiving.as_mut().filter(|receiving| receiving.image.meta.id == image)
        else {
            return self.ignored(from, "Chunk", "this image is not being received");
        };
        let Some(Part { data, checksum }) = part else {
            if from == receiving.holder {
                // The next offer is of an image that is there.
                receiving.silences = PATIENCE;
            }
            return self.ignored(from, "Chunk", "the sender does not have this image");
        };
        let len = data.len() as u64;
        let is_next = offset == receiving.received || mutant!("parts-taken-out-of-order");
        let rest = receiving.image.len.saturating_sub(offset);
        if len == 0 || len > rest {
            let why = format!("{len} bytes from {offset} on are not in an image of {} bytes", receiving.image.len);
            return self.violation(from, "Chunk", why);
        }
        // What was asked for before a silence may still come.
        let is_asked = receiving.stage == Stage::Pulling && len <= receiving.reach.saturating_sub(offset);
        if !is_asked || (!is_next && offset < receiving.received) {
            // Whoever sends it again sends what was asked for next.
            receiving.heard = now;
            return self.ignored(from, "Chunk", "it came before, or is not asked for any more");
        }
        if crc32c::crc32c(&data) != checksum && !mutant!("parts-unchecked") {
            let last = receiving.image.meta.last;
            return self.out.notes.push(Note::SnapshotDamaged { from, last, part: true });
        }
        receiving.note_part(now, len, self.config.election_timeout);
        if is_next {
            receiving.take(data, &mut self.out.images);
        } else {
            receiving.early.insert(offset, data);
        }
    }

    /// Puts a received image in the place of the state, once it is published.
    pub(crate) fn install(&mut self, now: Time) {
        let Some(image) = &self.snapshots.installing else { return };
        let last = image.meta.last;
        if matches!(self.role, Role::Leader(_)) && self.log.holds(last) {
            // Its log holds the last entry, which the image proves to be committed. It must not wait to learn that from a majority: one that
            // lacks what was cut needs this very image, the only one that the store has.
            self.commit_to(last.index);
        }
        let overtaken = last.index <= self.commit && !mutant!("installed-over-newer-state");
        match self.role {
            // Its log must not change while it asks for votes.
            Role::Candidate(_) | Role::Leader(_) if !overtaken => return,
            Role::Candidate(_) | Role::Leader(_) | Role::Follower(_) | Role::PreCandidate(_) => {}
        }
        let Some(image) = self.snapshots.installing.take() else { return };
        if overtaken {
            // Appends brought all of it meanwhile. Of two images of one entry the store keeps the later one.
            if last >= self.snapshots.last() {
                self.snapshots.latest = Some(image);
            }
            return self.compact();
        }
        if matches!(self.role, Role::PreCandidate(_)) {
            // It asked with another log, and may not even have a vote by the image's configuration.
            self.transition(now, Role::Follower(self.fresh_follower()), "an image takes the place of its log");
        }
        self.out.notes.push(Note::SnapshotInstalled { last, len: image.len });
        self.replace_log(last);
        let keep = self.log.last() != last;
        self.adopt_configuration_of(&image.meta, keep);
        self.commit_to(last.index);
        self.applying.skip_to(now, last.index);
        // The image has what these would have brought.
        self.out.apply.clear();
        if let Role::Follower(Follower { matching, ack_due, .. }) = &mut self.role {
            *matching = (*matching).max(last.index).min(self.log.last().index);
            *ack_due = true;
        }
        self.snapshots.installed(image.clone());
        self.out.restore = Some(image);
        self.answer_snapshots_asked();
    }

    /// The log goes on after `last`. What it holds beyond that very entry stays, but not what is on its way to the disk: nobody was told of
    /// that, and the store cuts the log at what it holds.
    fn replace_log(&mut self, last: LogId) {
        let held = self.log.holds(last) && self.log.stored() >= last.index;
        if !held || mutant!("install-drops-the-rest-of-the-log") {
            self.log.reset(last);
            self.durability.reset(last);
        }
    }

    /// The state machine reflects the image that was installed last.
    pub(crate) fn on_restored(&mut self, now: Time, last: LogId) {
        self.applying.done(now, last.index);
        self.applying.restoring = false;
        self.compact();
    }

    /// When the receipt of an image needs attention.
    pub(crate) fn receiving_wake(&self) -> Option<Time> {
        let receiving = self.snapshots.receiving.as_ref()?;
        receiving.wake(self.config.snapshot_window_bytes, self.config.election_timeout)
    }

    /// The image that is being received, for those who ask.
    pub(crate) fn receiving_status(&self, now: Time) -> Option<ReceivingStatus> {
        self.snapshots.receiving.as_ref().map(|receiving| ReceivingStatus {
            from: receiving.holder,
            last: receiving.image.meta.last,
            stored: receiving.stored,
            len: receiving.image.len,
            rate: receiving.rate(now),
        })
    }
}
