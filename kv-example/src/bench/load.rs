//! The clients and their threads.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use indicatif::{ProgressBar, ProgressStyle};
use prost::Message;
use raftkv::transport_kit::Tls;
use tokio::task::LocalSet;

use super::pacer::Schedule;
use super::requests::{FRAME_HEAD, Random, Template, frame, value};
use super::stats::Stats;
use super::wire::{CallError, Connection, Route, call};
use super::{BenchArgs, Rate, Workload};
use crate::api::etcdserverpb::{StatusRequest, StatusResponse};
use crate::config::HostPort;
use crate::service::Freshness;

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// After an error a client waits this long, so that it does not spin.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Everything a thread needs to know.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) connections: Vec<HostPort>,
    pub(super) tls: Option<Tls>,
    clients: usize,
    threads: usize,
    read_share: f64,
    rate: Rate,
    warmup: Duration,
    duration: Duration,
    timeout: Duration,
    pub(super) keys: u64,
    pub(super) prefix: String,
    pub(super) value: Bytes,
    put: Template,
    get: Template,
    freshness: Option<Freshness>,
    token: Option<HeaderValue>,
    seed: u64,
    /// How many keys a transaction writes of those that are there before.
    pub(super) fill_batch: usize,
}

impl Plan {
    pub(super) fn new(
        args: &BenchArgs,
        connections: Vec<HostPort>,
        tls: Option<Tls>,
        token: Option<HeaderValue>,
    ) -> Self {
        let value = value(args.value_size as usize, args.seed);
        Self {
            connections,
            tls,
            clients: args.clients as usize,
            threads: args.threads as usize,
            read_share: match args.workload {
                Workload::Put => 0.0,
                Workload::Get => 1.0,
                Workload::Mixed => args.read_ratio,
            },
            rate: args.rate,
            warmup: args.warmup,
            duration: args.duration,
            timeout: args.timeout,
            keys: args.keys,
            prefix: args.prefix.clone(),
            put: Template::put(&args.prefix, args.keys, value.clone()),
            value,
            get: Template::get(&args.prefix, args.keys, args.freshness() == Some(Freshness::Stale)),
            freshness: args.freshness(),
            token,
            seed: args.seed,
            fill_batch: args.fill_batch as usize,
        }
    }
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Method {
    Put,
    Range,
    Txn,
}

/// One client: a place in a connection, its own requests, its own luck.
pub(super) struct Client {
    pub(super) connection: Rc<Connection>,
    sender: Option<(u64, h2::client::SendRequest<Bytes>)>,
    put_route: Route,
    get_route: Route,
    txn_route: Route,
    put: Template,
    get: Template,
    /// The least that a found key's answer has.
    answer_size: usize,
    timeout: Duration,
    random: Random,
}

impl Client {
    pub(super) fn new(plan: &Plan, connection: &Rc<Connection>, n: usize) -> Result<Self, String> {
        let route = |path| {
            let route = Route::new(connection.address(), plan.tls.is_some(), path)?;
            Ok::<_, String>(route.signed(plan.token.as_ref()))
        };
        Ok(Self {
            connection: Rc::clone(connection),
            sender: None,
            put_route: route(PUT)?,
            get_route: route(RANGE)?.fresh(plan.freshness),
            txn_route: route(TXN)?,
            put: plan.put.clone(),
            get: plan.get.clone(),
            answer_size: plan.value.len() + FRAME_HEAD,
            timeout: plan.timeout,
            random: Random::nth(plan.seed, n as u64),
        })
    }

    /// Reads or writes a key.
    pub(super) async fn request(&mut self, read: bool, key: u64) -> Result<(), CallError> {
        if !read {
            let frame = self.put.frame(key);
            return self.send(Method::Put, frame).await.map(drop);
        }
        let frame = self.get.frame(key);
        let length = self.send(Method::Range, frame).await?;
        if length < self.answer_size {
            return Err(CallError::Answer("the key is missing, or its value is short".into()));
        }
        Ok(())
    }

    /// Clients of a connection open it one after the other, so where each attempt takes long, the last ones would wait for very long.
    async fn connect(&self, lost: Option<u64>) -> Result<(u64, h2::client::SendRequest<Bytes>), CallError> {
        let connected = tokio::time::timeout(self.timeout, self.connection.sender(lost)).await;
        connected.unwrap_or(Err(CallError::Timeout))
    }

