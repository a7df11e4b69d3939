//! Accounts, between which money is moved: nobody's balance falls below zero, and no money comes or goes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::{Chunks, Fatal, LogId, StateMachine};
use serde::{Deserialize, Serialize};

use crate::lock;

/// What each account has. All begin with [`Accounts::FIRST`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Accounts(BTreeMap<u8, u64>);

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    pub from: u8,
    pub to: u8,
    pub amount: u64,
}

impl Accounts {
    /// What an account begins with.
    pub const FIRST: u64 = 100;

    /// What an account has.
    pub fn balance(&self, account: u8) -> u64 {
        self.0.get(&account).copied().unwrap_or(Self::FIRST)
    }

    /// Whether the money was there, and was moved.
    pub fn transfer(&mut self, Transfer { from, to, amount }: Transfer) -> bool {
        let (rest, sum) = (self.balance(from).checked_sub(amount), self.balance(to).checked_add(amount));
        let (Some(rest), Some(sum), true) = (rest, sum, from != to) else { return false };
        self.0.extend([(from, rest), (to, sum)]);
        true
    }
}

/// The state machine. Clones share the accounts: keep one to read them.
#[derive(Clone, Debug, Default)]
pub struct Ledger(pub Arc<Mutex<Accounts>>);

#[async_trait]
impl StateMachine for Ledger {
    async fn apply(&mut self, _: LogId, command: Bytes) -> Result<Bytes, Fatal> {
        let moved = postcard::from_bytes(&command).is_ok_and(|transfer| lock(&self.0).transfer(transfer));
        Ok(Bytes::from_static(if moved { b"done" } else { b"refused" }))
    }

    async fn snapshot(&self) -> Result<Box<dyn Chunks>, Fatal> {
        let image = postcard::to_stdvec(&*lock(&self.0)).map_err(|e| Fatal::state_machine(e.to_string()))?;
        Ok(Box::new(vec![Bytes::from(image)].into_iter()))
    }

    async fn restore(&mut self, mut image: Box<dyn Chunks>) -> Result<(), Fatal> {
        let mut bytes = Vec::new();
        while let Some(chunk) = image.next().await? {
            bytes.extend(chunk);
        }
        *lock(&self.0) = postcard::from_bytes(&bytes).map_err(|e| Fatal::state_machine(e.to_string()))?;
        Ok(())
    }
}
