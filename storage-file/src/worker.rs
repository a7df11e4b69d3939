//! Work on a disk, off the threads that serve.

use std::sync::Arc;

use raftkv::StorageError;
use tokio::sync::Mutex;

/// What a store keeps on its disk, and does its work with: one piece at a time, in the order in which it was asked for, on tokio's threads for work that
/// blocks, and none any more after one that failed or panicked, since nobody knows then what is on the disk. Clones share it.
///
/// A piece of work that was begun is done to its end, also if nobody waits for it any more.
///
/// ```
/// # async fn example() -> Result<(), raftkv::StorageError> {
/// use raftkv::StorageError;
/// use raftkv_storage_file::parts::Worker;
///
/// let lines = Worker::new(Vec::new());
/// lines.run(|lines| Ok(lines.push("one"))).await?;
/// lines.run(|_| Err::<(), _>(StorageError::Misuse("two".into()))).await.expect_err("as it says");
/// let refused = lines.run(|lines| Ok(lines.len())).await;
/// assert!(matches!(refused, Err(StorageError::Sticky(_))));
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Debug)]
pub struct Worker<T>(Arc<Mutex<Worked<T>>>);

#[derive(Debug)]
struct Worked<T> {
    on: T,
    /// Why nothing is done any more.
    failed: Option<String>,
}

impl<T> Clone for Worker<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + 'static> Worker<T> {
    /// Works on this.
    pub fn new(on: T) -> Self {
        Self(Arc::new(Mutex::new(Worked { on, failed: None })))
    }

    /// Does this when what was asked for before is done.
    ///
    /// # Errors
    /// That of the work; [`StorageError::Sticky`] if something failed before, or the work panicked.
    pub async fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut T) -> Result<R, StorageError> + Send + 'static,
    ) -> Result<R, StorageError> {
        // Held by the thread that works, whoever waits: so nobody overtakes.
        let mut worked = Arc::clone(&self.0).lock_owned().await;
        let working = tokio::task::spawn_blocking(move || {
            let Worked { on, failed } = &mut *worked;
            if let Some(reason) = failed {
                return Err(StorageError::Sticky(reason.clone()));
            }
            // That is what is left if the work panics.
            *failed = Some("earlier work was cut off".into());
            let done = work(on);
            *failed = done.as_ref().err().map(ToString::to_string);
            done
        });
        working.await.unwrap_or_else(|error| Err(StorageError::Sticky(format!("the work was cut off: {error}"))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn nothing_is_done_after_a_failure_or_a_panic() {
        let full = || StorageError::Full { op: "write", path: "log".into() };
        let failing = Worker::new(0);
        assert!(matches!(failing.run(move |_| Err::<(), _>(full())).await, Err(StorageError::Full { .. })));
        let refused = failing.clone().run(|n| Ok(*n + 1)).await.unwrap_err().to_string();
        assert!(refused.contains(&full().to_string()), "{refused}");
        let panicking = Worker::new(0);
        let cut_off = panicking.run(|_| -> Result<(), StorageError> { panic!("on purpose") }).await;
        assert!(matches!(cut_off, Err(StorageError::Sticky(_))));
        assert!(matches!(panicking.run(|n| Ok(*n + 1)).await, Err(StorageError::Sticky(_))));
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_done_before_what_comes_later() {
        let worker = Worker::new(Vec::new());
        let (go, gate) = channel::<()>();
        let first = worker.run(move |done: &mut Vec<u8>| {
            let _ = gate.recv();
            done.push(1);
            Ok(())
        });
        // It is begun, and then given up.
        assert!(tokio::time::timeout(Duration::from_millis(20), first).await.is_err());
        let second = worker.run(|done| {
            done.push(2);
            Ok(done.clone())
        });
        let mut second = Box::pin(second);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), &mut second).await.is_err(),
            "it did not wait its turn"
        );
        go.send(()).unwrap();
        assert_eq!(second.await.unwrap(), [1, 2]);
    }
}
