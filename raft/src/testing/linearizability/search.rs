//! The search for an order of one key's calls.
//!
//! This is Wing and Gong's search ("Testing and Verifying Concurrent Objects", 1993) with Lowe's memory of configurations ("Testing
//! for Linearizability", 2017), ordered by what must happen next:
//!
//! * The history is walked from one answer to the next. Where a call returns, it must be *placed*, which means ordered, unless it was
//!   before. A [`Frame`] is such a place. First the returning call is tried alone; then after one other call that is under way, then
//!   after two, and so on. So a frame is searched breadth first, and the history depth first.
//! * A configuration is the place in the history, the calls under way that were placed already, the open calls that were used, and the
//!   model's state. What follows depends on nothing else, so one that was met is not searched again.
//!
//! Five rules keep it small. Each keeps a solution if there is one; take "solution" as an order of the calls left, and of
//! some open ones, that explains all answers.
//!
//! 1. *A call that leaves every state in which it is answered so is placed where its answer fits first*, without a choice. In
//!    any solution it can be moved there from its later place: neither place changes the state, so no other answer changes.
//! 2. *An open call that does not change the state is not placed.* Nobody looks at its answer, so a solution without it is one.
//! 3. *Of open calls that ask the same, the one invoked first is used first.* In a solution they can be exchanged: the earlier one
//!    may be wherever the later one may be, and only the earlier one was free to be there before. So calls of one [`Class`] are counted,
//!    not named.
//! 4. *A configuration is dropped if one was met that differs by nothing but fewer used open calls.* A solution from here is one
//!    from there too, as open calls need not be placed. As a frame goes through fewer calls first, an open write that
//!    nobody read costs one step in each frame that gets stuck, and is not combined with the others.
//!
//! 5. *An open call is placed directly after another open one only where it leads to another state than without that one.* Otherwise
//!    rule 4 would drop it; this is how to know without trying each pair of them in each frame.
//!
//! Dropping is sound although the one met may still be in work: if any configuration that was met has a solution, consider one with
//! the shortest; its next one on that solution was met, or one as good was, and that has a shorter solution, down to the end of the
//! history.

use super::memory::{Bits, NO_USES, Rows, States, Uses, Visited};
use super::model::Model;
use super::plan::{Cursor, Event, NONE, Plan};

/// Why a search stopped without an order.
pub(super) enum Stop {
    /// There is none.
    NoOrder,
    /// There is none in which a frame places so few calls; there may be one with more.
    Limited,
    Exhausted,
    Model(String),
}

/// What a search may spend.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) steps: u64,
    pub(super) configurations: u64,
    /// How many calls a frame may place beside the one that returns, not counting those that are placed without a choice.
    pub(super) depth: usize,
    /// Stops when this place was reached.
    pub(super) until: usize,
}

/// A call that is placed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Placed {
    Answered(usize),
    /// The next one of the class.
    Open(usize),
}

/// What may be placed beside the call that returns.
enum Child {
    /// The call in this slot.
    Slot(usize),
    /// An open call of this class.
    Class(usize),
}

/// A configuration within a frame.
struct Element {
    bits: Bits,
    state: usize,
    uses: usize,
    /// The element of the same frame that it was made from, or none for the first.
    from: usize,
    /// What was placed to make it; those placed without a choice are at the end.
    placed: Vec<Placed>,
    depth: usize,
}

/// A call returns here, and has not been placed before.
struct Frame {
    at: usize,
    /// Which of the frame before was left for this one.
    via: usize,
    elements: Vec<Element>,
    /// Which element gets its next child.
    element: usize,
    /// The call in which slot that is.
    slot: usize,
    /// The classes of open calls that come after those in the slots, the last one first; none before they were looked for.
    classes: Option<Vec<usize>>,
    /// The newest element was not tried with the returning call.
    untried: bool,
}

pub(super) struct Search<'a, 'h, M: Model> {
    model: &'a M,
    plan: &'a Plan<'h, M>,
    limits: Limits,
    cursor: Cursor,
    states: States<M::State>,
    rows: Rows,
    uses: Uses,
    visited: Visited,
    frames: Vec<Frame>,
    /// The open calls of each class that were used on the way to the last frame.
    used: Vec<usize>,
    pub(super) steps: u64,
    /// The last place that was reached.
    pub(super) reached: usize,
    cut: bool,
}

