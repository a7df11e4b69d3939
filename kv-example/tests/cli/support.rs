//! Runs the `kv-example` program as its users do.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program, deaf to the environment of whoever runs the tests.
pub(crate) fn program() -> Command {
    deaf(Command::new(PROGRAM))
}

/// What a server is made of, in its own options: what `RAFTKV_TEST_SERVER` says, save for what these arguments say already.
pub(crate) fn stack(args: &[&str]) -> Vec<String> {
    let words = std::env::var("RAFTKV_TEST_SERVER").unwrap_or_default();
    let words: Vec<_> = words.split_whitespace().collect();
    let pairs = words.chunks(2).filter(|pair| !args.contains(&pair[0]));
    pairs.flatten().map(|word| (*word).to_owned()).collect()
}

/// Where the program is.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_kv-example");

/// A command that nothing in the environment configures.
pub(crate) fn deaf(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("RAFTKV_") || text == "RUST_LOG" {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

pub(crate) fn run(args: &[&str]) -> Output {
    program().args(args).output().expect("the program starts")
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts a mistake of usage or configuration: exit code 2, and a message with all these parts.
pub(crate) fn assert_refused(output: &Output, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

/// This many consecutive ports of 127.0.0.1 that stay this test's own as long as its thread lives.
///
/// They are below those that the system gives to connections, and each is held by a bound socket that does not listen: with `SO_REUSEADDR`, which
/// listeners set, a server of this test may listen there all the same. To be tried and let go of would not do: another
/// test could take the port before it is used, and one that another test holds in this way looks free to a listener.
pub(crate) fn free_ports(count: u16) -> u16 {
    thread_local! {
        static HELD: RefCell<Vec<TcpSocket>> = const { RefCell::new(Vec::new()) };
    }
    for attempt in 0..1000 {
        let random = RandomState::new().hash_one((std::process::id(), attempt));
        let base = 10_000 + (random % u64::from(20_000 - count)) as u16;
        let ports: Option<Vec<_>> = (base..base + count).map(hold).collect();
        if let Some(ports) = ports {
            HELD.with_borrow_mut(|held| held.extend(ports));
            return base;
        }
    }
    panic!("no {count} consecutive free ports");
}

/// A port, if nobody else holds it or has just used it.
fn hold(port: u16) -> Option<TcpSocket> {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(false).expect("an option");
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).ok()?;
    socket.set_reuseaddr(true).expect("an option");
    Some(socket)
}

/// The only node of a cluster: where its files are, and where it is reached.
pub(crate) struct Alone {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) data: String,
    pub(crate) client: String,
    pub(crate) peers: String,
}

impl Alone {
    pub(crate) fn new() -> Self {
        let (dir, base) = (tempfile::tempdir().expect("a directory"), free_ports(2));
        let data = dir.path().join("data").display().to_string();
        Self { dir, data, client: format!("127.0.0.1:{base}"), peers: format!("1=127.0.0.1:{}", base + 1) }
    }

    /// What its server is told, and more.
    pub(crate) fn args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let least =
            ["server", "--id", "1", "--data", &self.data, "--peers", &self.peers, "--listen-client", &self.client];
        [&least, more].concat()
    }

    /// Where its server writes what it logs.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Its address for other members.
    pub(crate) fn peer(&self) -> &str {
        self.peers.trim_start_matches("1=")
    }

    /// Starts it, and waits until it has done a write.
    pub(crate) fn start(&self, more: &[&str]) -> Running {
        let node = Running::start(&self.log(), &self.args(more));
        self.put("k", "v");
        node
    }

    /// Writes, as soon as it does what it is asked.
    pub(crate) fn put(&self, key: &str, value: &str) {
        wait_for("a write", || {
            run(&["put", key, value, "--endpoints", &self.client, "--timeout", "2"]).status.success().then_some(())
        });
    }
}

/// Waits for a condition that must come true.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A running program that does not outlive its test.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) log: std::path::PathBuf,
}

impl Running {
    /// Starts it, with its output in a file. Servers are made of what [`stack`] says.
    pub(crate) fn start(log: &Path, args: &[&str]) -> Self {
        Self::start_with_stdin(log, args, Stdio::null())
    }

    pub(crate) fn start_with_stdin(log: &Path, args: &[&str], stdin: Stdio) -> Self {
        let mut command = program();
        command.args(args).stdin(stdin);
        if args[0] == "cluster" {
            command.arg("--");
        }
        command.args(stack(args));
        Self::spawn(log, command)
    }

    /// Starts any command, with its output in a file.
    pub(crate) fn spawn(log: &Path, mut command: Command) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log file");
        let child = command
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("the program starts");
        Self { child, log: log.to_owned() }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        signal_pid(self.child.id(), signal);
    }

    /// Stops it, and waits until each of its threads stands still: a signal takes its time.
    #[cfg(target_os = "linux")]
    pub(crate) fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
        let stands = |task: std::path::PathBuf| {
            let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        };
        wait_for("a process to stand still", || {
            let mut tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a process");
            tasks.all(|task| stands(task.expect("a thread").path())).then_some(())
        });
    }

    /// Waits for its end, and gives its exit code.
    pub(crate) fn code(&mut self) -> Option<i32> {
        let log = self.log.clone();
        wait_for(&format!("the end of a program; its log is {}", log.display()), || {
            self.child.try_wait().expect("a status")
        })
        .code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

pub(crate) fn signal_pid(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().expect("a pid")).expect("not 0");
    // It may be gone already.
    let _ = rustix::process::kill_process(pid, signal);
}

/// Whether a process is there, and not only waiting to be buried.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// What the tests of the program stand on: another test can't take a port while this one's server is down.
#[test]
fn a_port_of_a_test_stays_its_own() {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], free_ports(1)));
    for _ in 0..3 {
        drop(std::net::TcpListener::bind(address).expect("its own server may listen there, again and again"));
    }
    let other = tokio::net::TcpSocket::new_v4().expect("a socket");
    other.set_reuseaddr(false).expect("an option");
    assert!(other.bind(address).is_err());
}

/// There are so many tests in one program that those which are done must give theirs back.
#[test]
fn a_port_is_given_back_when_its_test_is_done() {
    let done = std::thread::Builder::new().spawn(|| {
        let port = free_ports(1);
        assert!(hold(port).is_none(), "it is held");
        port
    });
    let port = done.expect("a thread").join().expect("no panic");
    assert!(hold(port).is_some(), "it was not given back");
}
