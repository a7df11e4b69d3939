//! A disk in memory under a redb database: its process can be killed at any operation, and its power can fail.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use kv_example::backends::redb::{Options, Owner, RedbMachine};
use raftkv::testing::Random;
use raftkv::testing::conformance::Fault;
use raftkv::{ClusterId, Fatal, NodeId};
use redb::StorageBackend;

pub const OWNER: Owner = Owner { cluster: ClusterId(7), node: NodeId(1) };
/// What a disk writes as one.
const SECTOR: usize = 512;

/// A disk. Clones share it.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug)]
struct Platter {
    /// As the running process sees it.
    now: Vec<u8>,
    /// What a loss of power leaves for sure.
    safe: Vec<u8>,
    /// What was written since the last sync, in order.
    unsynced: Vec<Unsynced>,
    armed: Option<(Fault, u64)>,
    /// What ended the run, until the next begins.
    ended: Option<Fault>,
    /// The run whose operations count.
    run: u64,
    syncs: u64,
    random: Random,
}

#[derive(Debug)]
enum Unsynced {
    Write(u64, Vec<u8>),
    Length(u64),
}

/// The disk, as one run of a process sees it.
#[derive(Debug)]
pub struct Medium {
    disk: Disk,
    run: u64,
}

fn place(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let at = usize::try_from(offset).expect("small");
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

impl Disk {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Platter {
            now: Vec::new(),
            safe: Vec::new(),
            unsynced: Vec::new(),
            armed: None,
            ended: None,
            run: 0,
            syncs: 0,
            random: Random::new(seed),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().expect("no test panicked here")
    }

    /// Lets so many operations pass that change something, and ends the run with the next.
    pub fn arm(&self, fault: Fault, after: u64) {
        self.lock().armed = Some((fault, after));
    }

    /// Ends the run now.
    pub fn end(&self, fault: Fault) {
        self.lock().ended = Some(fault);
    }

    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// All bytes, as they are.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().now.clone()
    }

    pub fn replace(&self, bytes: Vec<u8>) {
        self.alter(|_| bytes);
    }

    /// Puts other bytes in the place of those that are there, between two operations of whoever is at work.
    pub fn alter(&self, alter: impl FnOnce(&[u8]) -> Vec<u8>) {
        let mut platter = self.lock();
        let bytes = alter(&platter.now);
        platter.unsynced.clear();
        platter.safe.clone_from(&bytes);
        platter.now = bytes;
    }

    /// The disk for the next run, after what has happened to it.
    pub fn medium(&self) -> Medium {
        let mut platter = self.lock();
        if platter.ended.take() == Some(Fault::PowerLoss) {
            platter.lose_power();
        }
        platter.armed = None;
        platter.run += 1;
        Medium { disk: self.clone(), run: platter.run }
    }

    /// As [`Disk::open`], with a fault on the way.
    pub fn open_with(&self, options: Options, fault: Fault, after: u64) -> Result<RedbMachine, Fatal> {
        let medium = self.medium();
        self.arm(fault, after);
        RedbMachine::open_on(medium, OWNER, options)
    }

    pub fn open(&self, options: Options) -> Result<RedbMachine, Fatal> {
        RedbMachine::open_on(self.medium(), OWNER, options)
    }
}

impl Platter {
    /// Of what was not synced any part may be there: whole writes, or some of their sectors.
    fn lose_power(&mut self) {
        let unsynced = std::mem::take(&mut self.unsynced);
        for one in unsynced {
            match one {
                Unsynced::Length(len) if self.random.percent(50) => {
                    self.safe.resize(usize::try_from(len).expect("small"), 0);
                }
                Unsynced::Length(_) => {}
                Unsynced::Write(offset, data) => {
                    let whole = self.random.below(3);
                    for (sector, part) in (0_u64..).zip(data.chunks(SECTOR)) {
                        if whole == 0 || (whole == 1 && self.random.percent(50)) {
                            place(&mut self.safe, offset + sector * SECTOR as u64, part);
                        }
                    }
                }
            }
        }
        self.now.clone_from(&self.safe);
    }
}

impl Medium {
    fn platter(&self) -> Result<MutexGuard<'_, Platter>, io::Error> {
        let platter = self.disk.lock();
        if platter.ended.is_some() || platter.run != self.run {
            return Err(io::Error::other("the process has ended"));
        }
        Ok(platter)
    }

    /// For an operation that changes something.
    fn change(&self) -> Result<MutexGuard<'_, Platter>, io::Error> {
        let mut platter = self.platter()?;
        match &mut platter.armed {
            Some((fault, 0)) => {
                let fault = *fault;
                platter.armed = None;
                if fault != Fault::Error {
                    platter.ended = Some(fault);
                }
                Err(io::Error::other("a fault was asked for"))
            }
            Some((_, left)) => {
                *left -= 1;
                Ok(platter)
            }
            None => Ok(platter),
        }
    }
}

impl StorageBackend for Medium {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.platter()?.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let platter = self.platter()?;
        let at = usize::try_from(offset).expect("small");
        match platter.now.get(at..at + out.len()) {
            Some(bytes) => out.copy_from_slice(bytes),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut platter = self.change()?;
        platter.now.resize(usize::try_from(len).expect("small"), 0);
        platter.unsynced.push(Unsynced::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut platter = self.change()?;
        platter.syncs += 1;
        platter.unsynced.clear();
        let now = platter.now.clone();
        platter.safe = now;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut platter = self.change()?;
        place(&mut platter.now, offset, data);
        platter.unsynced.push(Unsynced::Write(offset, data.to_vec()));
        Ok(())
    }
}
