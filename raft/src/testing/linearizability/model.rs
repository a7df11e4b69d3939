//! What one correct machine would do.

use std::fmt::Debug;
use std::hash::Hash;

/// The machine that clients should believe they are talking to: one copy, one call at a time.
///
/// Calls with different keys must not influence each other, as each key is checked by itself (a history is linearizable
/// if and only if it is so for each key: Herlihy and Wing's locality). A machine that can't be split has one key, `()`.
pub trait Model {
    /// What a client asks. Equal operations must do the same.
    type Op: Clone + PartialEq + Debug;
    /// What it is answered.
    type Ret: Clone + PartialEq + Debug;
    /// What the machine remembers of one key.
    type State: Clone + Eq + Hash + Debug;
    /// The part of the machine that a call touches.
    type Key: Ord + Clone + Debug;

    /// The one key that this operation touches.
    fn key(&self, op: &Self::Op) -> Self::Key;

    /// What is there before the first call.
    fn initial(&self, key: &Self::Key) -> Self::State;

    /// Carries an operation out. Must be a function of the state and the operation alone.
    fn apply(&self, state: &mut Self::State, op: &Self::Op) -> Self::Ret;

    /// Whether this operation leaves every state as it is in which it is answered so: reads do, and writes that were refused.
    /// It may always say `false`, which makes the check slower where many calls overlap. A wrong `true` is
    /// an [`Error::Model`](super::Error::Model) where the check meets it, and may else refuse a history that is right; it never lets
    /// one pass that is wrong.
    fn leaves_state(&self, op: &Self::Op, ret: &Self::Ret) -> bool {
        let _ = (op, ret);
        false
    }

    /// May replace open operations of one key by others, so that more of them are equal, where no answer could tell the difference:
    /// the answered calls must have an order with the new ones exactly if they have one with the old ones. Writes whose value
    /// nobody read, for example, may all write the same value. Equal open operations are counted and not told apart, so this makes
    /// histories with many unknown outcomes cheap to check. Does nothing by default.
    fn merge_open(&self, answered: &[(&Self::Op, &Self::Ret)], open: &mut [Self::Op]) {
        let _ = (answered, open);
    }
}