impl<'a, 'h, M: Model> Search<'a, 'h, M> {
    pub(super) fn new(model: &'a M, plan: &'a Plan<'h, M>, limits: Limits) -> Self {
        Self {
            model,
            plan,
            limits,
            cursor: Cursor::new(plan),
            states: States::new(),
            rows: Rows::default(),
            uses: Uses::new(),
            visited: Visited::new(),
            frames: Vec::new(),
            used: vec![0; plan.classes.len()],
            steps: 0,
            reached: 0,
            cut: false,
        }
    }

    pub(super) fn configurations(&self) -> u64 {
        (self.visited.len() + self.states.len() + self.rows.exceptions()) as u64
    }

    /// What it has cost so far: questions to the model, and comparisons of situations.
    pub(super) fn steps(&self) -> u64 {
        self.steps + self.visited.compared()
    }

    /// Looks for an order, or for one up to the place that the limits name.
    pub(super) fn run(&mut self, initial: M::State) -> Result<(), Stop> {
        let state = self.states.number(initial);
        let bits = Bits::new(self.plan.slots);
        let mut first = Element { bits, state, uses: NO_USES, from: NONE, placed: Vec::new(), depth: 0 };
        self.settle(&mut first)?;
        let mut found = self.arrive(first, NONE);
        while !found {
            let Some(frame) = self.frames.last_mut() else {
                return Err(if self.cut { Stop::Limited } else { Stop::NoOrder });
            };
            let (at, element) = if std::mem::take(&mut frame.untried) {
                let newest = frame.elements.len() - 1;
                (newest, self.forced(newest)?)
            } else if let Some((at, child)) = self.next_child()? {
                (at, self.child(at, child)?)
            } else {
                self.leave();
                continue;
            };
            if let Some(element) = element {
                found = self.arrive(element, at);
            }
        }
        Ok(())
    }

    /// Takes a settled element where it belongs. Returns whether the search is at its end.
    fn arrive(&mut self, mut element: Element, via: usize) -> bool {
        let at = self.cursor.at;
        self.reached = self.reached.max(at);
        if at == self.plan.events.len() {
            return true;
        }
        let same = self.frames.last().is_some_and(|frame| frame.at == at);
        element.depth = if same { element.depth } else { 0 };
        let depth = if self.limits.depth == usize::MAX { 0 } else { element.depth };
        if !self.visited.admit(at, element.state, &element.bits, (element.uses, depth), &self.uses) {
            if let Some(Placed::Open(_)) = element.placed.first() {
                self.uses.forget(element.uses);
            }
            if let Some(frame) = self.frames.last() {
                self.cursor.back_to(frame.at, self.plan);
            }
            return false;
        }
        match self.frames.last_mut() {
            Some(frame) if same => {
                frame.elements.push(element);
                frame.untried = true;
            }
            before => {
                let base = before.map_or(NO_USES, |frame| frame.elements[0].uses);
                self.uses.since(base, element.uses).for_each(|class| self.used[class] += 1);
                let elements = vec![element];
                self.frames.push(Frame { at, via, elements, element: 0, slot: 0, classes: None, untried: true });
            }
        }
        self.limits.until <= at
    }

    /// Nothing works from the last frame.
    fn leave(&mut self) {
        let Some(left) = self.frames.pop() else { return };
        let Some(frame) = self.frames.last() else { return };
        self.uses.since(frame.elements[0].uses, left.elements[0].uses).for_each(|class| self.used[class] -= 1);
        self.cursor.back_to(frame.at, self.plan);
    }

