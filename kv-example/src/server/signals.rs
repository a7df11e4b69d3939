//! What ends a server.

use std::fmt;
use std::io::Read;

use raftkv::Fatal;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Why a server ends.
#[derive(Debug)]
pub(super) enum Ending {
    Signal(&'static str),
    /// The process that started it is gone.
    StdinClosed,
    Failed(Fatal),
    /// It hears clients, or members, no more; and why.
    Deaf(String),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => write!(f, "{name}"),
            Self::StdinClosed => write!(f, "stdin closed"),
            Self::Failed(fatal) => write!(f, "{fatal}"),
            Self::Deaf(reason) => f.write_str(reason),
        }
    }
}

/// The signals to shut down, and the watchdog.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    watchdog: Option<oneshot::Receiver<()>>,
}

impl Signals {
    pub(super) fn new(exit_on_stdin_close: bool) -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            watchdog: exit_on_stdin_close.then(watch_stdin),
        })
    }

    pub(super) async fn next(&mut self) -> Ending {
        let watchdog = &mut self.watchdog;
        let stdin_closed = async {
            match watchdog {
                Some(closed) => drop(closed.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Ending::Signal("SIGTERM"),
            _ = self.interrupt.recv() => Ending::Signal("SIGINT"),
            () = stdin_closed => {
                self.watchdog = None;
                Ending::StdinClosed
            }
        }
    }
}

/// Reads stdin to its end on a thread of its own, which ends with the process at the latest.
fn watch_stdin() -> oneshot::Receiver<()> {
    let (closed, wait) = oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        let mut stdin = std::io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(n) if n > 0 => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break,
            }
        }
        // The server may be gone already.
        let _ = closed.send(());
    });
    wait
}
