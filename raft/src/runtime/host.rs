//! Where a node's tasks run and what its clock shows: tokio decides, or a simulation's machine.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A machine whose clock runs at a rate of its own, that stands still for a while, or is switched off under the node's feet. For
/// simulations.
#[doc(hidden)]
pub trait Host: fmt::Debug + Send + Sync + 'static {
    /// What the machine's clock shows. It never goes back.
    fn now(&self) -> Duration;
    /// When the machine's clock will show this, as far as can be told now.
    fn instant(&self, time: Duration) -> Instant;
    /// Asked before each step of a task: ready with whether the machine is on; pending while it stands still. `task` is a number
    /// that the host gives out at the first call, for [`Host::ended`].
    fn poll_running(&self, task: &mut Option<u64>, cx: &mut Context<'_>) -> Poll<bool>;
    /// The task is gone.
    fn ended(&self, task: u64);
}

/// Starts tasks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks(pub(crate) Option<Arc<dyn Host>>);

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        match &self.0 {
            None => tokio::spawn(task),
            Some(host) => tokio::spawn(Hosted { host: host.clone(), number: None, task: Some(Box::pin(task)) }),
        }
    }
}

/// A task that runs only while its machine does.
struct Hosted {
    host: Arc<dyn Host>,
    number: Option<u64>,
    task: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Future for Hosted {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let Some(task) = &mut this.task else { return Poll::Ready(()) };
        match this.host.poll_running(&mut this.number, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(true) => std::task::ready!(task.as_mut().poll(cx)),
            // The machine is off: the task is gone, wherever it was.
            Poll::Ready(false) => {}
        }
        this.task = None;
        Poll::Ready(())
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.host.ended(number);
        }
    }
}
