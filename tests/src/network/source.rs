//! Which process opened a connection: Linux tells in `/proc`.

use std::net::SocketAddr;
use std::path::Path;

use tokio::net::TcpStream;

/// Whether the system tells.
pub(super) fn is_supported() -> bool {
    Path::new("/proc/net/tcp").exists() && Path::new("/proc/self/fd").exists()
}

/// Whether the far end of an accepted connection is a socket of this process.
pub(super) fn opened_by(accepted: &TcpStream, pid: u32) -> bool {
    let (Ok(near), Ok(far)) = (accepted.local_addr(), accepted.peer_addr()) else { return false };
    let Ok(table) = std::fs::read_to_string("/proc/net/tcp") else { return false };
    inode(&table, far, near).is_some_and(|inode| holds(pid, inode))
}

/// The inode of the socket with these addresses, from a table such as `/proc/net/tcp`.
fn inode(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<&str> {
    let (local, remote) = (hex(local)?, hex(remote)?);
    let mut rows = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    rows.find(|row| row.get(1) == Some(&&*local) && row.get(2) == Some(&&*remote)).and_then(|row| row.get(9).copied())
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
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(opened_by(&accepted, std::process::id()));
        assert!(!opened_by(&accepted, 1) || std::process::id() == 1);
    }
}
