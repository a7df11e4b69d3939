//! Random calls, compared with a model that is a plain vector.

#![allow(clippy::unwrap_used)]

mod support;

use proptest::prelude::*;
use raftkv::{HardState, Index, LogId, LogWrite, NodeId, Term};
use raftkv_storage_file::Options;
use raftkv_storage_file::sim::SimDisk;
use support::{Call, Model, model_of, open_with, perform, write};

#[derive(Clone, Debug)]
enum Step {
    Append { count: u64, len: usize },
    Replace { back: u64, count: u64, len: usize },
    Vote(u64),
    Compact { back: u64 },
    Jump { ahead: u64 },
    Reopen { orderly: bool },
    Read { back: u64, bytes: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![0..20_usize, 100..600_usize, Just(3000), Just(9000)];
    prop_oneof![
        4 => (1..6_u64, len.clone()).prop_map(|(count, len)| Step::Append { count, len }),
        2 => (1..8_u64, 1..4_u64, len).prop_map(|(back, count, len)| Step::Replace { back, count, len }),
        1 => (1..4_u64).prop_map(Step::Vote),
        1 => (0..6_u64).prop_map(|back| Step::Compact { back }),
        1 => (1..4_u64).prop_map(|ahead| Step::Jump { ahead }),
        1 => any::<bool>().prop_map(|orderly| Step::Reopen { orderly }),
        2 => (0..12_u64, 0..4000_u64).prop_map(|(back, bytes)| Step::Read { back, bytes }),
    ]
}

fn call(step: &Step, model: &Model, term: &mut u64) -> Option<Call> {
    let last = model.last();
    let held = model.entries.len() as u64;
    match *step {
        Step::Append { count, len } => Some(Call::Write(write(*term, last.index.0 + 1..last.index.0 + 1 + count, len))),
        Step::Replace { back, count, len } if held > 0 => {
            *term += 1;
            let first = last.index.0 + 1 - back.min(held);
            Some(Call::Write(write(*term, first..first + count, len)))
        }
        Step::Vote(node) => {
            *term += 1;
            let hard_state = Some(HardState { term: Term(*term), voted_for: Some(NodeId(node)) });
            Some(Call::Write(LogWrite { hard_state, entries: Vec::new() }))
        }
        Step::Compact { back } if held > 0 => {
            let at = usize::try_from(held - 1 - back.min(held - 1)).unwrap();
            Some(Call::Compact(model.entries[at].id))
        }
        Step::Jump { ahead } => Some(Call::Compact(LogId::new(*term, last.index.0 + ahead))),
        Step::Replace { .. } | Step::Compact { .. } | Step::Reopen { .. } | Step::Read { .. } => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_log_does_what_a_vector_does(
        steps in prop::collection::vec(step(), 1..40),
        segment_bytes in prop_oneof![Just(2048_u64), Just(8192), Just(65536)],
        align in prop_oneof![Just(512_u32), Just(1024)],
        direct_from in prop_oneof![Just(0_u64), Just(2048), Just(u64::MAX)],
    ) {
        let options = Options { segment_bytes, align, direct_from, background: false };
        let disk = SimDisk::new();
        let mut wal = open_with(&disk, options).unwrap();
        let mut model = Model::default();
        let mut term = 1;
        for step in &steps {
            if let Some(call) = call(step, &model, &mut term) {
                perform(&mut wal, &call).unwrap();
                wal.settle();
                model.apply(&call);
            }
            if let Step::Reopen { orderly } = step {
                if *orderly { wal.close() } else { drop(wal) }
                wal = open_with(&disk, options).unwrap();
            }
            if let (Step::Read { back, bytes }, Some(entry)) = (step, model.entries.last()) {
                let start = entry.id.index.0.saturating_sub(*back).max(model.base.index.0 + 1);
                let got = wal.read(Index(start)..Index(u64::MAX), *bytes).unwrap();
                let rest: Vec<_> = model.entries.iter().filter(|entry| entry.id.index.0 >= start).cloned().collect();
                let mut sum = 0;
                let fit = rest.iter().take_while(|entry| { sum += entry.cost(); sum <= *bytes }).count().max(1);
                prop_assert_eq!(&got, &rest[..fit]);
            }
            prop_assert_eq!(&model_of(&wal).unwrap(), &model);
        }
    }
}
