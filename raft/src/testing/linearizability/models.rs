//! Models of machines that most services have something of.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::marker::PhantomData;

use super::model::Model;

/// Makes all values that were not seen the same: the first of them.
fn merge_values<'v, V: Clone + Ord + 'v>(seen: &BTreeSet<V>, values: impl Iterator<Item = &'v mut V>) {
    let mut first: Option<V> = None;
    for value in values.filter(|value| !seen.contains(value)) {
        *value = first.get_or_insert_with(|| value.clone()).clone();
    }
}

/// Registers: each key holds a value or none, and can be read, written, deleted, and compared and set.
#[derive(Clone, Copy, Debug)]
pub struct Register<K, V>(PhantomData<fn() -> (K, V)>);

impl<K, V> Default for Register<K, V> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// What is asked of a [`Register`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterOp<K, V> {
    /// Reads; answered by [`RegisterRet::Value`].
    Get(K),
    /// Writes; answered by [`RegisterRet::Done`].
    Put(K, V),
    /// Writes the second value if the first one is there; answered by [`RegisterRet::Swapped`].
    Cas(K, Option<V>, V),
    /// Removes; answered by [`RegisterRet::Done`].
    Delete(K),
}

/// What a [`Register`] answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterRet<V> {
    /// What is there.
    Value(Option<V>),
    /// It is done.
    Done,
    /// Whether the value was the expected one, and was replaced.
    Swapped(bool),
}

impl<K: Ord + Clone + Debug, V: Clone + Ord + Hash + Debug> Model for Register<K, V> {
    type Op = RegisterOp<K, V>;
    type Ret = RegisterRet<V>;
    type State = Option<V>;
    type Key = K;

    fn key(&self, op: &Self::Op) -> K {
        match op {
            RegisterOp::Get(key) | RegisterOp::Put(key, _) | RegisterOp::Cas(key, _, _) | RegisterOp::Delete(key) => {
                key.clone()
            }
        }
    }

    fn initial(&self, _key: &K) -> Option<V> {
        None
    }

    fn apply(&self, state: &mut Option<V>, op: &Self::Op) -> Self::Ret {
        match op {
            RegisterOp::Get(_) => RegisterRet::Value(state.clone()),
            RegisterOp::Put(_, value) => {
                *state = Some(value.clone());
                RegisterRet::Done
            }
            RegisterOp::Cas(_, expected, value) => {
                let swapped = state == expected;
                if swapped {
                    *state = Some(value.clone());
                }
                RegisterRet::Swapped(swapped)
            }
            RegisterOp::Delete(_) => {
                *state = None;
                RegisterRet::Done
            }
        }
    }

    fn leaves_state(&self, _op: &Self::Op, ret: &Self::Ret) -> bool {
        matches!(ret, RegisterRet::Value(_) | RegisterRet::Swapped(false))
    }

    /// A value is told from others by reads, and by comparisons with it. A comparison with what never is there does nothing, as a read
    /// does that nobody hears of.
    fn merge_open(&self, answered: &[(&Self::Op, &Self::Ret)], open: &mut [Self::Op]) {
        let possible = possible_values(answered, open);
        for op in &mut *open {
            if let RegisterOp::Cas(key, expected, _) = op
                && !possible.contains(expected)
            {
                *op = RegisterOp::Get(key.clone());
            }
        }
        let compared = answered.iter().map(|(op, _)| *op).chain(&*open).filter_map(|op| match op {
            RegisterOp::Cas(_, expected, _) => expected.as_ref(),
            RegisterOp::Get(_) | RegisterOp::Put(..) | RegisterOp::Delete(_) => None,
        });
        let read = answered.iter().filter_map(|(_, ret)| match ret {
            RegisterRet::Value(value) => value.as_ref(),
            RegisterRet::Done | RegisterRet::Swapped(_) => None,
        });
        let seen: BTreeSet<V> = compared.chain(read).cloned().collect();
        merge_values(
            &seen,
            open.iter_mut().filter_map(|op| match op {
                RegisterOp::Put(_, value) | RegisterOp::Cas(_, _, value) => Some(value),
                RegisterOp::Get(_) | RegisterOp::Delete(_) => None,
            }),
        );
    }
}

/// What a register can hold at some time, whichever open calls are carried out: nothing, what is written, and what is swapped in where
/// that can be.
fn possible_values<K, V: Ord + Clone>(
    answered: &[(&RegisterOp<K, V>, &RegisterRet<V>)],
    open: &[RegisterOp<K, V>],
) -> BTreeSet<Option<V>> {
    let refused = |ret: &RegisterRet<V>| matches!(ret, RegisterRet::Swapped(false));
    let carried_out = answered.iter().filter(|(_, ret)| !refused(ret)).map(|(op, _)| *op);
    let mut possible = BTreeSet::from([None]);
    let mut swaps = Vec::new();
    for op in carried_out.chain(open) {
        match op {
            RegisterOp::Put(_, value) => {
                possible.insert(Some(value.clone()));
            }
            RegisterOp::Cas(_, expected, value) => swaps.push((expected, value)),
            RegisterOp::Get(_) | RegisterOp::Delete(_) => {}
        }
    }
    loop {
        let before = possible.len();
        swaps.retain(|(expected, value)| {
            let met = possible.contains(*expected);
            if met {
                possible.insert(Some((*value).clone()));
            }
            !met
        });
        if possible.len() == before {
            return possible;
        }
    }
}

