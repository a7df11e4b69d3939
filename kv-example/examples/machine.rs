//! What this machine can do with bytes: a TCP stream over loopback, and a file that is written and synced.
//!
//! `cargo run --release -p kv-example --example machine -- DIR SECONDS BLOCK BATCH` prints, in MiB a second: `loopback`, a stream that is written in blocks of
//! so many bytes and read as it comes; `disk-each`, a file in DIR that is written in such blocks and synced (`fdatasync`) after each; `disk-batch`, the same, synced
//! after each BATCH of them. The measure of `benches/bulk.sh`.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// A file begins anew when it has become so large.
const FILE: usize = 512 << 20;

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [dir, seconds, block, batch] = &args[..] else {
        return Err(Error::new(ErrorKind::InvalidInput, "say: machine DIR SECONDS BLOCK BATCH"));
    };
    let time = Duration::from_secs_f64(number(seconds)?);
    let (block, batch) = (vec![7; number::<usize>(block)?.max(1)], number::<usize>(batch)?.max(1));
    println!("loopback {:.1}", loopback(&block, time)?);
    println!("disk-each {:.1}", disk(Path::new(dir), &block, 1, time)?);
    println!("disk-batch {:.1}", disk(Path::new(dir), &block, batch, time)?);
    Ok(())
}

fn number<T: FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::new(ErrorKind::InvalidInput, format!("{text:?} is not a number")))
}

/// What a stream brings from one thread to another, in MiB a second.
fn loopback(block: &[u8], time: Duration) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let begun = Instant::now();
    let sent = std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            let mut received = 0;
            loop {
                match receiver.read(&mut buffer)? {
                    0 => return Ok::<_, Error>(received),
                    bytes => received += bytes,
                }
            }
        });
        while begun.elapsed() < time {
            sender.write_all(block)?;
        }
        drop(sender);
        reading.join().map_err(|_| Error::other("the reader panicked"))?
    })?;
    Ok(mib_per_second(sent, begun.elapsed()))
}

/// What a file takes, in MiB a second.
fn disk(dir: &Path, block: &[u8], batch: usize, time: Duration) -> Result<f64> {
    let path = dir.join("machine.tmp");
    let written = write(&path, block, batch, time);
    std::fs::remove_file(&path)?;
    written
}

fn write(path: &Path, block: &[u8], batch: usize, time: Duration) -> Result<f64> {
    let mut file = File::create(path)?;
    let (mut written, mut length) = (0, 0);
    let begun = Instant::now();
    while begun.elapsed() < time {
        for _ in 0..batch {
            file.write_all(block)?;
        }
        file.sync_data()?;
        written += batch * block.len();
        length += batch * block.len();
        if length >= FILE {
            file = File::create(path)?;
            length = 0;
        }
    }
    Ok(mib_per_second(written, begun.elapsed()))
}

fn mib_per_second(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}
