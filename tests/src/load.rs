//! Clients that write and read without pause, and remember everything.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::task::JoinSet;

use crate::client::{Endpoint, Failure};
use crate::history::{Outcome, Write};
use crate::hot;

/// How long a set of hot keys is in use, in seconds.
const HOT_SECONDS: u64 = 10;

/// How many clients, and how busy.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// What all keys begin with.
    pub prefix: String,
    /// Writers. Half of them try each write again until they know what came of it, the other half give up at the first
    /// failure and go on with the next write: so the history has refused and unknown writes too.
    pub writers: usize,
    /// Readers. Each reads, linearizably at any node, what was acknowledged just before.
    pub readers: usize,
    /// Clients that read, write, compare and swap, and delete a few keys, each against the others. See [`hot`](crate::hot).
    pub hot: usize,
    /// How many such keys at a time. After some seconds they go on to others, so that the calls without an answer at one key, and
    /// with them the work of the check, stay few.
    pub hot_keys: usize,
    /// The pause between two requests of a client.
    pub pause: Duration,
    /// How long one attempt may take.
    pub attempt: Duration,
    /// The size of a value, in bytes.
    pub value_size: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            prefix: "load/".into(),
            writers: 8,
            readers: 4,
            hot: 5,
            hot_keys: 5,
            pause: Duration::from_millis(5),
            attempt: Duration::from_secs(2),
            value_size: 64,
        }
    }
}

/// A running load. Dropping it stops it.
#[derive(Debug)]
pub struct Load {
    ledger: Arc<Ledger>,
    clients: JoinSet<()>,
    options: Arc<LoadOptions>,
}

/// What is left when the load has stopped.
#[derive(Debug)]
pub struct History {
    /// What all keys begin with.
    pub prefix: String,
    /// Every write, in no order.
    pub writes: Vec<Write>,
    /// How many reads were answered.
    pub reads: u64,
    /// Reads that contradict what had been acknowledged, in words.
    pub stale: Vec<String>,
    /// What was done to the hot keys.
    pub hot: hot::Book,
    /// How many hot keys there were.
    pub hot_keys: usize,
}

#[derive(Debug)]
struct Ledger {
    begun: Instant,
    stop: AtomicBool,
    /// The highest revision that anybody was told of.
    highest: AtomicI64,
    book: Mutex<Book>,
    hot: Mutex<hot::Book>,
}

#[derive(Debug, Default)]
struct Book {
    writes: Vec<Write>,
    /// A recent acknowledged write.
    latest: Option<(String, i64)>,
    reads: u64,
    stale: Vec<String>,
}

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hot(&self) -> MutexGuard<'_, hot::Book> {
        self.hot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys that are hot now.
    fn hot_keys(&self, options: &LoadOptions) -> Range<usize> {
        let age = self.begun.elapsed().as_secs() / HOT_SECONDS;
        let first = usize::try_from(age).unwrap_or(0) * options.hot_keys;
        first..first + options.hot_keys
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn highest(&self) -> i64 {
        self.highest.load(Ordering::SeqCst)
    }

    fn record(&self, write: Write) {
        let mut book = self.book();
        if let Outcome::Acknowledged { revision, .. } = write.outcome {
            book.latest = Some((write.key.clone(), revision));
            self.highest.fetch_max(revision, Ordering::SeqCst);
        }
        book.writes.push(write);
    }
}

impl Load {
    /// Starts the clients. Each has its own connections to all of the servers.
    ///
    /// # Errors
    /// An address is none.
    pub fn start(servers: &[String], options: LoadOptions) -> Result<Self> {
        let ledger = Arc::new(Ledger {
            begun: Instant::now(),
            stop: AtomicBool::new(false),
            highest: AtomicI64::new(0),
            book: Mutex::default(),
            hot: Mutex::default(),
        });
        let options = Arc::new(options);
        let mut clients = JoinSet::new();
        for n in 0..options.writers + options.readers + options.hot {
            let endpoints = servers.iter().map(|address| Endpoint::new(address)).collect::<Result<Vec<_>>>()?;
            let client = Client { n, next: n, endpoints, ledger: Arc::clone(&ledger), options: Arc::clone(&options) };
            if n < options.writers {
                clients.spawn(client.write_on());
            } else if n < options.writers + options.readers {
                clients.spawn(client.read_on());
            } else {
                clients.spawn(client.mix_on());
            }
        }
        Ok(Self { ledger, clients, options })
    }