/// A store of keys and values whose versions can be seen: each key counts its writes since it was made, and a delete
/// says whether there was anything to delete. It finds writes that were applied twice, which a [`Register`] can't see.
#[derive(Clone, Copy, Debug)]
pub struct KeyValue<K, V>(PhantomData<fn() -> (K, V)>);

impl<K, V> Default for KeyValue<K, V> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// What is asked of a [`KeyValue`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyValueOp<K, V> {
    /// Reads; answered by [`KeyValueRet::Found`].
    Get(K),
    /// Writes; answered by [`KeyValueRet::Written`].
    Put(K, V),
    /// Writes if the key's version is this one, where 0 means that it is not there; answered by [`KeyValueRet::Written`] or
    /// [`KeyValueRet::Refused`].
    PutIfVersion(K, u64, V),
    /// Removes; answered by [`KeyValueRet::Deleted`].
    Delete(K),
}

/// What a [`KeyValue`] answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyValueRet<V> {
    /// The value and its version, if there is one.
    Found(Option<(V, u64)>),
    /// It is written.
    Written,
    /// The version was another one.
    Refused,
    /// Whether there was anything to delete.
    Deleted(bool),
}

impl<K: Ord + Clone + Debug, V: Clone + Ord + Hash + Debug> Model for KeyValue<K, V> {
    type Op = KeyValueOp<K, V>;
    type Ret = KeyValueRet<V>;
    type State = Option<(V, u64)>;
    type Key = K;

    fn key(&self, op: &Self::Op) -> K {
        match op {
            KeyValueOp::Get(key)
            | KeyValueOp::Put(key, _)
            | KeyValueOp::PutIfVersion(key, _, _)
            | KeyValueOp::Delete(key) => key.clone(),
        }
    }

    fn initial(&self, _key: &K) -> Self::State {
        None
    }

    fn apply(&self, state: &mut Self::State, op: &Self::Op) -> Self::Ret {
        let version = state.as_ref().map_or(0, |(_, version)| *version);
        match op {
            KeyValueOp::Get(_) => KeyValueRet::Found(state.clone()),
            KeyValueOp::Put(_, value) => {
                *state = Some((value.clone(), version + 1));
                KeyValueRet::Written
            }
            KeyValueOp::PutIfVersion(_, expected, value) => {
                if version != *expected {
                    return KeyValueRet::Refused;
                }
                *state = Some((value.clone(), version + 1));
                KeyValueRet::Written
            }
            KeyValueOp::Delete(_) => KeyValueRet::Deleted(state.take().is_some()),
        }
    }

    fn leaves_state(&self, _op: &Self::Op, ret: &Self::Ret) -> bool {
        matches!(ret, KeyValueRet::Found(_) | KeyValueRet::Refused | KeyValueRet::Deleted(false))
    }

    /// A value is told from others by reads.
    fn merge_open(&self, answered: &[(&Self::Op, &Self::Ret)], open: &mut [Self::Op]) {
        let read = answered.iter().filter_map(|(_, ret)| match ret {
            KeyValueRet::Found(found) => found.as_ref().map(|(value, _)| value),
            KeyValueRet::Written | KeyValueRet::Refused | KeyValueRet::Deleted(_) => None,
        });
        let seen: BTreeSet<V> = read.cloned().collect();
        merge_values(
            &seen,
            open.iter_mut().filter_map(|op| match op {
                KeyValueOp::Put(_, value) | KeyValueOp::PutIfVersion(_, _, value) => Some(value),
                KeyValueOp::Get(_) | KeyValueOp::Delete(_) => None,
            }),
        );
    }
}

/// One sum, which begins at 0 and wraps around.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter;

/// What is asked of a [`Counter`]; both are answered with the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterOp {
    /// Adds, and answers with the new sum.
    Add(u64),
    /// Reads.
    Get,
}

impl Model for Counter {
    type Op = CounterOp;
    type Ret = u64;
    type State = u64;
    type Key = ();

    fn key(&self, _op: &CounterOp) {}

    fn initial(&self, (): &()) -> u64 {
        0
    }

    fn apply(&self, state: &mut u64, op: &CounterOp) -> u64 {
        match op {
            CounterOp::Add(number) => *state = state.wrapping_add(*number),
            CounterOp::Get => {}
        }
        *state
    }

    fn leaves_state(&self, op: &CounterOp, _ret: &u64) -> bool {
        matches!(op, CounterOp::Get | CounterOp::Add(0))
    }
}
