//! Ports that stay ours: for a server that is killed and must come back at the same address.
//!
//! A port that the system hands out (port 0) may be given to any outgoing connection while the server is down. So these come
//! from below the range that systems hand out, and each is held by a bound socket that does not listen: with
//! `SO_REUSEADDR`, which Rust's listeners set, a server may listen on it all the same.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, bail};
use tokio::net::TcpSocket;

const LOWEST: u16 = 10_000;
const HIGHEST: u16 = 30_000;
const ATTEMPTS: usize = 1000;

/// A port on 127.0.0.1, reserved as long as this value lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _holder: TcpSocket,
}

impl Port {
    /// Reserves a free port.
    ///
    /// # Errors
    /// None was found.
    pub fn reserve() -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let number = fastrand::u16(LOWEST..HIGHEST);
            let holder = TcpSocket::new_v4()?;
            // Without reuse first: a port that anybody else holds or has just used is refused.
            holder.set_reuseaddr(false)?;
            if holder.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, number))).is_ok() {
                holder.set_reuseaddr(true)?;
                return Ok(Self { number, _holder: holder });
            }
        }
        bail!("no free port on 127.0.0.1 from {LOWEST} to {HIGHEST} in {ATTEMPTS} attempts")
    }

    /// The number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_reserved_port_can_be_listened_on_again_and_again() {
        let port = Port::reserve().unwrap();
        for _ in 0..3 {
            drop(TcpListener::bind(port.address()).unwrap());
        }
    }

    #[test]
    fn no_port_is_reserved_twice() {
        let ports: Vec<_> = (0..50).map(|_| Port::reserve().unwrap()).collect();
        let mut numbers: Vec<_> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), ports.len());
        let taken = TcpSocket::new_v4().unwrap();
        taken.set_reuseaddr(false).unwrap();
        assert!(taken.bind(ports[0].address().parse().unwrap()).is_err());
    }
}