    /// An element of the last frame, and its next child: answered calls by slot, then open calls, the latest first.
    fn next_child(&mut self) -> Result<Option<(usize, Child)>, Stop> {
        loop {
            let Some(frame) = self.frames.last_mut() else { return Ok(None) };
            let at = frame.element;
            let Some(element) = frame.elements.get(at) else { return Ok(None) };
            let within = element.depth < self.limits.depth;
            self.cut |= !within;
            if within && frame.slot < self.plan.slots {
                frame.slot += 1;
                return Ok(Some((at, Child::Slot(frame.slot - 1))));
            }
            if within {
                if frame.classes.is_none() {
                    let classes = self.open_classes()?;
                    if let Some(frame) = self.frames.last_mut() {
                        frame.classes = Some(classes);
                    }
                    continue;
                }
                if let Some(class) = frame.classes.as_mut().and_then(Vec::pop) {
                    return Ok(Some((at, Child::Class(class))));
                }
            }
            frame.element += 1;
            frame.slot = 0;
            frame.classes = None;
        }
    }

    /// The classes of open calls that may come next after the last frame's element (rule 5).
    fn open_classes(&mut self) -> Result<Vec<usize>, Stop> {
        let all = self.cursor.classes;
        let Some(frame) = self.frames.last() else { return Ok(Vec::new()) };
        let element = &frame.elements[frame.element];
        let [Placed::Open(_)] = element.placed[..] else { return Ok((0..all).collect()) };
        // The first element of a frame does not come from the same frame, so this one is another.
        if frame.element == 0 {
            return Ok((0..all).collect());
        }
        let (state, before) = (element.state, frame.elements[element.from].state);
        for state in [state, before] {
            for class in self.rows.known(state)..all {
                let after = self.open(state, class)?;
                self.rows.add(state, class, after);
            }
        }
        Ok(self.rows.different(state, before, all))
    }

    /// The state after an open call.
    fn open(&mut self, state: usize, class: usize) -> Result<usize, Stop> {
        let (_, after) = self.apply(state, &self.plan.classes[class].op)?;
        Ok(after.map_or(state, |after| self.states.number(after)))
    }

    /// Places the call that returns.
    fn forced(&mut self, at: usize) -> Result<Option<Element>, Stop> {
        match self.plan.events[self.cursor.at] {
            Event::Returned(call) => self.place_answered(at, call),
            // The cursor of a frame is at an answer.
            Event::Invoked(_) | Event::Opened(_) => Ok(None),
        }
    }

    /// Places another call that is under way.
    fn child(&mut self, at: usize, child: Child) -> Result<Option<Element>, Stop> {
        match child {
            Child::Class(class) => {
                self.step()?;
                self.place_open(at, class)
            }
            Child::Slot(slot) => {
                let call = self.cursor.slots[slot];
                let returning = matches!(self.plan.events[self.cursor.at], Event::Returned(other) if other == call);
                if call == NONE || returning { Ok(None) } else { self.place_answered(at, call) }
            }
        }
    }

    fn place_answered(&mut self, at: usize, call: usize) -> Result<Option<Element>, Stop> {
        let Some(element) = self.frames.last().map(|frame| &frame.elements[at]) else { return Ok(None) };
        let answered = &self.plan.answered[call];
        // What leaves the state was placed if its answer fits.
        if answered.leaves_state || element.bits.has(answered.slot) {
            return Ok(None);
        }
        let (mut bits, state, uses, depth) = (element.bits.clone(), element.state, element.uses, element.depth + 1);
        let Some(state) = self.answer(call, state)? else { return Ok(None) };
        bits.flip(answered.slot);
        let mut element = Element { bits, state, uses, from: at, placed: vec![Placed::Answered(call)], depth };
        self.settle(&mut element)?;
        Ok(Some(element))
    }

    fn place_open(&mut self, at: usize, class: usize) -> Result<Option<Element>, Stop> {
        let Some(frame) = self.frames.last() else { return Ok(None) };
        let Element { ref bits, state, uses, depth, .. } = frame.elements[at];
        let here = self.uses.since(frame.elements[0].uses, uses).filter(|used| *used == class).count();
        if self.used[class] + here >= self.cursor.opened[class] {
            return Ok(None);
        }
        let (before, bits) = (state, bits.clone());
        let state = match self.rows.get(before, class) {
            Some(state) => state,
            None => self.open(before, class)?,
        };
        if state == before {
            return Ok(None);
        }
        let uses = self.uses.with(uses, class);
        let mut element = Element { bits, state, uses, from: at, placed: vec![Placed::Open(class)], depth: depth + 1 };
        self.settle(&mut element)?;
        Ok(Some(element))
    }

