//! What becomes of a server whose ears fail, seen from outside: reset connections, no file descriptors, a broken listener.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use crate::support::{PROGRAM, Running, deaf, free_ports, run, stack, wait_for};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// A cluster of one.
struct Server {
    dir: tempfile::TempDir,
    clients: String,
    members: String,
    process: Running,
}

impl Server {
    /// With a limit on its file descriptors, in the shell's words, if any.
    fn start(files: Option<u32>) -> Self {
        let base = free_ports(2);
        let (clients, members) = (format!("127.0.0.1:{base}"), format!("127.0.0.1:{}", base + 1));
        let dir = tempfile::tempdir().unwrap();
        let limit = files.map(|n| format!("ulimit -n {n}; ")).unwrap_or_default();
        let mut command = deaf(Command::new("sh"));
        command.args(["-c", &format!("{limit}exec \"$0\" \"$@\""), PROGRAM, "server", "--id", "1"]);
        command.arg("--data").arg(dir.path().join("data"));
        command.args(["--peers", &format!("1={members}"), "--listen-client", &clients]).args(stack(&[]));
        let process = Running::spawn(&dir.path().join("log"), command);
        let server = Self { dir, clients, members, process };
        wait_for("the first write", || server.put(1).then_some(()));
        server
    }

    /// Whether a write is acknowledged within so many seconds.
    fn put(&self, limit: u8) -> bool {
        run(&["put", "k", "v", "--endpoints", &self.clients, "--timeout", &limit.to_string()]).status.success()
    }

    /// How much of a processor it has used so far.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// Makes `accept` fail in the server, on the listener of this address. False where the system does not let one process at
    /// another's sockets.
    fn break_listener(&self, address: &str) -> bool {
        let process = Pid::from_child(&self.process.child);
        let process = pidfd_open(process, PidfdFlags::empty()).unwrap();
        for fd in 0..64 {
            let socket = match pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::BADF) => continue,
                Err(error) => {
                    eprintln!("skipped: pidfd_getfd: {error}");
                    return false;
                }
            };
            if is_listener(&socket, address) {
                TcpStream::from(socket).shutdown(Shutdown::Both).unwrap();
                return true;
            }
        }
        panic!("the server has no listener at {address}\n{}", self.process.log());
    }
}

fn is_listener(socket: &OwnedFd, address: &str) -> bool {
    let local = TcpListener::from(socket.try_clone().unwrap()).local_addr();
    rustix::net::sockopt::socket_acceptconn(socket).unwrap_or(false)
        && local.is_ok_and(|local| local.to_string() == address)
}

/// The listener is broken for good: the process ends, says why, and its exit code says that it has failed.
#[test]
fn a_broken_listener_ends_the_process() {
    for of_clients in [true, false] {
        let mut server = Server::start(None);
        let address = if of_clients { server.clients.clone() } else { server.members.clone() };
        if !server.break_listener(&address) {
            return;
        }
        let code = server.process.code();
        let log = server.process.log();
        assert_eq!(code, Some(1), "{log}");
        let whose = if of_clients { "clients" } else { "members" };
        let reason = format!("kv-example: the server for {whose} has failed: no connection can be accepted any more");
        assert!(log.contains(&reason), "{reason:?} is missing in: {log}");
        assert!(server.dir.path().join("data").exists());
    }
}

/// Peers and clients that reset their connections before the server comes to accept them: it is stopped meanwhile.
#[test]
fn connections_that_were_reset_before_they_were_accepted_do_no_harm() {
    use rustix::process::Signal;
    let server = Server::start(None);
    for _ in 0..5 {
        server.process.stop();
        for address in [&server.clients, &server.members] {
            for _ in 0..100 {
                let stream = TcpStream::connect(address).unwrap();
                // To close it is to reset it then.
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            }
        }
        server.process.signal(Signal::CONT);
        assert!(server.put(30), "{}", server.process.log());
        // Those of before would take up room among those of the next turn: the system may allow no more than 128 to wait.
        for address in [&server.clients, &server.members] {
            wait_for("the last of them to be accepted", || (unaccepted(address) == 0).then_some(()));
        }
    }
}

/// A server that is busy for a moment, while all its clients come back: none of them may be left to its system's next try, a second
/// later.
#[test]
fn a_crowd_that_comes_at_once_finds_room_to_wait() {
    use rustix::process::Signal;
    let system: usize = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let crowd = system.min(400);
    let server = Server::start(None);
    for address in [&server.clients, &server.members] {
        server.process.stop();
        let connect = |_| TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(20));
        let waiting: Result<Vec<_>, _> = (0..crowd).map(connect).collect();
        let found = waiting.as_ref().map_or_else(ToString::to_string, |all| format!("{} connected", all.len()));
        assert_eq!((found, unaccepted(address)), (format!("{crowd} connected"), crowd));
        server.process.signal(Signal::CONT);
        assert!(server.put(30), "{}", server.process.log());
    }
}

/// How many connections wait to be accepted at an address of 127.0.0.1: what Linux tells of a listener as bytes to be read.
fn unaccepted(address: &str) -> usize {
    let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
    let local = format!("0100007F:{port:04X}");
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let mut fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // The state of a listener is 0A.
    let listener = fields.find(|fields| fields[1] == local && fields[3] == "0A").expect("a listener");
    usize::from_str_radix(listener[4].rsplit_once(':').unwrap().1, 16).unwrap()
}

/// No file descriptors left: connections wait, and the processor has a rest. Those that say nothing are ended, or end by
/// themselves, and there is service again.
#[test]
fn a_server_without_file_descriptors_waits_for_some() {
    const FILES: u32 = 48;
    let server = Server::start(Some(FILES));
    let strangers: Vec<_> = (0..FILES * 2).map(|_| TcpStream::connect(&server.members).unwrap()).collect();
    wait_for("the lack of file descriptors", || server.process.log().contains("os error 24").then_some(()));
    let before = server.cpu();
    std::thread::sleep(Duration::from_secs(2));
    let used = server.cpu() - before;
    assert!(used < Duration::from_millis(700), "in 2 s it used {used:?} of a processor");
    drop(strangers);
    wait_for("service after that", || server.put(1).then_some(()));
    // The members' listener hears again as well: what is said there is read, and refused with an end of the connection.
    wait_for("the members' ear", || {
        use std::io::{Read, Write};
        let mut stream = TcpStream::connect(&server.members).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(b"nobody speaks like this at all, over there\r\n\r\n").ok()?;
        // HTTP/2 servers begin with their settings; those of tarpc hang up without a word.
        let words = usize::from(!stack(&[]).contains(&"tarpc".to_owned()));
        (stream.read(&mut [0; 16]).ok()? >= words).then_some(())
    });
}
