//! A small state machine to simulate stores with: a few registers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::subject::Subject;
use crate::error::Fatal;
use crate::testing::linearizability::{Register, RegisterOp, RegisterRet};
use crate::testing::{Random, lock};
use crate::traits::{Chunks, StateMachine};
use crate::types::LogId;

/// A few registers, which are put, compared and set, deleted and read: a [`Subject`] for those who bring stores and no state machine.
/// Commands are padded to different sizes.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// How many there are. Few make clients meet.
    pub keys: u64,
    /// The most bytes that a command is padded with.
    pub padding: u64,
}

impl Default for Registers {
    fn default() -> Self {
        Self { keys: 4, padding: 900 }
    }
}

type Values = Arc<Mutex<BTreeMap<u64, u64>>>;

/// The machine of [`Registers`].
#[derive(Debug, Default)]
pub struct RegisterMachine(Values);

/// Reads the machine of [`Registers`].
#[derive(Clone, Debug, Default)]
pub struct RegisterView(Values);

type Op = RegisterOp<u64, u64>;
type Ret = RegisterRet<u64>;

const PUT: u8 = 1;
const CAS: u8 = 2;
const DELETE: u8 = 3;

impl Subject for Registers {
    type Machine = RegisterMachine;
    type View = RegisterView;
    type Model = Register<u64, u64>;

    fn model(&self) -> Self::Model {
        Register::default()
    }

    fn start(&self) -> (RegisterMachine, RegisterView) {
        let values = Values::default();
        (RegisterMachine(values.clone()), RegisterView(values))
    }

    fn random_op(&self, random: &mut Random) -> Op {
        let key = random.below(self.keys);
        // Values are told apart, so that a read shows which write it saw; a few are equal, so that comparisons succeed.
        let value = |random: &mut Random| if random.percent(20) { random.below(3) } else { random.below(1 << 40) };
        match random.below(10) {
            0..=3 => RegisterOp::Get(key),
            4..=7 => RegisterOp::Put(key, value(random)),
            8 => {
                let expected = random.percent(70).then(|| random.below(3));
                RegisterOp::Cas(key, expected, value(random))
            }
            _ => RegisterOp::Delete(key),
        }
    }

    fn command(&self, op: &Op) -> Option<Bytes> {
        let mut bytes = BytesMut::new();
        let last = match op {
            RegisterOp::Get(_) => return None,
            RegisterOp::Put(key, value) => {
                bytes.put_u8(PUT);
                bytes.put_u64(*key);
                bytes.put_u64(*value);
                *value
            }
            RegisterOp::Cas(key, expected, value) => {
                bytes.put_u8(CAS);
                bytes.put_u64(*key);
                bytes.put_u8(u8::from(expected.is_some()));
                bytes.put_u64(expected.unwrap_or(0));
                bytes.put_u64(*value);
                *value
            }
            RegisterOp::Delete(key) => {
                bytes.put_u8(DELETE);
                bytes.put_u64(*key);
                *key
            }
        };
        let padding = Random::new(last).below(self.padding + 1);
        bytes.put_bytes(0, usize::try_from(padding).unwrap_or(0));
        Some(bytes.freeze())
    }

    fn answer(&self, op: &Op, answer: &Bytes) -> Ret {
        match op {
            RegisterOp::Cas(..) => RegisterRet::Swapped(answer.first() == Some(&1)),
            RegisterOp::Get(_) | RegisterOp::Put(..) | RegisterOp::Delete(_) => RegisterRet::Done,
        }
    }

    fn look(&self, view: &RegisterView, op: &Op) -> Ret {
        match op {
            RegisterOp::Get(key) => RegisterRet::Value(lock(&view.0).get(key).copied()),
            RegisterOp::Put(..) | RegisterOp::Cas(..) | RegisterOp::Delete(_) => RegisterRet::Done,
        }
    }
}

impl RegisterMachine {
    /// Carries a command out; none for a command that makes no sense.
    fn carry_out(&self, mut command: Bytes) -> Option<bool> {
        let mut values = lock(&self.0);
        match command.try_get_u8().ok()? {
            PUT => {
                let (key, value) = (command.try_get_u64().ok()?, command.try_get_u64().ok()?);
                values.insert(key, value);
                Some(true)
            }
            CAS => {
                let (key, some) = (command.try_get_u64().ok()?, command.try_get_u8().ok()? == 1);
                let (expected, value) = (command.try_get_u64().ok()?, command.try_get_u64().ok()?);
                let swapped = values.get(&key).copied() == some.then_some(expected);
                if swapped {
                    values.insert(key, value);
                }
                Some(swapped)
            }
            DELETE => Some(values.remove(&command.try_get_u64().ok()?).is_some()),
            _ => None,
        }
    }
}

#[async_trait]
impl StateMachine for RegisterMachine {
    async fn apply(&mut self, at: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        let done = self.carry_out(command);
        let done = done.ok_or_else(|| Fatal::state_machine(format!("the command at {at} makes no sense")))?;
        Ok(Bytes::from_static(if done { &[1] } else { &[0] }))
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        let mut bytes = BytesMut::new();
        for (key, value) in lock(&self.0).iter() {
            bytes.put_u64(*key);
            bytes.put_u64(*value);
        }
        Ok(Box::new(vec![bytes.freeze()].into_iter()))
    }

    async fn restore(&mut self, mut image: Box<dyn Chunks>) -> Result<(), Fatal> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = image.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        let mut values = BTreeMap::new();
        while bytes.len() >= 16 {
            values.insert(bytes.get_u64(), bytes.get_u64());
        }
        *lock(&self.0) = values;
        Ok(())
    }
}
