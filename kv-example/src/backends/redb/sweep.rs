//! Dropping what compactions have made unreachable, a few keys at a time, while reads and writes go on.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use raftkv::Fatal;

use super::database::{BATCH, Core, change};
use crate::machine::NEVER_SWEPT;
use crate::store::Sweep;

/// Keys looked through in one step.
const SWEEP: usize = 512;

impl Core {
    /// Whether a thread is to be started that sweeps; it is taken to run from now on.
    pub(super) fn wants_sweeper(&self) -> bool {
        let mut sweeping = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let head = &self.view().head;
        let wanted = !*sweeping && head.swept < head.compacted;
        *sweeping |= wanted;
        wanted
    }

    /// No thread could be started.
    pub(super) fn has_no_sweeper(&self) {
        *self.sweeping.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Drops what compactions made unreachable, a few keys at a time, while reads and writes go on.
    pub(super) fn sweep(&self) {
        let mut next = None;
        loop {
            if next.is_none() {
                let mut sweeping = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
                let head = &self.view().head;
                self.swept.send_replace(head.swept);
                if head.swept >= head.compacted {
                    *sweeping = false;
                    return;
                }
            }
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            match self.sweep_step(next, SWEEP) {
                Ok(further) => next = further,
                Err(error) => {
                    // To whoever waits for this; the next command stops the node.
                    self.swept.send_replace(NEVER_SWEPT);
                    return tracing::error!(%error, "dropping what was compacted failed");
                }
            }
            std::thread::yield_now();
        }
    }

    /// One step of a sweep; none at its end.
    pub(super) fn sweep_step(&self, sweep: Option<Sweep>, keys: usize) -> Result<Option<Sweep>, Fatal> {
        let seen = self.read(self.view(), |store| {
            let sweep = sweep.unwrap_or_else(|| store.start_sweep());
            let slice = store.look(&sweep, keys);
            Ok((sweep, slice))
        });
        let (sweep, slice) = seen.map_err(|error| Fatal::state_machine(error.to_string()))?;
        let mut writer = self.writer();
        writer.bytes += BATCH;
        // Keys may change in between, but what was unreachable stays so.
        self.transact(&mut writer, false, |transaction, state| {
            change(transaction, state, |store| store.drop_garbage(&sweep, slice)).map(Ok)
        })
    }
}
