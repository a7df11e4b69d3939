//! One key's calls, made ready for the search.

use super::history::{Call, End, History};
use super::model::Model;

/// Nothing is in this slot.
pub(super) const NONE: usize = usize::MAX;

/// A call that was answered.
pub(super) struct Answered<'h, M: Model> {
    /// Its number in the history.
    pub(super) id: usize,
    pub(super) op: &'h M::Op,
    pub(super) ret: &'h M::Ret,
    /// Which bit says that it was placed, while it is under way.
    pub(super) slot: usize,
    /// Whether the model says that it leaves every state as it is in which it is answered so.
    pub(super) leaves_state: bool,
}

/// Open calls that ask the same.
pub(super) struct Class<M: Model> {
    pub(super) op: M::Op,
    /// Their numbers in the history, in the order of their invocations.
    pub(super) ids: Vec<usize>,
}

/// What happened, in order. The numbers are those of the lists of the [`Plan`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Invoked(usize),
    Opened(usize),
    Returned(usize),
}

/// One key's calls.
pub(super) struct Plan<'h, M: Model> {
    pub(super) answered: Vec<Answered<'h, M>>,
    /// In the order of their first invocations.
    pub(super) classes: Vec<Class<M>>,
    pub(super) events: Vec<Event>,
    /// How many answered calls were under way at once, at most.
    pub(super) slots: usize,
}

impl<'h, M: Model> Plan<'h, M> {
    /// The calls with these numbers, none of which failed.
    pub(super) fn new(model: &M, history: &'h History<M::Op, M::Ret>, ids: &[usize]) -> Self {
        let mut plan = Self { answered: Vec::new(), classes: Vec::new(), events: Vec::new(), slots: 0 };
        let (mut timed, mut open, mut open_ids) = (Vec::new(), Vec::new(), Vec::new());
        for id in ids {
            let Call { op, invoked, end } = &history.calls[*id];
            match end {
                End::Open => {
                    open.push(op.clone());
                    open_ids.push((*id, *invoked));
                }
                End::Returned { at, ret } => {
                    let call = plan.answered.len();
                    let leaves_state = model.leaves_state(op, ret);
                    plan.answered.push(Answered { id: *id, op, ret, slot: NONE, leaves_state });
                    timed.extend([(*invoked, Event::Invoked(call)), (*at, Event::Returned(call))]);
                }
                End::Failed => {}
            }
        }
        let answered: Vec<_> = plan.answered.iter().map(|call| (call.op, call.ret)).collect();
        model.merge_open(&answered, &mut open);
        for (op, (id, invoked)) in open.into_iter().zip(open_ids) {
            timed.push((invoked, Event::Opened(plan.classify(op, id))));
        }
        timed.sort_unstable_by_key(|(at, _)| *at);
        plan.events = timed.into_iter().map(|(_, event)| event).collect();
        plan.take_slots();
        plan
    }

    fn classify(&mut self, op: M::Op, id: usize) -> usize {
        if let Some(class) = self.classes.iter().position(|class| class.op == op) {
            self.classes[class].ids.push(id);
            return class;
        }
        self.classes.push(Class { op, ids: vec![id] });
        self.classes.len() - 1
    }

    fn take_slots(&mut self) {
        let mut free = Vec::new();
        for event in &self.events {
            match *event {
                Event::Invoked(call) => {
                    self.answered[call].slot = free.pop().unwrap_or_else(|| {
                        self.slots += 1;
                        self.slots - 1
                    });
                }
                Event::Returned(call) => free.push(self.answered[call].slot),
                Event::Opened(_) => {}
            }
        }
    }
}

/// A place between two events, and who is under way there.
pub(super) struct Cursor {
    /// How many events are behind.
    pub(super) at: usize,
    /// The answered call in each slot.
    pub(super) slots: Vec<usize>,
    /// How many calls of each class were invoked.
    pub(super) opened: Vec<usize>,
    /// How many classes have a call that was invoked: the first ones.
    pub(super) classes: usize,
}

impl Cursor {
    pub(super) fn new<M: Model>(plan: &Plan<'_, M>) -> Self {
        Self { at: 0, slots: vec![NONE; plan.slots], opened: vec![0; plan.classes.len()], classes: 0 }
    }

    /// Goes on past the next event.
    pub(super) fn forward<M: Model>(&mut self, plan: &Plan<'_, M>) {
        match plan.events[self.at] {
            Event::Invoked(call) => self.slots[plan.answered[call].slot] = call,
            Event::Returned(call) => self.slots[plan.answered[call].slot] = NONE,
            Event::Opened(class) => {
                self.opened[class] += 1;
                self.classes = self.classes.max(class + 1);
            }
        }
        self.at += 1;
    }

    /// Goes back to where it was.
    pub(super) fn back_to<M: Model>(&mut self, at: usize, plan: &Plan<'_, M>) {
        while self.at > at {
            self.at -= 1;
            match plan.events[self.at] {
                Event::Invoked(call) => self.slots[plan.answered[call].slot] = NONE,
                Event::Returned(call) => self.slots[plan.answered[call].slot] = call,
                Event::Opened(class) => {
                    self.opened[class] -= 1;
                    if self.opened[class] == 0 {
                        self.classes = class;
                    }
                }
            }
        }
    }
}
