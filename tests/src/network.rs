//! A network between nodes that can be cut: a proxy in front of each node's port for members.
//!
//! All nodes know each other by the proxies' addresses. A connection is told apart by the process that opened it, and each of its
//! two directions belongs to the link from the one node to the other. A link that is cut holds its bytes, and the news of
//! a connection's end, as a network does whose packets are lost: nobody gets an error. When it heals, they are delivered, late.

mod pump;
mod source;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Port;
use pump::Pump;
use source::Opener;

/// How long a new connection's process may stay unknown.
const SOURCE_LIMIT: Duration = Duration::from_secs(2);

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weather {
    cut: bool,
    delay: Duration,
    /// How much passes in a second; all there is when none.
    bytes_per_second: Option<u32>,
    /// Connections of an earlier epoch are closed.
    epoch: u64,
}

type Links = HashMap<(u64, u64), watch::Sender<Weather>>;

/// The network. Ends with this value.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    _proxies: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    links: Links,
    /// The running process of each node.
    pids: Mutex<HashMap<u64, u32>>,
}

impl Network {
    /// Whether a network can tell connections apart on this system.
    #[must_use]
    pub fn is_supported() -> bool {
        source::is_supported()
    }

    /// A network in which node `id` is reached at `outside`, and listens at `inside`.
    ///
    /// # Errors
    /// A proxy can't listen, or the system can't tell who connects.
    pub fn new<'a>(nodes: impl IntoIterator<Item = (u64, &'a Port, &'a Port)>) -> Result<Self> {
        if !Self::is_supported() {
            bail!("the network needs /proc/net/tcp to tell who connects");
        }
        let nodes: Vec<_> = nodes.into_iter().collect();
        let ids: Vec<u64> = nodes.iter().map(|(id, _, _)| *id).collect();
        let pairs = ids.iter().flat_map(|from| ids.iter().map(move |to| (*from, *to))).filter(|(from, to)| from != to);
        let links = pairs.map(|pair| (pair, watch::Sender::new(Weather::default()))).collect();
        let shared = Arc::new(Shared { links, pids: Mutex::default() });
        let mut proxies = JoinSet::new();
        for (id, outside, inside) in nodes {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(outside.address().parse()?)?;
            let listener = socket.listen(128)?;
            proxies.spawn(proxy(Arc::clone(&shared), listener, id, inside.address()));
        }
        Ok(Self { shared, _proxies: proxies })
    }

    /// Tells which process is a node now.
    pub fn introduce(&self, id: u64, pid: u32) {
        self.shared.pids.lock().unwrap_or_else(PoisonError::into_inner).insert(id, pid);
    }

    /// Holds everything that `from` sends to `to`.
    pub fn cut_one_way(&self, from: u64, to: u64) {
        self.change(|link| link == (from, to), |weather| weather.cut = true);
    }

    /// Holds everything between two nodes.
    pub fn cut(&self, a: u64, b: u64) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Holds everything between a node and all others.
    pub fn isolate(&self, id: u64) {
        self.change(|(from, to)| from == id || to == id, |weather| weather.cut = true);
    }

    /// Holds everything that a node sends.
    pub fn mute(&self, id: u64) {
        self.change(|(from, _)| from == id, |weather| weather.cut = true);
    }

    /// Holds everything that is sent to a node.
    pub fn deafen(&self, id: u64) {
        self.change(|(_, to)| to == id, |weather| weather.cut = true);
    }

    /// Delays everything between a node and all others, each way.
    pub fn delay(&self, id: u64, delay: Duration) {
        self.change(|(from, to)| from == id || to == id, |weather| weather.delay = delay);
    }

    /// Lets no more than this pass in a second between a node and each other, each way.
    pub fn throttle(&self, id: u64, bytes_per_second: u32) {
        let rate = Some(bytes_per_second.max(1));
        self.change(|(from, to)| from == id || to == id, |weather| weather.bytes_per_second = rate);
    }

    /// Closes all connections between a node and all others, once.
    pub fn reset(&self, id: u64) {
        self.change(|(from, to)| from == id || to == id, |weather| weather.epoch += 1);
    }

    /// Holds everything between these nodes and all others.
    pub fn part(&self, ids: &[u64]) {
        self.change(|(from, to)| ids.contains(&from) != ids.contains(&to), |weather| weather.cut = true);
    }

    /// Ends all cuts, delays and limits.
    pub fn heal(&self) {
        self.change(|_| true, |weather| *weather = Weather { epoch: weather.epoch, ..Weather::default() });
    }

    fn change(&self, which: impl Fn((u64, u64)) -> bool, how: impl Fn(&mut Weather)) {
        for (_, weather) in self.shared.links.iter().filter(|(link, _)| which(**link)) {
            weather.send_modify(&how);
        }
    }
}

/// Accepts what is meant for node `to`, as long as the network lives.
async fn proxy(shared: Arc<Shared>, listener: TcpListener, to: u64, inside: String) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(carry(Arc::clone(&shared), stream, to, inside.clone()));
            }
            // The system is short of something; it may pass.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Carries one connection in both directions, to its end.
async fn carry(shared: Arc<Shared>, outer: TcpStream, to: u64, inside: String) {
    let Some(from) = shared.source(&outer).await else { return };
    let (Some(there), Some(back)) = (shared.links.get(&(from, to)), shared.links.get(&(to, from))) else { return };
    let Ok(inner) = TcpStream::connect(&inside).await else {
        // The other side runs no server: this much is learnt even from a bad network, but not from a cut one.
        pump::wait_until_open(&mut back.subscribe()).await;
        return;
    };
    let _ = (outer.set_nodelay(true), inner.set_nodelay(true));
    let (outer_read, outer_write) = outer.into_split();
    let (inner_read, inner_write) = inner.into_split();
    let forth = Pump::new(there.subscribe(), back.subscribe());
    let back = Pump::new(back.subscribe(), there.subscribe());
    tokio::select! {
        () = forth.run(outer_read, inner_write) => {}
        () = back.run(inner_read, outer_write) => {}
    }
}

impl Shared {
    /// Which node opened this connection.
    async fn source(&self, stream: &TcpStream) -> Option<u64> {
        let deadline = tokio::time::Instant::now() + SOURCE_LIMIT;
        loop {
            // A process may connect before the test has told of it.
            let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match source::opener(stream, pids.values().copied()) {
                Opener::Process(opener) => return pids.into_iter().find(|(_, pid)| *pid == opener).map(|(id, _)| id),
                Opener::Gone => return None,
                Opener::Unknown => {}
            }
            if tokio::time::Instant::now() > deadline {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[cfg(test)]
mod tests;
