//! The definition, written down: every order is tried. For a few calls.

use crate::testing::linearizability::history::{Call, End};
use crate::testing::linearizability::{History, Model};

/// Whether there is an order of one key's calls that explains all answers.
pub(super) fn linearizable<M: Model>(model: &M, key: &M::Key, history: &History<M::Op, M::Ret>) -> bool {
    let calls: Vec<_> = history.calls.iter().filter(|call| !matches!(call.end, End::Failed)).collect();
    explains(model, &model.initial(key), &calls)
}

fn returned<Op, Ret>(call: &Call<Op, Ret>) -> Option<(u64, &Ret)> {
    match &call.end {
        End::Returned { at, ret } => Some((*at, ret)),
        End::Open | End::Failed => None,
    }
}

fn explains<M: Model>(model: &M, state: &M::State, left: &[&Call<M::Op, M::Ret>]) -> bool {
    let Some(first_return) = left.iter().filter_map(|call| returned(call)).map(|(at, _)| at).min() else { return true };
    (0..left.len()).filter(|at| left[*at].invoked < first_return).any(|at| {
        let mut state = state.clone();
        let answer = model.apply(&mut state, &left[at].op);
        let fits = returned(left[at]).is_none_or(|(_, ret)| *ret == answer);
        let mut rest = left.to_vec();
        rest.remove(at);
        fits && explains(model, &state, &rest)
    })
}
