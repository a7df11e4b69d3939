//! Runs the `kv-example` program as its users do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]
#![allow(dead_code, reason = "each test program uses its own part")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program, deaf to the environment of whoever runs the tests.
pub(crate) fn program() -> Command {
    deaf(Command::new(PROGRAM))
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

/// This many consecutive ports that are free now. Below those that the system gives to connections, so that none is
/// taken in the moment before it is used; tests that run at the same time begin their search in different places.
pub(crate) fn free_ports(count: u16) -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97).wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed) * 16);
    let bases = (0..1000).map(|n| 10_000 + (start.wrapping_add(n * 16) % 20_000) as u16);
    let free = |base: &u16| (*base..*base + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    bases.into_iter().find(free).expect("consecutive free ports")
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
    /// Starts it, with its output in a file.
    pub(crate) fn start(log: &Path, args: &[&str]) -> Self {
        Self::start_with_stdin(log, args, Stdio::null())
    }

    pub(crate) fn start_with_stdin(log: &Path, args: &[&str], stdin: Stdio) -> Self {
        let mut command = program();
        command.args(args).stdin(stdin);
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
