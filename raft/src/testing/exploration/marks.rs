//! What a search came across: one that never met a situation has proven nothing about it.

/// A situation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Mark {
    Elected,
    SteppedDown,
    Committed,
    CommittedIndirectly,
    CommittedLate,
    ElectedLate,
    Truncated,
    Figure8,
    VoteRefused,
    AppendRejected,
    Crashed,
    TornWrite,
    LostMessage,
    DuplicatedMessage,
    Fetched,
    LeaderRead,
    FollowerRead,
    TwoLeaders,
    Joint,
    Changed,
    ChangeRefused,
    ChangeTakenBack,
    Removed,
}

/// A set of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks(u32);

impl Mark {
    pub(super) const ALL: [Self; 23] = [
        Self::Elected,
        Self::SteppedDown,
        Self::Committed,
        Self::CommittedIndirectly,
        Self::CommittedLate,
        Self::ElectedLate,
        Self::Truncated,
        Self::Figure8,
        Self::VoteRefused,
        Self::AppendRejected,
        Self::Crashed,
        Self::TornWrite,
        Self::LostMessage,
        Self::DuplicatedMessage,
        Self::Fetched,
        Self::LeaderRead,
        Self::FollowerRead,
        Self::TwoLeaders,
        Self::Joint,
        Self::Changed,
        Self::ChangeRefused,
        Self::ChangeTakenBack,
        Self::Removed,
    ];

    /// Its name in a report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Elected => "a leader is elected",
            Self::SteppedDown => "a leader steps down",
            Self::Committed => "an entry is committed",
            Self::CommittedIndirectly => "an entry of an earlier term is committed with one of the leader's",
            Self::CommittedLate => "a leader of an earlier term commits",
            Self::ElectedLate => "a leader is elected in a term before one in which entries are committed",
            Self::Truncated => "entries are removed",
            Self::Figure8 => "an entry that a majority stores is removed (figure 8)",
            Self::VoteRefused => "a vote is refused",
            Self::AppendRejected => "an append is rejected",
            Self::Crashed => "a node crashes",
            Self::TornWrite => "a write is torn",
            Self::LostMessage => "a message is lost",
            Self::DuplicatedMessage => "a message comes twice",
            Self::Fetched => "older entries are read from the disk",
            Self::LeaderRead => "a leader's read is confirmed",
            Self::FollowerRead => "a follower's read is confirmed",
            Self::TwoLeaders => "two nodes lead, in different terms",
            Self::Joint => "a configuration is joint",
            Self::Changed => "a change of the configuration is made",
            Self::ChangeRefused => "a change of the configuration is refused",
            Self::ChangeTakenBack => "a configuration is taken back",
            Self::Removed => "a node learns that it is removed",
        }
    }
}

impl Marks {
    pub(super) fn set(&mut self, mark: Mark) {
        self.0 |= 1 << mark as u8;
    }

    pub(super) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(super) fn has(self, mark: Mark) -> bool {
        self.0 & (1 << mark as u8) != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}
