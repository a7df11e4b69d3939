//! What is there before it is read: every key, once, by itself or in transactions of many puts.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};

use super::load::{Client, Method, PAUSE, Plan, on_this_thread};
use super::requests::puts;
use super::wire::{CallError, Connection};

/// How many clients write.
const FILLERS: u64 = 64;
/// The bytes of a transaction: all the fillers together must not fill a server's queues.
const MAX_BYTES: usize = 256 << 10;
/// What a put takes beside its key and value, about.
const OVERHEAD: usize = 64;
/// How often a transaction is tried before the run is given up.
const ATTEMPTS: u32 = 100;

/// Writes every key once.
pub(super) fn fill(plan: &Plan) -> Result<(), String> {
    let bar = ProgressBar::new(plan.keys);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} writing the keys, {pos}/{len}") {
        bar.set_style(style);
    }
    let plan = Rc::new(plan.clone());
    let filled = on_this_thread(async {
        let connections: Vec<_> =
            plan.connections.iter().map(|address| Connection::new(address.clone(), plan.tls.clone())).collect();
        let next = Rc::new(Cell::new(0));
        let mut tasks = Vec::new();
        for n in 0..FILLERS.min(plan.keys) as usize {
            let one = Client::new(&plan, &connections[n % connections.len()], n)?;
            tasks.push(tokio::task::spawn_local(fill_some(one, Rc::clone(&plan), Rc::clone(&next), bar.clone())));
        }
        for task in tasks {
            task.await.map_err(|e| e.to_string())??;
        }
        Ok(())
    });
    bar.finish_and_clear();
    filled.map_err(|e| format!("writing the keys before the run failed: {e}"))
}

/// How many keys a transaction writes, of so many that it may.
fn batch(most: usize, value_size: usize, key_size: usize) -> u64 {
    (MAX_BYTES / (value_size + key_size + OVERHEAD)).clamp(1, most) as u64
}

/// The next keys to write; none when all are taken.
fn take(next: &Cell<u64>, keys: u64, batch: u64) -> Option<Range<u64>> {
    let from = next.get();
    let to = keys.min(from.saturating_add(batch));
    next.set(to);
    (from < to).then_some(from..to)
}

async fn fill_some(mut client: Client, plan: Rc<Plan>, next: Rc<Cell<u64>>, bar: ProgressBar) -> Result<(), String> {
    // Keys have at most 20 digits.
    let batch = batch(plan.fill_batch, plan.value.len(), plan.prefix.len() + 20);
    while let Some(keys) = take(&next, plan.keys, batch) {
        let mut attempt = 0;
        // Writing the same values twice is harmless.
        while let Err(error) = fill_these(&mut client, &plan, keys.clone()).await {
            attempt += 1;
            if attempt == ATTEMPTS {
                return Err(format!("{}: {error}", client.connection.address()));
            }
            tokio::time::sleep(PAUSE).await;
        }
        bar.inc(keys.end - keys.start);
    }
    Ok(())
}

async fn fill_these(client: &mut Client, plan: &Plan, keys: Range<u64>) -> Result<(), CallError> {
    if plan.fill_batch == 1 {
        return client.request(false, keys.start).await;
    }
    let frame = Bytes::from(puts(&plan.prefix, plan.keys, keys, &plan.value));
    client.send(Method::Txn, frame).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_taken_once() {
        let next = Cell::new(0);
        let taken: Vec<_> = std::iter::from_fn(|| take(&next, 10, 4)).collect();
        assert_eq!(taken, [0..4, 4..8, 8..10]);
        assert_eq!(take(&next, 10, 4), None);
        let next = Cell::new(u64::MAX - 1);
        assert_eq!(take(&next, u64::MAX, 4), Some(u64::MAX - 1..u64::MAX));
    }

    #[test]
    fn a_transaction_is_bounded_in_operations_and_in_bytes() {
        assert_eq!(batch(128, 0, 26), 128);
        assert_eq!(batch(128, 256, 26), 128);
        assert_eq!(batch(128, 64 << 10, 26), 3);
        assert_eq!(batch(128, 8 << 20, 26), 1);
        assert_eq!(batch(1, 0, 26), 1);
    }
}