    /// How many writes were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        let book = self.ledger.book();
        book.writes.iter().filter(|write| matches!(write.outcome, Outcome::Acknowledged { .. })).count()
    }

    /// Waits until that many more writes were acknowledged.
    ///
    /// # Errors
    /// They were not, in time.
    pub async fn wait_for(&self, more: usize, limit: Duration) -> Result<()> {
        let goal = self.acknowledged() + more;
        let deadline = Instant::now() + limit;
        while self.acknowledged() < goal {
            if Instant::now() > deadline {
                bail!("only {} of {more} writes were acknowledged within {limit:?}", self.acknowledged() + more - goal);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Waits for the first acknowledged write that was sent after a moment, and returns when its answer came.
    ///
    /// # Errors
    /// There was none, in time.
    pub async fn first_after(&self, moment: Instant, limit: Duration) -> Result<Instant> {
        let mut seen = 0;
        loop {
            {
                let book = self.ledger.book();
                // Writers record in the order of the answers, so the first that fits is the earliest, or nearly.
                let fits = book.writes[seen..].iter().filter_map(|write| match write.outcome {
                    Outcome::Acknowledged { sent, at, .. } if sent > moment => Some(at),
                    Outcome::Acknowledged { .. } | Outcome::Refused | Outcome::Unknown => None,
                });
                if let Some(first) = fits.min() {
                    return Ok(first);
                }
                seen = book.writes.len();
            }
            if moment.elapsed() > limit {
                bail!("no write was acknowledged within {limit:?}");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets every client finish the request it is at, and returns what they remember.
    ///
    /// # Errors
    /// A client did not finish, or panicked.
    pub async fn stop(mut self) -> Result<History> {
        self.ledger.stop.store(true, Ordering::Relaxed);
        let limit = self.options.attempt * 2 + Duration::from_secs(5);
        let all = async {
            while let Some(ended) = self.clients.join_next().await {
                ended?;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(limit, all).await {
            Ok(ended) => ended?,
            Err(_) => bail!("the clients did not stop within {limit:?}"),
        }
        let book = std::mem::take(&mut *self.ledger.book());
        let hot = std::mem::take(&mut *self.ledger.hot());
        let Book { writes, reads, stale, .. } = book;
        Ok(History {
            prefix: self.options.prefix.clone(),
            writes,
            reads,
            stale,
            hot,
            hot_keys: self.ledger.hot_keys(&self.options).end,
        })
    }
}

struct Client {
    n: usize,
    /// The endpoint to ask next.
    next: usize,
    endpoints: Vec<Endpoint>,
    ledger: Arc<Ledger>,
    options: Arc<LoadOptions>,
}

impl Client {
    async fn write_on(mut self) {
        let mut sequence = 0;
        while !self.ledger.stopped() {
            sequence += 1;
            let key = format!("{}{:02}/{sequence:08}", self.options.prefix, self.n);
            let value = format!("{}:{sequence}:{}", self.n, "x".repeat(self.options.value_size));
            let floor = self.ledger.highest();
            let outcome = if self.n.is_multiple_of(2) {
                self.write_persistently(&key, &value).await
            } else {
                self.write_once(&key, &value).await
            };
            self.ledger.record(Write { key, value, writer: self.n, sequence, floor, outcome });
            tokio::time::sleep(self.options.pause).await;
        }
    }

    /// Tries until it is known to be there, or the load stops.
    async fn write_persistently(&mut self, key: &str, value: &str) -> Outcome {
        let mut certain = true;
        loop {
            let sent = Instant::now();
            match self.endpoint().create(key, value, self.options.attempt).await {
                Ok(revision) => return Outcome::Acknowledged { revision, sent, at: Instant::now() },
                Err(failure) => {
                    certain &= failure.certain;
                    self.turn(sent).await;
                }
            }
            if self.ledger.stopped() {
                return if certain { Outcome::Refused } else { Outcome::Unknown };
            }
        }
    }

    async fn write_once(&mut self, key: &str, value: &str) -> Outcome {
        let sent = Instant::now();
        match self.endpoint().put(key, value, self.options.attempt).await {
            Ok(revision) => Outcome::Acknowledged { revision, sent, at: Instant::now() },
            Err(Failure { certain, .. }) => {
                self.turn(sent).await;
                if certain { Outcome::Refused } else { Outcome::Unknown }
            }
        }
    }

    async fn read_on(mut self) {
        while !self.ledger.stopped() {
            let sent = Instant::now();
            let floor = self.ledger.highest();
            let latest = self.ledger.book().latest.clone();
            let Some((key, revision)) = latest else {
                tokio::time::sleep(self.options.pause).await;
                continue;
            };
            // Each read at another node: any of them must give a linearizable answer.
            self.next += 1;
            match self.endpoint().get(&key, false, self.options.attempt).await {
                Ok(found) => {
                    let there = found.kvs.first().is_some_and(|kv| kv.mod_revision == revision);
                    let mut book = self.ledger.book();
                    book.reads += 1;
                    if !there || found.revision < floor {
                        let fault = format!(
                            "STALE: {} answered at revision {} with {:?}, when {key} at {revision} and revision {floor} were acknowledged before",
                            self.endpoint().address(),
                            found.revision,
                            found.kvs,
                        );
                        book.stale.push(fault);
                    }
                }
                Err(_) => self.turn(sent).await,
            }
            tokio::time::sleep(self.options.pause).await;
        }
    }

    /// Does all kinds of things to the hot keys, each once.
    async fn mix_on(mut self) {
        let mut asker = hot::Asker::default();
        let mut count = 0;
        while !self.ledger.stopped() {
            let sent = Instant::now();
            count += 1;
            let op = asker.next(self.ledger.hot_keys(&self.options), ((self.n as u64) << 32) | count);
            let begun = self.ledger.hot().begin(op.clone());
            let result = hot::ask(self.endpoint(), &self.options.prefix, &op, self.options.attempt).await;
            self.ledger.hot().end(&begun, &result);
            match result {
                Ok(answer) => {
                    asker.learn(&op, &answer);
                    // Each at another node, so that they meet.
                    self.next += 1;
                }
                Err(_) => self.turn(sent).await,
            }
            tokio::time::sleep(self.options.pause).await;
        }
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoints[self.next % self.endpoints.len()]
    }

    /// Goes on to the next endpoint, not faster than a server that is down can be asked without harm.
    async fn turn(&mut self, sent: Instant) {
        self.next += 1;
        if sent.elapsed() < Duration::from_millis(10) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