    /// Sends a frame, and gives the length of the answer.
    pub(super) async fn send(&mut self, method: Method, frame: Bytes) -> Result<usize, CallError> {
        let (generation, mut sender) = match self.sender.take() {
            Some(sender) => sender,
            None => self.connect(None).await?,
        };
        let route = match method {
            Method::Put => &self.put_route,
            Method::Range => &self.get_route,
            Method::Txn => &self.txn_route,
        };
        let answer = match tokio::time::timeout(self.timeout, call(&mut sender, route, frame, None)).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Timeout),
        };
        self.sender = match &answer {
            // The next request gets a new connection, which only the first of the losers opens.
            Err(CallError::Lost(_)) => self.connect(Some(generation)).await.ok(),
            Ok(_) | Err(CallError::Connect(_) | CallError::Timeout | CallError::Status(..) | CallError::Answer(_)) => {
                Some((generation, sender))
            }
        };
        answer
    }
}

/// What the clients of one thread share.
struct Shared {
    stats: RefCell<Stats>,
    schedule: Option<Schedule>,
    done: Arc<AtomicU64>,
    measure_from: Instant,
    end: Instant,
    /// When clients give up on requests that were due before the end.
    give_up: Instant,
}

async fn client(mut client: Client, plan: Rc<Plan>, shared: Rc<Shared>) {
    loop {
        let due = match &shared.schedule {
            Some(schedule) => match schedule.next().await {
                Some(due) if Instant::now() < shared.give_up => due,
                Some(_) | None => return,
            },
            None => Instant::now(),
        };
        if due >= shared.end {
            return;
        }
        let read = client.random.chance(plan.read_share);
        let key = client.random.below(plan.keys);
        let answer = client.request(read, key).await;
        let now = Instant::now();
        shared.done.fetch_add(1, Ordering::Relaxed);
        if due >= shared.measure_from {
            let mut stats = shared.stats.borrow_mut();
            match &answer {
                Ok(()) => {
                    let answered = (now < shared.end).then(|| now - shared.measure_from);
                    stats.success(read, now - due, answered);
                }
                Err(error) => stats.failure(error),
            }
        }
        if answer.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Runs the plan, and gives what all threads saw together.
pub(super) fn run(plan: &Plan) -> Result<Stats, String> {
    let done = Arc::new(AtomicU64::new(0));
    // Time to open all connections, so that all threads begin together.
    let start = Instant::now() + Duration::from_millis(200);
    let threads: Vec<_> = (0..plan.threads)
        .map(|n| {
            let (plan, done) = (plan.clone(), Arc::clone(&done));
            std::thread::spawn(move || thread(plan, n, start, done))
        })
        .collect();
    show_progress(plan, start, &done, || threads.iter().all(std::thread::JoinHandle::is_finished));
    let mut all = Stats::new(seconds(plan))?;
    for thread in threads {
        all.merge(&thread.join().map_err(|_| "a thread of the load generator panicked")??)?;
    }
    Ok(all)
}

fn seconds(plan: &Plan) -> usize {
    plan.duration.as_secs_f64().ceil() as usize
}

fn thread(plan: Plan, thread: usize, start: Instant, done: Arc<AtomicU64>) -> Result<Stats, String> {
    on_this_thread(async move {
        let own = |n: &usize| n % plan.threads == thread;
        let mine = (0..plan.connections.len()).filter(own);
        let connections: Vec<_> =
            mine.map(|n| Connection::new(plan.connections[n].clone(), plan.tls.clone())).collect();
        let numbers: Vec<_> = (0..plan.clients).filter(own).collect();
        let measure_from = start + plan.warmup;
        let end = measure_from + plan.duration;
        let schedule = match plan.rate {
            Rate::Max => None,
            Rate::PerSecond(rate) => {
                let share = rate * numbers.len() as f64 / plan.clients as f64;
                Some(Schedule::begin(start, share, plan.warmup + plan.duration, numbers.len()))
            }
        };
        let shared = Rc::new(Shared {
            stats: RefCell::new(Stats::new(seconds(&plan))?),
            schedule,
            done,
            measure_from,
            end,
            give_up: end + plan.timeout,
        });
        for connection in &connections {
            // A server that is down now may come up later; its clients count the errors.
            let _ = connection.sender(None).await;
        }
        tokio::time::sleep_until(start.into()).await;
        let plan = Rc::new(plan);
        let mut tasks = Vec::new();
        for (n, number) in numbers.iter().enumerate() {
            let one = Client::new(&plan, &connections[n % connections.len()], *number)?;
            tasks.push(tokio::task::spawn_local(client(one, Rc::clone(&plan), Rc::clone(&shared))));
        }
        for task in tasks {
            task.await.map_err(|e| format!("a client of the load generator failed: {e}"))?;
        }
        let shared = Rc::into_inner(shared).ok_or("a client is still running")?;
        let mut stats = shared.stats.into_inner();
        stats.unsent = shared.schedule.as_ref().map_or(0, Schedule::left);
        Ok(stats)
    })
}

pub(super) fn on_this_thread<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("can't start the load generator: {e}"))?;
    LocalSet::new().block_on(&runtime, work)
}

