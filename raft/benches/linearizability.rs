//! How long it takes to check a history: registers, random clients, some calls without an answer.
//!
//! ```text
//! cargo bench -p raftkv --bench linearizability -- --calls 200000 --clients 64 --keys 100 --open 5
//! ```

#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
#![allow(clippy::expect_used, reason = "a benchmark that can't run says why by panicking")]

use std::time::Instant;

use clap::Parser;
use raftkv::testing::Random;
use raftkv::testing::linearizability::{Budget, CallId, History, Model, Register, RegisterOp, RegisterRet, check};

type Op = RegisterOp<u64, u64>;
type Ret = RegisterRet<u64>;

#[derive(Parser, Debug)]
struct Options {
    /// Calls in the history.
    #[arg(long, default_value_t = 200_000)]
    calls: usize,
    /// Clients, each of which has one call under way nearly always.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Keys, each as hot as any other.
    #[arg(long, default_value_t = 100)]
    keys: u64,
    /// How many of a hundred calls get no answer. Half of those take effect some time.
    #[arg(long, default_value_t = 5)]
    open: u64,
    /// How many of a hundred calls are reads; of the others, most are writes, some compare and swap, some delete.
    #[arg(long, default_value_t = 50)]
    reads: u64,
    /// Makes the last read stale, so that the history is wrong.
    #[arg(long)]
    stale: bool,
    /// Histories of other seeds.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    println!(
        "{} calls, {} clients, {} keys, {} % reads, {} % without an answer",
        options.calls, options.clients, options.keys, options.reads, options.open
    );
    for seed in 1..=options.seeds {
        let history = Clients::new(&options, seed).run();
        let begun = Instant::now();
        let result = check(&Register::default(), &history, Budget::default());
        let took = begun.elapsed();
        match result {
            Ok(report) => println!("seed {seed}: {took:.2?} ({} open, {} steps)", report.open, report.steps),
            Err(error) => println!("seed {seed}: {took:.2?}: {error}"),
        }
    }
}

enum Client {
    Idle,
    Invoked(CallId, Op),
    Applied(CallId, Ret),
}

/// Clients of registers that are atomic.
struct Clients<'o> {
    options: &'o Options,
    random: Random,
    history: History<Op, Ret>,
    registers: Vec<Option<u64>>,
    last: u64,
}

impl<'o> Clients<'o> {
    fn new(options: &'o Options, seed: u64) -> Self {
        let registers = vec![None; usize::try_from(options.keys).expect("fewer keys")];
        Self { options, random: Random::new(seed), history: History::new(), registers, last: 0 }
    }

    fn run(mut self) -> History<Op, Ret> {
        let mut clients: Vec<Client> = (0..self.options.clients).map(|_| Client::Idle).collect();
        let mut late = Vec::new();
        while self.history.len() < self.options.calls {
            let at = usize::try_from(self.random.below(clients.len() as u64)).expect("an index");
            clients[at] = match std::mem::replace(&mut clients[at], Client::Idle) {
                Client::Idle => {
                    let op = self.op();
                    Client::Invoked(self.history.invoke(op.clone()), op)
                }
                Client::Invoked(_, op) if self.random.percent(self.options.open) => {
                    late.push(op);
                    Client::Idle
                }
                Client::Invoked(id, op) => Client::Applied(id, self.apply(&op)),
                Client::Applied(id, ret) => {
                    self.history.returned(id, ret);
                    Client::Idle
                }
            };
            if late.len() > 4 {
                let at = usize::try_from(self.random.below(late.len() as u64)).expect("an index");
                let op = late.swap_remove(at);
                if self.random.percent(50) {
                    self.apply(&op);
                }
            }
        }
        if self.options.stale {
            let put = self.history.invoke(RegisterOp::Put(0, 0));
            self.history.returned(put, RegisterRet::Done);
            let get = self.history.invoke(RegisterOp::Get(0));
            self.history.returned(get, RegisterRet::Value(Some(1)));
        }
        self.history
    }

    fn op(&mut self) -> Op {
        let key = self.random.below(self.options.keys);
        if self.random.percent(self.options.reads) {
            return RegisterOp::Get(key);
        }
        self.last += 1;
        match self.random.below(10) {
            0..7 => RegisterOp::Put(key, self.last),
            // As a client does that has read before.
            7..9 => RegisterOp::Cas(key, self.registers[usize::try_from(key).expect("an index")], self.last),
            _ => RegisterOp::Delete(key),
        }
    }

    fn apply(&mut self, op: &Op) -> Ret {
        let model = Register::default();
        let at = usize::try_from(model.key(op)).expect("an index");
        model.apply(&mut self.registers[at], op)
    }
}
