//! The main thread of a server: it hears what is to end the node, which runs on threads of its own, and keeps the time until it has ended.
//!
//! A disk that does not answer may hold any thread of the node, or its only one: whoever closes what is on it, or opens it. The process does not wait for them for ever.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until, timeout};

use super::signals::{Ending, Signals};
use crate::cli::Failure;
use crate::config::ServerConfig;

/// After a failure: how long clients may take to fetch the answer that tells them.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long the log may take to write what is under way, at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);
/// How long what is left of a node that has ended may take to go.
const LET_GO: Duration = Duration::from_secs(1);

/// What the node tells the main thread.
pub(super) enum Word {
    /// It has failed, and ends by itself; and why.
    Failed(String),
    /// Clients have their answers, and it lets go of what it has.
    Closing,
    Ended(Result<(), Failure>),
    Panicked(Box<dyn Any + Send>),
}

/// How long the end of a node may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Until requests in progress have their answers, or are refused.
    requests: Duration,
    /// Besides.
    close: Duration,
}

impl Patience {
    pub(crate) fn of(config: &ServerConfig) -> Self {
        // A node that leads may wait for its successor to be elected, and to be heard.
        let close = config.raft.election_timeout.saturating_mul(2).saturating_add(FLUSH_LIMIT);
        Self { requests: config.shutdown_timeout, close }
    }

    /// All of it.
    pub(crate) fn longest(self) -> Duration {
        self.requests.saturating_add(self.close).saturating_add(LET_GO)
    }
}

/// The node's end of the way between it and the main thread.
pub(super) struct Orders {
    endings: UnboundedReceiver<Ending>,
    pub(super) main: Main,
}

/// What the node tells the main thread through.
#[derive(Clone)]
pub(super) struct Main(UnboundedSender<Word>);

impl Orders {
    /// What is to end the node: there may be more than one.
    pub(super) async fn next(&mut self) -> Ending {
        match self.endings.recv().await {
            Some(ending) => ending,
            None => std::future::pending().await,
        }
    }
}

impl Main {
    pub(super) fn tell(&self, word: Word) {
        // The process may be on its way out.
        let _ = self.0.send(word);
    }
}

/// Both ends of the way.
pub(super) fn orders() -> (UnboundedSender<Ending>, UnboundedReceiver<Word>, Orders) {
    let (order, endings) = unbounded_channel();
    let (words, told) = unbounded_channel();
    (order, told, Orders { endings, main: Main(words) })
}

/// Runs the node on its runtime, whose first thread is a new one, until it has ended or took too long for that.
pub(super) fn run<N: Future<Output = Result<(), Failure>>>(
    runtime: Runtime,
    patience: Patience,
    exit_on_stdin_close: bool,
    node: impl FnOnce(Orders) -> N + Send + 'static,
) -> Result<(), Failure> {
    let own = Builder::new_current_thread().enable_all().build()?;
    // Before anything else, so that no signal is missed.
    let mut signals = {
        let _in_it = own.enter();
        Signals::new(exit_on_stdin_close)?
    };
    let (order, told, orders) = orders();
    start(runtime, orders, node)?;
    own.block_on(supervise(patience, async || signals.next().await, &order, told))
}

/// Keeps the time. `heard` waits for the next of what is to end the node.
async fn supervise(
    patience: Patience,
    mut heard: impl AsyncFnMut() -> Ending,
    order: &UnboundedSender<Ending>,
    mut told: UnboundedReceiver<Word>,
) -> Result<(), Failure> {
    let mut end = End::default();
    loop {
        tokio::select! {
            biased;
            word = told.recv() => match word {
                Some(Word::Failed(why)) => end.is_near(Some(why), LAST_WORDS.saturating_add(patience.close)),
                Some(Word::Closing) => end.is_near(None, patience.close),
                Some(Word::Ended(outcome)) => {
                    gone(&mut told).await;
                    return outcome;
                }
                Some(Word::Panicked(panic)) => {
                    gone(&mut told).await;
                    resume_unwind(panic);
                }
                None => return Err(Failure::runtime("the node's thread has ended without a word")),
            },
            ending = heard() => {
                // Told twice, it does not wait for requests in progress.
                let requests = if end.until.is_some() { Duration::ZERO } else { patience.requests };
                end.is_near(Some(ending.to_string()), requests.saturating_add(patience.close));
                let _ = order.send(ending);
            }
            () = end.is_overdue() => return Err(end.failure()),
        }
    }
}

/// Waits for the node's threads, for a while: then there is nobody left who could tell anything.
async fn gone(told: &mut UnboundedReceiver<Word>) {
    let _ = timeout(LET_GO, told.recv()).await;
}

fn start<N: Future<Output = Result<(), Failure>>>(
    runtime: Runtime,
    orders: Orders,
    node: impl FnOnce(Orders) -> N + Send + 'static,
) -> io::Result<()> {
    let run = move || {
        let main = orders.main.clone();
        let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(node(orders))));
        main.tell(outcome.map_or_else(Word::Panicked, Word::Ended));
        runtime.shutdown_timeout(LET_GO / 2);
    };
    std::thread::Builder::new().name("raftkv-node".into()).spawn(run).map(drop)
}

