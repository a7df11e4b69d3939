//! The state machine under seeds of faults: 100, or as many as `SEEDS` says. What clients were told is checked against a model: the accounts, without any replication.

use bytes::Bytes;
use downstream::{Accounts, Ledger, Transfer};
use raftkv::testing::Random;
use raftkv::testing::linearizability::Model;
use raftkv::testing::simulation::node::{MemStores, Simulation, Subject};

struct Bank;

#[derive(Clone, Debug, PartialEq)]
enum Op {
    Move(Transfer),
    Look,
}

#[derive(Clone, Debug, PartialEq)]
enum Ret {
    Moved(bool),
    Seen(Accounts),
}

impl Model for Bank {
    type Op = Op;
    type Ret = Ret;
    type State = Accounts;
    type Key = ();

    fn key(&self, _: &Op) {}

    fn initial(&self, (): &()) -> Accounts {
        Accounts::default()
    }

    fn apply(&self, accounts: &mut Accounts, op: &Op) -> Ret {
        match op {
            Op::Move(transfer) => Ret::Moved(accounts.transfer(*transfer)),
            Op::Look => Ret::Seen(accounts.clone()),
        }
    }

    fn leaves_state(&self, _: &Op, ret: &Ret) -> bool {
        *ret != Ret::Moved(true)
    }
}

impl Subject for Bank {
    type Machine = Ledger;
    type View = Ledger;
    type Model = Bank;

    fn model(&self) -> Bank {
        Bank
    }

    fn start(&self) -> (Ledger, Ledger) {
        let ledger = Ledger::default();
        (ledger.clone(), ledger)
    }

    fn random_op(&self, random: &mut Random) -> Op {
        let from = random.below(3) as u8;
        let transfer = Transfer { from, to: (from + 1) % 3, amount: 70 };
        if random.percent(50) { Op::Look } else { Op::Move(transfer) }
    }

    fn command(&self, op: &Op) -> Option<Bytes> {
        let Op::Move(transfer) = op else { return None };
        Some(postcard::to_stdvec(transfer).expect("a command").into())
    }

    fn answer(&self, _: &Op, answer: &Bytes) -> Ret {
        Ret::Moved(answer == "done")
    }

    fn look(&self, view: &Ledger, _: &Op) -> Ret {
        Ret::Seen(view.0.lock().expect("no panic").clone())
    }
}

#[test]
fn what_clients_are_told_is_right_whatever_fails() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(100);
    println!("{}", Simulation::new(Bank, MemStores::new).seeds(0..seeds).threads(2).run());
}