fn show_progress(plan: &Plan, start: Instant, done: &AtomicU64, finished: impl Fn() -> bool) {
    let whole = plan.warmup + plan.duration;
    let bar = ProgressBar::new(whole.as_millis() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {msg}") {
        bar.set_style(style);
    }
    let mut last = (Instant::now(), 0);
    while !finished() {
        std::thread::sleep(Duration::from_millis(100));
        let passed = start.elapsed();
        bar.set_position(passed.as_millis() as u64);
        let since = last.0.elapsed();
        if since >= Duration::from_secs(1) {
            let now = done.load(Ordering::Relaxed);
            let rate = (now - last.1) as f64 / since.as_secs_f64();
            let phase = if passed < plan.warmup { "warming up" } else { "measuring" };
            bar.set_message(format!("{phase}, {rate:.0} requests/s"));
            last = (Instant::now(), now);
        }
    }
    bar.finish_and_clear();
}

/// The endpoint that leads.
pub(super) fn find_leader(endpoints: &[HostPort], tls: Option<&Tls>, timeout: Duration) -> Result<HostPort, String> {
    on_this_thread(async {
        let mut reasons = Vec::new();
        for address in endpoints {
            match tokio::time::timeout(timeout, member_and_leader(address, tls)).await {
                Ok(Ok((member, leader))) if member == leader => return Ok(address.clone()),
                Ok(Ok(_)) => reasons.push(format!("{address} follows")),
                Ok(Err(error)) => reasons.push(format!("{address}: {error}")),
                Err(_) => reasons.push(format!("{address}: no answer in time")),
            }
        }
        Err(format!("--target leader: none of the endpoints leads ({})", reasons.join("; ")))
    })
}

async fn member_and_leader(address: &HostPort, tls: Option<&Tls>) -> Result<(u64, u64), CallError> {
    let (_, mut sender) = Connection::new(address.clone(), tls.cloned()).sender(None).await?;
    let route = Route::new(address, tls.is_some(), STATUS).map_err(CallError::Connect)?;
    let mut bytes = Vec::new();
    call(&mut sender, &route, frame(&StatusRequest {}.encode_to_vec()).into(), Some(&mut bytes)).await?;
    let status = StatusResponse::decode(bytes.get(FRAME_HEAD..).unwrap_or_default())
        .map_err(|e| CallError::Answer(e.to_string()))?;
    Ok((status.header.map_or(0, |header| header.member_id), status.leader))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::net::TcpSocket;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    /// Each of them waited for those before it, and for two seconds of its own then: a run went on for a minute after its end.
    #[test]
    fn clients_whose_server_hears_no_more_do_not_wait_for_each_other() {
        const CLIENTS: u32 = 20;
        const TIMEOUT: Duration = Duration::from_millis(500);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _context = runtime.enter();
        // Its place for connections that nobody accepts is taken: the system says nothing to whoever comes next.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let deaf = socket.listen(1).unwrap();
        let address = deaf.local_addr().unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300));
        let _taken: Vec<_> = std::iter::repeat_with(connect).take(20).take_while(Result::is_ok).collect();
        let mut args = Line::parse_from(["bench", "put"]).args;
        args.timeout = TIMEOUT;
        let plan = Plan::new(&args, vec![address.to_string().parse().unwrap()], None, None);
        let begun = Instant::now();
        on_this_thread(async {
            let connection = Connection::new(plan.connections[0].clone(), None);
            let client = |n| Client::new(&plan, &connection, n as usize).unwrap();
            let asking = (0..CLIENTS).map(|n| {
                let mut client = client(n);
                async move { client.request(false, 1).await.unwrap_err() }
            });
            for error in futures_util::future::join_all(asking).await {
                assert!(matches!(error, CallError::Timeout), "{error}");
            }
            Ok(())
        })
        .unwrap();
        assert!(begun.elapsed() < TIMEOUT * CLIENTS, "{:?}", begun.elapsed());
    }
}
