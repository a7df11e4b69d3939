//! Random histories: those of an atomic object pass, and small ones get the verdict of the definition.

use super::generate::{Shape, history};
use super::reference::linearizable;
use crate::testing::Random;
use crate::testing::linearizability::*;

fn register_op(random: &mut Random, keys: u64, values: u64) -> RegisterOp<u64, u64> {
    let key = random.below(keys);
    let mut value = || random.below(values);
    let (first, second) = (value(), value());
    match random.weighted(&[4, 3, 2, 1]) {
        0 => RegisterOp::Get(key),
        1 => RegisterOp::Put(key, first),
        2 => RegisterOp::Cas(key, (first > 0).then_some(first), second),
        _ => RegisterOp::Delete(key),
    }
}

fn key_value_op(random: &mut Random, keys: u64, values: u64) -> KeyValueOp<u64, u64> {
    let (key, version, value) = (random.below(keys), random.below(4), random.below(values));
    match random.weighted(&[4, 3, 2, 1]) {
        0 => KeyValueOp::Get(key),
        1 => KeyValueOp::Put(key, value),
        2 => KeyValueOp::PutIfVersion(key, version, value),
        _ => KeyValueOp::Delete(key),
    }
}

fn counter_op(random: &mut Random) -> CounterOp {
    if random.percent(50) { CounterOp::Add(random.below(3)) } else { CounterOp::Get }
}

/// A register that has all keys in one state, and no hint which calls leave it as it is.
struct Whole;

impl Model for Whole {
    type Op = RegisterOp<u64, u64>;
    type Ret = RegisterRet<u64>;
    type State = std::collections::BTreeMap<u64, u64>;
    type Key = ();

    fn key(&self, _op: &Self::Op) {}

    fn initial(&self, (): &()) -> Self::State {
        Self::State::new()
    }

    fn apply(&self, state: &mut Self::State, op: &Self::Op) -> Self::Ret {
        let model = Register::default();
        let key = model.key(op);
        let mut value = state.remove(&key);
        let ret = model.apply(&mut value, op);
        state.extend(value.map(|value| (key, value)));
        ret
    }
}

fn shapes(random: &mut Random, calls: usize) -> Shape {
    let clients = usize::try_from(random.between(1, 12)).unwrap();
    Shape { clients, calls, open: random.below(15), failed: random.below(5) }
}

#[test]
fn the_histories_of_an_atomic_object_pass() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let random = &mut random;
        let values = [2, 5, 1 << 40][usize::try_from(seed % 3).unwrap()];
        let shape = shapes(random, 600);
        let pass = |result: Result<Report, Error>| {
            result.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        };
        let register = history(&Register::default(), &shape, random, |random| register_op(random, 4, values));
        pass(check(&Register::default(), &register, Budget::default()));
        // Nothing is split and nothing is known of the operations, so fewer clients.
        let small = Shape { clients: 3, calls: 200, open: 1, failed: 1 };
        let whole = history(&Whole, &small, random, |random| register_op(random, 4, values));
        pass(check(&Whole, &whole, Budget::default()));
        let key_value = history(&KeyValue::default(), &shape, random, |random| key_value_op(random, 4, values));
        pass(check(&KeyValue::default(), &key_value, Budget::default()));
        let counter = history(&Counter, &shape, random, counter_op);
        pass(check(&Counter, &counter, Budget::default()));
    }
}

/// How many histories were linearizable, and how many were not.
fn compare<M: Model<Key = K>, K>(
    model: &M,
    key: &K,
    seeds: u64,
    op: impl Fn(&mut Random) -> M::Op,
    wrong: impl Fn(&mut Random, &M::Op) -> M::Ret,
) -> [u64; 2] {
    let mut verdicts = [0; 2];
    for seed in 0..seeds {
        let mut random = Random::new(seed);
        let shape = Shape { clients: 4, calls: usize::try_from(random.between(4, 8)).unwrap(), open: 20, failed: 5 };
        let made = history(model, &shape, &mut random, &op);
        // The same, but for an answer or two.
        let mut mutated = made.clone();
        for _ in 0..random.below(5) {
            let at = usize::try_from(random.below(made.len() as u64)).unwrap();
            if let super::super::history::End::Returned { ret, .. } = &mut mutated.calls[at].end {
                *ret = wrong(&mut random, &made.calls[at].op);
            }
        }
        let expected = linearizable(model, key, &mutated);
        match check(model, &mutated, Budget::default()) {
            Ok(_) => assert!(expected, "seed {seed}: passes, and must not: {mutated:#?}"),
            Err(Error::NotLinearizable(violation)) => {
                assert!(!expected, "seed {seed}: must pass: {violation}\n{mutated:#?}");
                assert!(violation.linearized.len() < mutated.len() && !violation.stuck.is_empty(), "{violation}");
            }
            Err(error) => panic!("seed {seed}: {error}"),
        }
        verdicts[usize::from(expected)] += 1;
    }
    verdicts
}

fn both_occurred([not, linearizable]: [u64; 2]) {
    assert!(not > 500 && linearizable > 500, "{not} that must fail, {linearizable} that must pass");
}

