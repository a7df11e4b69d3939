//! Which process opened a connection: Linux tells in `/proc`.

use std::net::SocketAddr;
use std::path::Path;

use tokio::net::TcpStream;

/// Whether the system tells.
pub(super) fn is_supported() -> bool {
    Path::new("/proc/net/tcp").exists() && Path::new("/proc/self/fd").exists()
}

/// Who is at the far end of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opener {
    /// One of the processes.
    Process(u32),
    /// None of them, as far as is known.
    Unknown,
    /// Nobody any more: it gave up, or was killed.
    Gone,
}

/// Which of these processes holds the far end of an accepted connection.
///
/// The table may be long, and many connections may come at once: it is read once for all processes, and nobody goes on looking
/// for one that has left. Else those that give up after a while and try again could keep this busy for ever.
pub(super) fn opener(accepted: &TcpStream, pids: impl IntoIterator<Item = u32>) -> Opener {
    let (Ok(near), Ok(far)) = (accepted.local_addr(), accepted.peer_addr()) else { return Opener::Gone };
    let Ok(table) = std::fs::read_to_string("/proc/net/tcp") else { return Opener::Unknown };
    match inode(&table, far, near) {
        // What is closed and not forgotten yet has no inode.
        None | Some("0") => Opener::Gone,
        Some(inode) => pids.into_iter().find(|pid| holds(*pid, inode)).map_or(Opener::Unknown, Opener::Process),
    }
}

/// The inode of the socket with these addresses, from a table such as `/proc/net/tcp`.
fn inode(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<&str> {
    let (local, remote) = (hex(local)?, hex(remote)?);
    table.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let found = words.next() == Some(&*local) && words.next() == Some(&*remote);
        found.then(|| words.nth(6)).flatten()
    })
}

/// An address as the table has it: the bytes of the address as one number in the machine's order, and the port.
fn hex(address: SocketAddr) -> Option<String> {
    match address {
        SocketAddr::V4(v4) => Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port())),
        SocketAddr::V6(_) => None,
    }
}

fn holds(pid: u32, inode: &str) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == &*wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_of_this_process_is_known_as_such() {
        if !is_supported() {
            return;
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let own = std::process::id();
        assert_eq!(opener(&accepted, [own]), Opener::Process(own));
        assert_eq!(opener(&accepted, []), Opener::Unknown);
        drop(client);
        assert_eq!(opener(&accepted, [own]), Opener::Gone);
    }
}
