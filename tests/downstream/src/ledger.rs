//! Accounts, replicated.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::{Chunks, Fatal, LogId, StateMachine};

use crate::{Accounts, lock};

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