#[test]
fn small_registers_are_judged_as_the_definition_says() {
    let answer = |random: &mut Random, op: &RegisterOp<u64, u64>| match op {
        RegisterOp::Get(_) => RegisterRet::Value(random.percent(70).then(|| random.below(3))),
        RegisterOp::Cas(..) => RegisterRet::Swapped(random.percent(50)),
        RegisterOp::Put(..) | RegisterOp::Delete(_) => RegisterRet::Done,
    };
    let op = |random: &mut Random| register_op(random, 1, 3);
    both_occurred(compare(&Register::default(), &0, 10_000, op, answer));
    both_occurred(compare(&Whole, &(), 5_000, op, answer));
}

#[test]
fn small_stores_are_judged_as_the_definition_says() {
    let answer = |random: &mut Random, op: &KeyValueOp<u64, u64>| match op {
        KeyValueOp::Get(_) => KeyValueRet::Found(random.percent(70).then(|| (random.below(2), random.between(1, 3)))),
        KeyValueOp::PutIfVersion(..) if random.percent(50) => KeyValueRet::Refused,
        KeyValueOp::PutIfVersion(..) | KeyValueOp::Put(..) => KeyValueRet::Written,
        KeyValueOp::Delete(_) => KeyValueRet::Deleted(random.percent(50)),
    };
    both_occurred(compare(&KeyValue::default(), &0, 10_000, |random| key_value_op(random, 1, 2), answer));
}

#[test]
fn small_counters_are_judged_as_the_definition_says() {
    let answer = |random: &mut Random, _: &CounterOp| random.below(8);
    both_occurred(compare(&Counter, &(), 10_000, counter_op, answer));
}

/// Each write that nobody read could be anywhere or nowhere: if they were combined, there would be 2^300 ways.
#[test]
fn many_open_writes_that_nobody_read_cost_little() {
    let mut history = History::new();
    let put = history.invoke(RegisterOp::Put("x", 0));
    history.returned(put, RegisterRet::Done);
    for n in 1..=300 {
        history.invoke(RegisterOp::Put("x", n));
        let put = history.invoke(RegisterOp::Put("x", 1000 + n));
        history.returned(put, RegisterRet::Done);
        let get = history.invoke(RegisterOp::Get("x"));
        history.returned(get, RegisterRet::Value(Some(1000 + n)));
    }
    let model = Register::default();
    let budget = Budget { steps: 10_000, ..Budget::default() };
    check(&model, &history, budget).unwrap();
    // One of them, read long after.
    for (value, there) in [(7, true), (8, true), (7, false)] {
        let get = history.invoke(RegisterOp::Get("x"));
        history.returned(get, RegisterRet::Value(Some(value)));
        let result = check(&model, &history, Budget::default());
        assert_eq!(result.is_ok(), there, "{value}: {result:?}");
        assert!(there || matches!(result, Err(Error::NotLinearizable(_))), "{result:?}");
    }
}

/// As above, with deletes, which can't be told apart.
#[test]
fn many_open_calls_that_ask_the_same_cost_little() {
    let mut history = History::new();
    for n in 1..=200 {
        history.invoke(RegisterOp::Delete("x"));
        let put = history.invoke(RegisterOp::Put("x", n));
        history.returned(put, RegisterRet::Done);
        let get = history.invoke(RegisterOp::Get("x"));
        history.returned(get, RegisterRet::Value((n % 2 == 0).then_some(n)));
    }
    check(&Register::default(), &history, Budget { steps: 10_000, ..Budget::default() }).unwrap();
    // Now 100 deletes are left; one more is needed than there are.
    for n in 1..=101 {
        for seen in [Some(n), None] {
            let put = history.invoke(RegisterOp::Put("x", n));
            history.returned(put, RegisterRet::Done);
            let get = history.invoke(RegisterOp::Get("x"));
            history.returned(get, RegisterRet::Value(seen));
        }
        let result = check(&Register::default(), &history, Budget::default());
        assert_eq!(result.is_ok(), n <= 100, "{n}: {result:?}");
    }
}

/// More calls under way than a word has bits.
#[test]
fn a_hundred_clients_at_one_key() {
    let shape = Shape { clients: 100, calls: 400, open: 1, failed: 0 };
    let model = Register::default();
    let made = history(&model, &shape, &mut Random::new(1), |random| register_op(random, 1, 1 << 40));
    check(&model, &made, Budget::default()).unwrap();
}

#[test]
fn a_model_that_breaks_its_word_is_found_out() {
    struct Liar;
    impl Model for Liar {
        type Op = u64;
        type Ret = ();
        type State = u64;
        type Key = ();
        fn key(&self, _op: &u64) {}
        fn initial(&self, (): &()) -> u64 {
            0
        }
        fn apply(&self, state: &mut u64, op: &u64) {
            *state = *op;
        }
        fn leaves_state(&self, _op: &u64, (): &()) -> bool {
            true
        }
    }
    let mut history = History::new();
    let call = history.invoke(7);
    history.returned(call, ());
    let error = check(&Liar, &history, Budget::default()).unwrap_err();
    assert_eq!(error.to_string(), "the model is wrong: `leaves_state` is true for 7 -> (), and it changes 0 to 7");
}
