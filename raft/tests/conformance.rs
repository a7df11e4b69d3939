//! The suites that every backend passes, on the backends in memory.

#![allow(clippy::expect_used, reason = "a test reports by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::testing::conformance::transport::{Listener, Network};
use raftkv::testing::conformance::{Fault, log_store, snapshot, state_machine};
use raftkv::testing::{Counter, Crash, Durable, MemLog, MemNetwork, MemSnapshots, Random, Recorder};
use raftkv::{ClusterId, Inbox, Peer, StorageError, Transport};

mod memory_log {
    use super::*;

    struct Memory(MemLog);

    impl log_store::Backend for Memory {
        type Store = MemLog;

        async fn open(&self) -> MemLog {
            self.0.crash(Crash::Lost);
            self.0.reopen()
        }

        /// It counts writes. What comes after the one that failed is refused until the log is opened again.
        fn arm(&self, _fault: Fault, after: u64) -> bool {
            self.0.fail_after(after);
            true
        }
    }

    raftkv::log_store_conformance!(Memory(MemLog::new()));
}

mod memory_snapshots {
    use super::*;

    struct Memory(MemSnapshots);

    impl snapshot::Backend for Memory {
        type Store = MemSnapshots;

        async fn open(&self) -> Result<MemSnapshots, StorageError> {
            Ok(self.0.clone())
        }
    }

    raftkv::snapshot_conformance!(Memory(MemSnapshots::new()));
}

/// A shelf in memory, under the store that the framework makes of it.
mod shelf {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use raftkv::{Shelf, Shelved};

    use super::*;

    /// What is on it, how many operations pass before the fault, and whether that has come.
    #[derive(Default)]
    struct Contents {
        names: BTreeMap<String, Vec<u8>>,
        armed: Option<(Fault, u64)>,
        dead: bool,
        /// Whether it has died of a loss of power.
        dark: bool,
    }

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Contents>>);

    impl Memory {
        fn look<T>(&self, look: impl FnOnce(&mut Contents) -> T) -> T {
            look(&mut self.0.lock().expect("no panic"))
        }

        /// Does something, or a part of it where the fault comes in the middle of it.
        fn change(
            &self,
            whole: impl FnOnce(&mut Contents),
            half: impl FnOnce(&mut Contents),
        ) -> Result<(), StorageError> {
            self.look(|contents| {
                let gone = || Err(StorageError::io("change", "shelf".as_ref())(std::io::ErrorKind::Other.into()));
                if contents.dead {
                    return gone();
                }
                let Some((fault, left)) = contents.armed.take() else {
                    whole(contents);
                    return Ok(());
                };
                if left > 0 {
                    contents.armed = Some((fault, left - 1));
                    whole(contents);
                    return Ok(());
                }
                (contents.dead, contents.dark) = (fault != Fault::Error, fault == Fault::PowerLoss);
                half(contents);
                gone()
            })
        }
    }

    impl Shelf for Memory {
        fn names(&self) -> Result<Vec<String>, StorageError> {
            Ok(self.look(|contents| contents.names.keys().cloned().collect()))
        }

        fn read(&self, name: &str) -> Result<Bytes, StorageError> {
            let found = self.look(|contents| contents.names.get(name).cloned());
            found.map(Bytes::from).ok_or_else(|| StorageError::Misuse(format!("there is no {name}")))
        }

        fn append(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
            let add =
                |contents: &mut Contents, part: &[u8]| contents.names.entry(name.into()).or_default().extend(part);
            let half = |contents: &mut Contents| {
                let (half, rest) = bytes.split_at(bytes.len() / 2);
                add(contents, half);
                if contents.dark {
                    add(contents, &vec![0xa5; rest.len()]);
                }
            };
            self.change(|contents| add(contents, bytes), half)
        }

        fn rename(&self, from: &str, to: &str) -> Result<(), StorageError> {
            let rename = |contents: &mut Contents| {
                let bytes = contents.names.remove(from).expect("it is there");
                contents.names.insert(to.into(), bytes);
            };
            self.change(rename, |_| ())
        }

        fn remove(&self, name: &str) -> Result<(), StorageError> {
            self.change(|contents| drop(contents.names.remove(name).expect("it is there")), |_| ())
        }
    }

    impl snapshot::Backend for Memory {
        type Store = Shelved<Self>;

        async fn open(&self) -> Result<Self::Store, StorageError> {
            self.look(|contents| (contents.armed, contents.dead) = (None, false));
            Shelved::open(self.clone())
        }

        fn arm(&self, fault: Fault, after: u64) -> bool {
            self.look(|contents| contents.armed = Some((fault, after)));
            true
        }

        fn damage(&self, place: u64) -> bool {
            self.look(|contents| {
                let (_, image) =
                    contents.names.iter_mut().find(|(name, _)| name.ends_with(".image")).expect("an image");
                let bit = usize::try_from(place).expect("64 bits") % (image.len() * 8);
                image[bit / 8] ^= 1 << (bit % 8);
            });
            true
        }
    }

    raftkv::snapshot_conformance!(Memory::default());
}

mod memory_network {
    use super::*;

    struct Memory {
        network: MemNetwork,
        addresses: AtomicU64,
    }

    #[async_trait]
    impl Network for Memory {
        async fn listen(&self, inbox: Inbox, address: Option<&str>) -> Listener {
            let fresh = || format!("memory:{}", self.addresses.fetch_add(1, Ordering::Relaxed));
            let address: Arc<str> = address.map_or_else(fresh, str::to_owned).into();
            self.network.connect_at(&address, inbox);
            let (network, at) = (self.network.clone(), address.clone());
            Listener { address, stop: Box::pin(async move { network.disconnect_at(&at) }) }
        }

        /// An envelope names its cluster itself.
        fn transport(&self, _cluster: ClusterId, node: Peer) -> Arc<dyn Transport> {
            Arc::new(self.network.transport(node))
        }
    }

    raftkv::transport_conformance!(Memory { network: MemNetwork::new(1), addresses: AtomicU64::new(1) });
}

mod counter {
    use super::*;

    struct Sums;

    impl state_machine::Backend for Sums {
        type Machine = Counter;

        async fn create(&self) -> Counter {
            Counter::default()
        }

        fn command(&self, random: &mut Random) -> Bytes {
            random.below(100).to_string().into()
        }
    }

    raftkv::state_machine_conformance!(Sums);
}

mod recorder {
    use super::*;

    struct Records;

    impl state_machine::Backend for Records {
        type Machine = Recorder;

        async fn create(&self) -> Recorder {
            Recorder::default()
        }

        fn command(&self, random: &mut Random) -> Bytes {
            let size = random.below(40);
            (0..size).map(|_| random.any().to_le_bytes()[0]).collect()
        }
    }

    raftkv::state_machine_conformance!(Records);
}

mod durable {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Machines(Mutex<Durable>);

    impl state_machine::Backend for Machines {
        type Machine = Durable;

        async fn create(&self) -> Durable {
            let machine = Durable::default();
            *self.0.lock().expect("no test panicked here") = machine.clone();
            machine
        }

        fn command(&self, random: &mut Random) -> Bytes {
            random.below(1000).to_string().into()
        }

        async fn reopen(&self) -> Option<Durable> {
            Some(self.0.lock().expect("no test panicked here").clone())
        }
    }

    raftkv::state_machine_conformance!(Machines::default());
}