    /// Places what needs no choice, and goes on to the next answer of a call that is not placed.
    fn settle(&mut self, element: &mut Element) -> Result<(), Stop> {
        for slot in 0..self.plan.slots {
            let call = self.cursor.slots[slot];
            if call != NONE && !element.bits.has(slot) {
                self.place_if_it_fits(element, call)?;
            }
        }
        while let Some(event) = self.plan.events.get(self.cursor.at) {
            match *event {
                Event::Opened(_) => self.cursor.forward(self.plan),
                Event::Invoked(call) => {
                    self.cursor.forward(self.plan);
                    self.place_if_it_fits(element, call)?;
                }
                Event::Returned(call) => {
                    let slot = self.plan.answered[call].slot;
                    if !element.bits.has(slot) {
                        break;
                    }
                    element.bits.flip(slot);
                    self.cursor.forward(self.plan);
                }
            }
        }
        Ok(())
    }

    fn place_if_it_fits(&mut self, element: &mut Element, call: usize) -> Result<(), Stop> {
        let answered = &self.plan.answered[call];
        if !answered.leaves_state {
            return Ok(());
        }
        if let Some(state) = self.answer(call, element.state)? {
            if state != element.state {
                return Err(Stop::Model(format!(
                    "`leaves_state` is true for {:?} -> {:?}, and it changes {:?} to {:?}",
                    answered.op,
                    answered.ret,
                    self.states.get(element.state),
                    self.states.get(state),
                )));
            }
            element.bits.flip(answered.slot);
            element.placed.push(Placed::Answered(call));
        }
        Ok(())
    }

    /// The state after this call, if the model answers as the service did.
    fn answer(&mut self, call: usize, state: usize) -> Result<Option<usize>, Stop> {
        let answered = &self.plan.answered[call];
        let (ret, after) = self.apply(state, answered.op)?;
        if ret != *answered.ret {
            return Ok(None);
        }
        Ok(Some(after.map_or(state, |after| self.states.number(after))))
    }

    fn step(&mut self) -> Result<(), Stop> {
        self.steps += 1;
        let over = self.steps() > self.limits.steps || self.configurations() > self.limits.configurations;
        if over { Err(Stop::Exhausted) } else { Ok(()) }
    }

    /// The model's answer, and its state if that has changed.
    fn apply(&mut self, state: usize, op: &M::Op) -> Result<(M::Ret, Option<M::State>), Stop> {
        self.step()?;
        let before = self.states.get(state);
        let mut after = before.clone();
        let ret = self.model.apply(&mut after, op);
        let changed = after != *before;
        Ok((ret, changed.then_some(after)))
    }

    /// The state at the beginning of the last frame.
    pub(super) fn state(&self) -> Option<&M::State> {
        let element = self.frames.last()?.elements.first()?;
        Some(self.states.get(element.state))
    }

    /// What was placed on the way to the last frame.
    pub(super) fn placed(&self) -> Vec<Placed> {
        let mut placed = Vec::new();
        let mut before: Option<&Frame> = None;
        for frame in &self.frames {
            let mut way = Vec::new();
            let mut at = frame.via;
            while let Some(element) = before.and_then(|frame| frame.elements.get(at)) {
                // The first of a frame tells how it was arrived at, which is told already.
                if at == 0 {
                    break;
                }
                way.push(&element.placed);
                at = element.from;
            }
            placed.extend(way.into_iter().rev().flatten());
            placed.extend(&frame.elements[0].placed);
            before = Some(frame);
        }
        placed
    }

    /// The answered calls under way at the last frame that were not placed, the returning one first.
    pub(super) fn stuck(&self) -> Vec<usize> {
        let Some(frame) = self.frames.last() else { return Vec::new() };
        let returning = match self.plan.events.get(frame.at) {
            Some(Event::Returned(call)) => *call,
            Some(Event::Invoked(_) | Event::Opened(_)) | None => NONE,
        };
        let bits = &frame.elements[0].bits;
        let left = self.cursor.slots.iter().filter(|call| **call != NONE && !bits.has(self.plan.answered[**call].slot));
        let mut left: Vec<_> = left.copied().collect();
        left.sort_unstable_by_key(|call| (*call != returning, *call));
        left
    }
}
