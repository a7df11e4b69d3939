//! The suites of the crate, on these backends.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use downstream::{Images, Ledger, OneFile, Shelves, Tcp, Transfer, serve};
use raftkv::testing::Random;
use raftkv::testing::conformance::{Fault, log_store, snapshot, state_machine, transport};
use raftkv::{ClusterId, Inbox, Peer, Shelved, StorageError, Transport};
use raftkv_storage_file::OsVfs;
use raftkv_storage_file::sim::{Restarts, SimDisk};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// On real files.
struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl log_store::Backend for Dir {
    type Store = OneFile;

    async fn open(&self) -> OneFile {
        OneFile::open(Arc::new(OsVfs), self.path("log")).expect("a log")
    }
}

impl snapshot::Backend for Dir {
    type Store = Images;

    async fn open(&self) -> Result<Images, StorageError> {
        Images::open(Arc::new(OsVfs), self.path("images"))
    }

    fn damage(&self, place: u64) -> bool {
        flip(&self.path("images"), place)
    }
}

/// The same, by way of a shelf.
struct ShelfDir(Dir);

impl snapshot::Backend for ShelfDir {
    type Store = Shelved<Shelves>;

    async fn open(&self) -> Result<Shelved<Shelves>, StorageError> {
        Shelves::open(Arc::new(OsVfs), self.0.path("images"))
    }

    fn damage(&self, place: u64) -> bool {
        let files = std::fs::read_dir(self.0.path("images")).expect("a directory").filter_map(Result::ok);
        flip(&files.map(|entry| entry.path()).find(is_image).expect("an image"), place)
    }
}

fn flip(file: &Path, place: u64) -> bool {
    let mut bytes = std::fs::read(file).expect("its bytes");
    let bit = place as usize % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    std::fs::write(file, bytes).expect("room");
    true
}

/// On a disk that is killed, loses power and fails at any operation.
struct Disk(Restarts);

impl Disk {
    fn new() -> Self {
        Self(Restarts::new(1))
    }
}

impl log_store::Backend for Disk {
    type Store = OneFile;

    async fn open(&self) -> OneFile {
        OneFile::open(Arc::new(self.0.restarted()), "/log".into()).expect("a log")
    }

    fn arm(&self, fault: Fault, after: u64) -> bool {
        self.0.arm(fault, after)
    }
}

impl snapshot::Backend for Disk {
    type Store = Images;

    async fn open(&self) -> Result<Images, StorageError> {
        Images::open(Arc::new(self.0.restarted()), "/images".into())
    }

    fn arm(&self, fault: Fault, after: u64) -> bool {
        self.0.arm(fault, after)
    }

    fn arm_opening(&self, fault: Fault, after: u64) -> bool {
        self.0.arm_opening(fault, after)
    }

    fn damage(&self, place: u64) -> bool {
        flip_on(&self.0.disk(), Path::new("/images"), place)
    }
}

/// The same, by way of a shelf.
struct ShelfDisk(Disk);

impl snapshot::Backend for ShelfDisk {
    type Store = Shelved<Shelves>;

    async fn open(&self) -> Result<Shelved<Shelves>, StorageError> {
        Shelves::open(Arc::new(self.0.0.restarted()), "/images".into())
    }

    fn arm(&self, fault: Fault, after: u64) -> bool {
        self.0.0.arm(fault, after)
    }

    fn arm_opening(&self, fault: Fault, after: u64) -> bool {
        self.0.0.arm_opening(fault, after)
    }

    fn damage(&self, place: u64) -> bool {
        let disk = self.0.0.disk();
        flip_on(&disk, &disk.files().into_iter().find(is_image).expect("an image"), place)
    }
}

fn flip_on(disk: &SimDisk, file: &Path, place: u64) -> bool {
    let bit = place as usize % (disk.contents(file).expect("its bytes").len() * 8);
    disk.flip(file, bit / 8, 1 << (bit % 8));
    true
}

fn is_image(path: &PathBuf) -> bool {
    path.extension().is_some_and(|kind| kind == "image")
}

struct Network;

#[async_trait]
impl transport::Network for Network {
    async fn listen(&self, inbox: Inbox, address: Option<&str>) -> transport::Listener {
        let listener = TcpListener::bind(address.unwrap_or("127.0.0.1:0")).await.expect("an address");
        let address = listener.local_addr().expect("an address").to_string().into();
        let serving = tokio::spawn(serve(listener, inbox));
        let stop = Box::pin(async move {
            serving.abort();
            let _ = serving.await;
        });
        transport::Listener { address, stop }
    }

    fn transport(&self, cluster: ClusterId, node: Peer) -> Arc<dyn Transport> {
        Arc::new(Tcp::new(cluster, node))
    }
}

struct Machines;

impl state_machine::Backend for Machines {
    type Machine = Ledger;

    async fn create(&self) -> Ledger {
        Ledger::default()
    }

    fn command(&self, random: &mut Random) -> Bytes {
        let mut account = || random.below(4) as u8;
        let (from, to) = (account(), account());
        let transfer = Transfer { from, to, amount: random.below(80) };
        postcard::to_stdvec(&transfer).expect("a command").into()
    }
}

mod log {
    raftkv::log_store_conformance!(super::Dir::new());
}

mod log_on_a_disk_that_fails {
    raftkv::log_store_conformance!(super::Disk::new());
}

mod images {
    raftkv::snapshot_conformance!(super::Dir::new());
}

mod images_on_a_disk_that_fails {
    raftkv::snapshot_conformance!(super::Disk::new());
}

mod images_on_a_shelf {
    raftkv::snapshot_conformance!(super::ShelfDir(super::Dir::new()));
}

mod images_on_a_shelf_on_a_disk_that_fails {
    raftkv::snapshot_conformance!(super::ShelfDisk(super::Disk::new()));
}

mod tcp {
    raftkv::transport_conformance!(super::Network);
}

mod ledger {
    raftkv::state_machine_conformance!(super::Machines);
}