/// The end that the node has been told of, or has told of.
#[derive(Default)]
struct End {
    /// What it ends for, first and later.
    reasons: Vec<String>,
    begun: Option<Instant>,
    until: Option<Instant>,
}

impl End {
    /// It comes within this time, if not before. A limit beyond all times is none.
    fn is_near(&mut self, why: Option<String>, limit: Duration) {
        let now = Instant::now();
        self.begun.get_or_insert(now);
        self.reasons.extend(why);
        self.until = self.until.into_iter().chain(now.checked_add(limit)).min();
    }

    async fn is_overdue(&self) {
        match self.until {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    fn failure(&self) -> Failure {
        let taken = self.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        Failure::runtime(format!(
            "{}: the node did not end within {} s, perhaps because its disk does not answer; what was acknowledged is on it",
            self.reasons.join(", "),
            taken.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::mpsc;

    use super::*;

    const SHORT: Patience = Patience { requests: Duration::from_millis(50), close: Duration::from_millis(50) };
    const LONG: Patience = Patience { requests: Duration::from_secs(60), close: Duration::from_secs(60) };

    /// What is on a disk that does not answer: to close it takes until the test ends.
    struct Held(mpsc::Receiver<()>);

    impl Drop for Held {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }

    /// What comes of a node that is told to end once it has begun, and how long that took.
    fn ends<N: Future<Output = Result<(), Failure>>>(
        workers: usize,
        patience: Patience,
        node: impl FnOnce(Orders, Held) -> N + Send + 'static,
    ) -> (Result<(), String>, Duration) {
        let (answers, disk) = mpsc::channel();
        let runtime = super::super::runtime(workers).unwrap();
        let own = Builder::new_current_thread().enable_all().build().unwrap();
        let begun = std::time::Instant::now();
        let mut told = false;
        let mut heard =
            async || if std::mem::replace(&mut told, true) { pending().await } else { Ending::Signal("SIGTERM") };
        let (order, words, orders) = orders();
        start(runtime, orders, move |orders| node(orders, Held(disk))).unwrap();
        let outcome = own.block_on(supervise(patience, &mut heard, &order, words));
        drop(answers);
        (outcome.map_err(|failure| format!("{failure:?}")), begun.elapsed())
    }

    fn took_too_long((outcome, taken): (Result<(), String>, Duration), why: &str) {
        let words = outcome.unwrap_err();
        assert!(words.contains(why) && words.contains("did not end within"), "{words}");
        assert!(taken < LET_GO * 10, "{taken:?}");
    }

    #[test]
    fn a_disk_that_holds_the_thread_on_which_the_node_starts_or_ends_is_not_waited_for() {
        for workers in [1, 2] {
            took_too_long(
                ends(workers, SHORT, async |_, held| {
                    drop(held);
                    Ok(())
                }),
                "SIGTERM",
            );
            let at_the_end = ends(workers, SHORT, async |mut orders, held| {
                orders.next().await;
                orders.main.tell(Word::Closing);
                drop(held);
                Ok(())
            });
            took_too_long(at_the_end, "SIGTERM");
        }
    }

    #[test]
    fn a_disk_that_holds_a_node_which_has_failed_is_not_waited_for_and_the_reason_is_told() {
        let node = async |orders: Orders, held| {
            orders.main.tell(Word::Failed("a page is damaged".into()));
            orders.main.tell(Word::Closing);
            drop(held);
            Ok(())
        };
        took_too_long(ends(1, SHORT, node), "a page is damaged");
    }

    /// Its tasks own the log, whose end waits for the thread that writes it.
    #[test]
    fn a_disk_that_holds_what_is_left_of_a_node_is_not_waited_for() {
        for (workers, panics) in [(1, false), (2, false), (1, true), (2, true)] {
            let ending = std::panic::catch_unwind(|| {
                ends(workers, LONG, async move |_, held| {
                    let (began, begins) = tokio::sync::oneshot::channel();
                    tokio::spawn(async move {
                        let _held = held;
                        let _ = began.send(());
                        pending::<()>().await;
                    });
                    begins.await.unwrap();
                    assert!(!panics, "on purpose");
                    Ok(())
                })
            });
            assert_eq!(ending.is_err(), panics, "with {workers} workers");
            if let Ok((outcome, taken)) = ending {
                outcome.unwrap();
                assert!(taken < LET_GO * 10, "with {workers} workers: {taken:?}");
            }
        }
    }

    #[test]
    fn a_node_that_ends_in_time_says_how_it_went() {
        let (outcome, taken) = ends(1, LONG, async |mut orders, held| {
            std::mem::forget(held);
            assert!(matches!(orders.next().await, Ending::Signal("SIGTERM")));
            orders.main.tell(Word::Closing);
            // Nobody has told it another time.
            assert!(timeout(Duration::from_millis(10), orders.next()).await.is_err());
            Err(Failure::usage("--data"))
        });
        assert!(outcome.unwrap_err().contains("--data"));
        assert!(taken < LET_GO * 10, "{taken:?}");
    }
}
