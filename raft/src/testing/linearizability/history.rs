//! What clients did and what they were told.

/// One call of a [`History`]: its number, counting invocations from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub usize);

/// The calls of all clients, in the order in which they began and ended.
///
/// The order in which [`invoke`](Self::invoke), [`returned`](Self::returned) and [`failed`](Self::failed) are called is
/// the order of real time. So invoke *before* the request is sent, and return *after* its answer came: a lock around the
/// history that is held for the recording alone is right, and whoever waits for it only makes intervals longer, which can
/// never turn a correct service into a wrong one.
#[derive(Clone, Debug)]
pub struct History<Op, Ret> {
    pub(super) calls: Vec<Call<Op, Ret>>,
    /// The last event's number.
    clock: u64,
    pub(super) misuse: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Call<Op, Ret> {
    pub(super) op: Op,
    pub(super) invoked: u64,
    pub(super) end: End<Ret>,
}

#[derive(Clone, Debug)]
pub(super) enum End<Ret> {
    /// Nobody knows whether it took effect.
    Open,
    /// It was answered.
    Returned { at: u64, ret: Ret },
    /// It never took effect.
    Failed,
}

impl<Op, Ret> Default for History<Op, Ret> {
    fn default() -> Self {
        Self { calls: Vec::new(), clock: 0, misuse: None }
    }
}

impl<Op, Ret> History<Op, Ret> {
    /// An empty history.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A client is about to ask for this. As long as no end is recorded, the call may take effect at any time from here on,
    /// or never.
    pub fn invoke(&mut self, op: Op) -> CallId {
        self.clock += 1;
        self.calls.push(Call { op, invoked: self.clock, end: End::Open });
        CallId(self.calls.len() - 1)
    }

    /// The call was answered: it took effect before now.
    pub fn returned(&mut self, call: CallId, ret: Ret) {
        self.clock += 1;
        let at = self.clock;
        self.end(call, End::Returned { at, ret });
    }

    /// It is proven that the call took no effect and never will. A call whose fate is unknown must be left open instead.
    pub fn failed(&mut self, call: CallId) {
        self.end(call, End::Failed);
    }

    fn end(&mut self, id: CallId, end: End<Ret>) {
        match self.calls.get_mut(id.0) {
            Some(call) if matches!(call.end, End::Open) => call.end = end,
            Some(_) => self.misused(format!("call {} ended twice", id.0)),
            None => self.misused(format!("call {} ended and was never invoked in this history", id.0)),
        }
    }

    fn misused(&mut self, what: String) {
        self.misuse.get_or_insert(what);
    }

    /// How many calls there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is no call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// How many calls have no end.
    #[must_use]
    pub fn open(&self) -> usize {
        self.calls.iter().filter(|call| matches!(call.end, End::Open)).count()
    }

    /// What a call asked.
    #[must_use]
    pub fn op(&self, call: CallId) -> Option<&Op> {
        self.calls.get(call.0).map(|call| &call.op)
    }

    /// What a call was answered, if it was.
    #[must_use]
    pub fn ret(&self, call: CallId) -> Option<&Ret> {
        match &self.calls.get(call.0)?.end {
            End::Returned { ret, .. } => Some(ret),
            End::Open | End::Failed => None,
        }
    }
}
