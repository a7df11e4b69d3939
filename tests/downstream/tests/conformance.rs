//! The suites of the crate, on these backends.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use downstream::{Images, Ledger, OneFile, Tcp, Transfer, serve};
use raftkv::testing::Random;
use raftkv::testing::conformance::{Fault, log_store, snapshot, state_machine, transport};
use raftkv::{
    ClusterId, Inbox, LogId, Membership, Peer, Shelved, Snapshot, SnapshotId, SnapshotMeta, StorageError, Transport,
};
use raftkv_storage_file::OsVfs;
use raftkv_storage_file::sim::{Fate, Restarts, SimDisk};
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
    type Store = Shelved<Images>;

    async fn open(&self) -> Result<Shelved<Images>, StorageError> {
        Images::open(Arc::new(OsVfs), self.path("images"))
    }

    fn damage(&self, place: u64) -> bool {
        let files = std::fs::read_dir(self.path("images")).expect("a directory").filter_map(Result::ok);
        let image = files.map(|entry| entry.path()).find(is_image).expect("an image");
        let mut bytes = std::fs::read(&image).expect("its bytes");
        let bit = place as usize % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(image, bytes).expect("room");
        true
    }
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
    type Store = Shelved<Images>;

    async fn open(&self) -> Result<Shelved<Images>, StorageError> {
        Images::open(Arc::new(self.0.restarted()), "/images".into())
    }

    fn arm(&self, fault: Fault, after: u64) -> bool {
        self.0.arm(fault, after)
    }

    fn damage(&self, place: u64) -> bool {
        let disk = self.0.disk();
        let image = disk.files().into_iter().find(is_image).expect("an image");
        let bit = place as usize % (disk.contents(&image).expect("its bytes").len() * 8);
        disk.flip(&image, bit / 8, 1 << (bit % 8));
        true
    }
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

/// A process was killed while it published the second image, and power is lost at any moment of the next one's opening: either image has to be left, as the log is cut up to the first.
#[tokio::test]
async fn a_loss_of_power_while_images_are_opened_after_a_kill_leaves_one() {
    let open = |disk: &SimDisk| Images::open(Arc::new(disk.clone()), "/images".into());
    let publish = async |store: &Shelved<Images>, index: u64| {
        let (id, last) = (SnapshotId(index), LogId::new(1, index));
        let membership = Membership::new([Peer::new(1, "a:1")]);
        let mut writer =
            store.begin(SnapshotMeta { id, last, membership, membership_at: last }).await.expect("a writer");
        writer.append(Bytes::from(vec![7; 900])).await.expect("room");
        writer.publish().await.expect("an image");
    };
    let disk = SimDisk::new();
    let store = open(&disk).expect("images");
    publish(&store, 10).await;
    disk.record();
    publish(&store, 20).await;
    for (at, moment) in disk.take_recording().iter().enumerate() {
        for after in 0..12 {
            let killed = moment.kill();
            killed.die_at(killed.operations() + after);
            drop(open(&killed));
            let then = killed.now();
            for one in 0..=then.pending().len() {
                for (all, other) in [(Fate::Kept, Fate::Lost), (Fate::Lost, Fate::Kept)] {
                    let mut asked = 0;
                    let left = then.lose_power(|_| {
                        asked += 1;
                        if asked == one { other } else { all }
                    });
                    let latest = open(&left).expect("images").latest().await.expect("the latest");
                    assert!(latest.is_some(), "killed at {at}, {after} operations later no image was left");
                }
            }
        }
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

mod tcp {
    raftkv::transport_conformance!(super::Network);
}

mod ledger {
    raftkv::state_machine_conformance!(super::Machines);
}
