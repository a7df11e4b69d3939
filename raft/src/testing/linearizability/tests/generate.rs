//! Random histories of an atomic object.

use std::collections::BTreeMap;

use crate::testing::Random;
use crate::testing::linearizability::{CallId, History, Model};

pub(super) struct Shape {
    pub(super) clients: usize,
    pub(super) calls: usize,
    /// How many of a hundred calls have no end, and how many fail.
    pub(super) open: u64,
    pub(super) failed: u64,
}

enum Client<M: Model> {
    Idle,
    Invoked(CallId, M::Op),
    Applied(CallId, M::Ret),
}

/// What clients see of an object that carries each call out at once, at some time between its ends. A call without an end
/// is carried out when it may be, or much later, or never.
pub(super) fn history<M: Model>(
    model: &M,
    shape: &Shape,
    random: &mut Random,
    mut op: impl FnMut(&mut Random) -> M::Op,
) -> History<M::Op, M::Ret> {
    let mut history = History::new();
    let mut states: BTreeMap<M::Key, M::State> = BTreeMap::new();
    let mut apply = |op: &M::Op| {
        let key = model.key(op);
        let state = states.entry(key.clone()).or_insert_with(|| model.initial(&key));
        model.apply(state, op)
    };
    let mut clients: Vec<Client<M>> = (0..shape.clients).map(|_| Client::Idle).collect();
    let mut ghosts: Vec<M::Op> = Vec::new();
    while history.len() < shape.calls {
        let at = usize::try_from(random.below(shape.clients as u64)).unwrap();
        clients[at] = match std::mem::replace(&mut clients[at], Client::Idle) {
            Client::Idle => {
                let op = op(random);
                Client::Invoked(history.invoke(op.clone()), op)
            }
            Client::Invoked(id, _) if random.percent(shape.failed) => {
                history.failed(id);
                Client::Idle
            }
            Client::Invoked(_, op) if random.percent(shape.open) => {
                ghosts.push(op);
                Client::Idle
            }
            Client::Invoked(id, op) => {
                let ret = apply(&op);
                Client::Applied(id, ret)
            }
            Client::Applied(id, ret) => {
                history.returned(id, ret);
                Client::Idle
            }
        };
        if !ghosts.is_empty() && random.percent(2) {
            let ghost = usize::try_from(random.below(ghosts.len() as u64)).unwrap();
            apply(&ghosts.swap_remove(ghost));
        }
    }
    history
}
