//! The linearizability checker against another one, stateright's: the same verdict on random histories.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use raftkv::testing::Random;
use raftkv::testing::linearizability::{
    Budget, CallId, Counter, CounterOp, Error, History, KeyValue, KeyValueOp, KeyValueRet, Model, Register, RegisterOp,
    RegisterRet, check,
};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

const HISTORIES: u64 = 3000;
const KEY: u64 = 0;

/// One of our models, as stateright wants it.
struct Spec<M: Model> {
    model: M,
    state: M::State,
}

impl<M: Model + Clone> Clone for Spec<M> {
    fn clone(&self) -> Self {
        Self { model: self.model.clone(), state: self.state.clone() }
    }
}

impl<M: Model> SequentialSpec for Spec<M> {
    type Op = M::Op;
    type Ret = M::Ret;

    fn invoke(&mut self, op: &M::Op) -> M::Ret {
        self.model.apply(&mut self.state, op)
    }
}

/// Both checkers, told the same.
struct Both<M: Model + Clone> {
    spec: Spec<M>,
    ours: History<M::Op, M::Ret>,
    theirs: LinearizabilityTester<usize, Spec<M>>,
}

impl<M: Model + Clone> Both<M> {
    fn new(model: M, key: &M::Key) -> Self {
        let spec = Spec { state: model.initial(key), model };
        Self { spec: spec.clone(), ours: History::new(), theirs: LinearizabilityTester::new(spec) }
    }

    /// Each call is a thread of its own to stateright, as one without an answer leaves its thread busy for ever.
    fn invoke(&mut self, op: &M::Op) -> CallId {
        let id = self.ours.invoke(op.clone());
        self.theirs.on_invoke(id.0, op.clone()).map(drop).unwrap();
        id
    }

    fn returned(&mut self, id: CallId, ret: &M::Ret) {
        self.ours.returned(id, ret.clone());
        self.theirs.on_return(id.0, ret.clone()).map(drop).unwrap();
    }

    /// The verdict that both give.
    fn verdict(&self, seed: u64) -> bool {
        let theirs = self.theirs.is_consistent();
        match check(&self.spec.model, &self.ours, Budget::default()) {
            Ok(_) => assert!(theirs, "seed {seed}: only we let it pass: {:#?}", self.ours),
            Err(Error::NotLinearizable(violation)) => {
                assert!(!theirs, "seed {seed}: only stateright lets it pass: {violation}\n{:#?}", self.ours);
            }
            Err(error) => panic!("seed {seed}: {error}"),
        }
        theirs
    }
}

enum Client<M: Model> {
    Idle,
    Invoked(CallId, M::Op),
    Applied(CallId, M::Ret),
}

/// Clients of an atomic object, whose answers are sometimes others than they should be.
fn run<M: Model + Clone>(
    both: &mut Both<M>,
    random: &mut Random,
    op: impl Fn(&mut Random) -> M::Op,
    wrong: impl Fn(&mut Random, &M::Op) -> M::Ret,
) {
    let mut object = both.spec.clone();
    let mut clients: Vec<Client<M>> = (0..random.between(2, 5)).map(|_| Client::Idle).collect();
    let calls = usize::try_from(random.between(3, 10)).unwrap();
    let errors = random.below(25);
    let mut ghosts = Vec::new();
    while both.ours.len() < calls {
        let at = usize::try_from(random.below(clients.len() as u64)).unwrap();
        clients[at] = match std::mem::replace(&mut clients[at], Client::Idle) {
            Client::Idle => {
                let op = op(random);
                Client::Invoked(both.invoke(&op), op)
            }
            Client::Invoked(_, op) if random.percent(20) => {
                ghosts.push(op);
                Client::Idle
            }
            Client::Invoked(id, op) => {
                let ret = object.invoke(&op);
                Client::Applied(id, if random.percent(errors) { wrong(random, &op) } else { ret })
            }
            Client::Applied(id, ret) => {
                both.returned(id, &ret);
                Client::Idle
            }
        };
        if random.percent(10)
            && let Some(ghost) = ghosts.pop()
        {
            object.invoke(&ghost);
        }
    }
}

fn compare<M: Model + Clone>(
    model: &M,
    key: &M::Key,
    op: impl Fn(&mut Random) -> M::Op,
    wrong: impl Fn(&mut Random, &M::Op) -> M::Ret,
) {
    let mut passed = 0;
    for seed in 0..HISTORIES {
        let mut both = Both::new(model.clone(), key);
        run(&mut both, &mut Random::new(seed), &op, &wrong);
        passed += u64::from(both.verdict(seed));
    }
    assert!(passed > HISTORIES / 10 && passed < HISTORIES * 9 / 10, "{passed} of {HISTORIES} passed: too one-sided");
}

#[test]
fn registers_get_the_same_verdict() {
    let op = |random: &mut Random| match random.below(8) {
        0..=2 => RegisterOp::Get(KEY),
        3..=4 => RegisterOp::Put(KEY, random.below(3)),
        5..=6 => RegisterOp::Cas(KEY, random.percent(70).then(|| random.below(3)), random.below(3)),
        _ => RegisterOp::Delete(KEY),
    };
    let wrong = |random: &mut Random, op: &RegisterOp<u64, u64>| match op {
        RegisterOp::Get(_) => RegisterRet::Value(random.percent(80).then(|| random.below(3))),
        RegisterOp::Cas(..) => RegisterRet::Swapped(random.percent(50)),
        RegisterOp::Put(..) | RegisterOp::Delete(_) => RegisterRet::Done,
    };
    compare(&Register::default(), &KEY, op, wrong);
}

#[test]
fn stores_get_the_same_verdict() {
    let op = |random: &mut Random| match random.below(8) {
        0..=2 => KeyValueOp::Get(KEY),
        3..=4 => KeyValueOp::Put(KEY, random.below(2)),
        5..=6 => KeyValueOp::PutIfVersion(KEY, random.below(4), random.below(2)),
        _ => KeyValueOp::Delete(KEY),
    };
    let wrong = |random: &mut Random, op: &KeyValueOp<u64, u64>| match op {
        KeyValueOp::Get(_) => KeyValueRet::Found(random.percent(80).then(|| (random.below(2), random.between(1, 3)))),
        KeyValueOp::PutIfVersion(..) if random.percent(50) => KeyValueRet::Refused,
        KeyValueOp::PutIfVersion(..) | KeyValueOp::Put(..) => KeyValueRet::Written,
        KeyValueOp::Delete(_) => KeyValueRet::Deleted(random.percent(50)),
    };
    compare(&KeyValue::default(), &KEY, op, wrong);
}

#[test]
fn counters_get_the_same_verdict() {
    let op = |random: &mut Random| if random.percent(50) { CounterOp::Add(random.below(3)) } else { CounterOp::Get };
    compare(&Counter, &(), op, |random, _| random.below(6));
}
