//! The database below the machine: against the model of the store, and what is told of a damaged one.

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use proptest::prelude::*;
use raftkv::{ClusterId, NodeId};
use redb::ReadableDatabase;
use redb::backends::InMemoryBackend;

use super::*;
use crate::api::command::{Author, auth_change};
use crate::api::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};
use crate::machine::ReadError;
use crate::store::model::{self, Change, Model, Subject, steps};
use crate::store::{Refusal, Room, Store, model_room};

const OWNER: Owner = Owner { cluster: ClusterId(7), node: NodeId(1) };

struct InTables(Arc<Core>);

fn core() -> Arc<Core> {
    let options = Options { cache_bytes: 1 << 20, ..Options::default() };
    let open = |first| database("kv.redb", InMemoryBackend::new(), options, first);
    Arc::new(Core::open("kv.redb".into(), None, open, OWNER, Options::default()).expect("a database"))
}

fn compare(core: &Core, view: Arc<database::View>, model: &Model) {
    let compared = core.read(view, |store| {
        model::compare(store, model, |key, version, _| tables::cost(key, version.as_bytes()));
        assert_eq!(model::step_by_step(store), model::in_one_go(store));
        Ok(())
    });
    assert_eq!(compared, Ok(()));
}

fn image(core: &Core) -> Vec<u8> {
    let mut image = core.image();
    std::iter::from_fn(|| core.next_record(&mut image).expect("a record")).flatten().collect()
}

fn load(core: &Arc<Core>, image: &[u8], chunk: usize) {
    let mut loader = Loader::into(Fresh::begin(core.clone()).expect("fresh tables"));
    image.chunks(chunk).for_each(|bytes| loader.push(bytes).expect("a good image"));
    let Store { keys: mut fresh, head } = loader.finish().expect("a whole image");
    let generation = fresh.end().expect("the last part");
    core.switch(generation, head, Vec::new(), LogId::ZERO).expect("a switch");
}

impl Subject for InTables {
    fn new() -> Self {
        Self(core())
    }

    fn compare(&self, model: &Model) {
        compare(&self.0, self.0.view(), model);
    }

    fn read(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        self.0.read(self.0.view(), |store| store.range(request, usize::MAX)).map_err(|error| match error {
            ReadError::Refused(refusal) => refusal,
            ReadError::Failed(reason) => panic!("{reason}"),
        })
    }

    fn read_as(&self, author: Option<&Author>, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        crate::machine::Engine::range(&*self.0, author, request, usize::MAX.into()).map_err(|error| match error {
            ReadError::Refused(refusal) => refusal,
            ReadError::Failed(reason) => panic!("{reason}"),
        })
    }

    fn change_auth(&mut self, change: &auth_change::Change) -> Result<(), Refusal> {
        self.0.change(|store| model::change_auth(store, change)).expect("a change, or its refusal")
    }

    fn change(&mut self, changes: &[Change]) {
        self.0.change(|store| model::change(store, changes)).expect("changes");
    }

    fn compact(&mut self, revision: i64) -> Result<(), Refusal> {
        self.0.change(|store| model::compact(store, revision)).expect("a compaction, or its refusal")
    }

    fn sweep(&mut self, slices: usize, keys: usize) {
        let mut next = None;
        for _ in 0..slices {
            next = self.0.sweep_step(next, keys).expect("a step");
            if next.is_none() {
                return;
            }
        }
    }

    fn freeze(&self) -> Box<dyn Fn(&Model)> {
        let (core, view) = (self.0.clone(), self.0.view());
        Box::new(move |model| compare(&core, view.clone(), model))
    }

    fn reload(&mut self, chunk: usize) {
        let before = image(&self.0);
        load(&self.0, &before, chunk);
        assert_eq!(image(&self.0), before);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_in_tables_is_what_the_model_says(steps in steps()) {
        model::run::<InTables>(steps);
    }
}

fn put(key: &str, value: &[u8]) -> Change {
    Change::Put(PutRequest { key: key.to_owned().into(), value: value.to_vec().into(), ..Default::default() })
}

/// Nodes with different engines serve each other.
#[test]
fn images_are_the_same_bytes_from_both_engines_and_load_into_both() {
    let (core, mut memory) = (core(), Store::new());
    for n in 0..3000_u32 {
        let change = [put(&format!("key-{}", n % 70), &vec![n as u8; (n % 300) as usize]), put("hot", &[7; 90])];
        core.change(|store| model::change(store, &change)).expect("changes");
        model::change(&mut memory, &change);
    }
    core.change(|store| model::compact(store, 1000)).expect("a compaction").expect("done");
    model::compact(&mut memory, 1000).expect("done");
    let from_memory = model::image(memory.freeze());
    assert!(from_memory.len() > 500_000, "it spans records");
    assert_eq!(image(&core), from_memory);
    let other = self::core();
    load(&other, &from_memory, 70_000);
    assert_eq!(image(&other), from_memory);
    assert_eq!(other.read(other.view(), |store| store.checksum(0)), Ok(memory.checksum(0).expect("a checksum")));
}

/// A key with a long past is dropped in steps, each of which lets others in between.
#[test]
fn much_garbage_of_one_key_takes_several_steps() {
    let core = core();
    let changes: Vec<_> = (0..10_000_u32).map(|n| put("hot", &n.to_le_bytes())).collect();
    core.change(|store| changes.iter().for_each(|one| model::change(store, std::slice::from_ref(one))))
        .expect("changes");
    core.change(|store| model::compact(store, 10_001)).expect("a compaction").expect("done");
    let (mut steps, mut next) = (0, None);
    loop {
        next = core.sweep_step(next, 512).expect("a step");
        steps += 1;
        if next.is_none() {
            break;
        }
    }
    assert!(steps > 2, "{steps} steps");
    assert_eq!(crate::machine::Engine::head(&*core).stats.versions, 1);
}

/// A disk that takes writes, until its syncs fail, and answers reads, unless it hangs. Clones are the same disk.
#[derive(Clone, Debug, Default)]
struct Failing {
    disk: Arc<InMemoryBackend>,
    hangs: Arc<std::sync::atomic::AtomicBool>,
    fails: Arc<std::sync::atomic::AtomicBool>,
}

impl Failing {
    fn open(&self, mark: &Path) -> Result<Core, Fatal> {
        let (disk, options) = (self.clone(), Options { cache_bytes: 0, ..Options::default() });
        let place = Place::look(Arc::new(OsVfs), &mark.with_extension("")).expect("a directory");
        assert_eq!(place.distrust().path(), mark);
        let open = |first| database("kv.redb", disk, options, first);
        Core::open("kv.redb".into(), Some(place.distrust()), open, OWNER, options)
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
    }

    fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::Relaxed);
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> std::io::Result<u64> {
        self.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let began = std::time::Instant::now();
        while self.hangs.load(Ordering::Relaxed) {
            std::thread::sleep(std::time::Duration::from_millis(1));
            // Not for ever, so that a test that waits for it fails.
            if began.elapsed() > std::time::Duration::from_secs(5) {
                self.hang(false);
            }
        }
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("the disk is sick"));
        }
        self.disk.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.disk.write(offset, data)
    }
}

/// What the page cache shows after a failed sync need not be on the disk.
#[test]
fn a_database_whose_disk_failed_is_made_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("kv.redb");
    let mark = dir.path().join("kv.redb.failed");
    let disk = Failing::default();
    let core = disk.open(&mark).expect("a database");
    core.change(|store| model::change(store, &[put("a", b"1")])).expect("a change");
    assert!(!mark.exists());
    disk.fail(true);
    let error = core.make_durable(LogId::new(9, 9)).expect_err("the sync fails").to_string();
    assert!(error.contains("the disk is sick"), "{error}");
    assert!(core.change(|_| ()).is_err(), "it goes on");
    assert!(mark.exists());

    std::fs::write(&path, b"whatever the page cache shows").expect("a file");
    let machine = RedbMachine::open(&path, OWNER, Options::default()).expect("a new database");
    assert_eq!(machine.view().revision(), 1);
    assert!(!mark.exists());
}

/// A full disk has no room for a mark either, and after that somebody makes room. A start that finds no mark believes what the page cache shows.
#[test]
fn a_database_whose_disk_failed_is_made_anew_also_where_no_mark_can_be_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, mark) = (dir.path().join("kv.redb"), dir.path().join("kv.redb.failed"));
    // What lies behind this name can't be made.
    std::os::unix::fs::symlink(dir.path().join("nowhere/at-all"), &mark).expect("a link");
    std::fs::write(&path, b"whatever the page cache shows").expect("a file");
    let disk = Failing::default();
    let core = disk.open(&mark).expect("a database");
    core.change(|store| model::change(store, &[put("a", b"1")])).expect("a change");
    disk.fail(true);
    let error = core.make_durable(LogId::new(9, 9)).expect_err("the sync fails").to_string();
    assert!(error.contains("the disk is sick"), "{error}");
    std::fs::remove_file(&mark).expect("the link");
    let machine = RedbMachine::open(&path, OWNER, Options::default()).expect("a new database");
    assert_eq!(machine.view().revision(), 1);
}

/// What `meta` says of the format, and whether it says something of users.
fn noted(core: &Core) -> (Vec<u8>, bool) {
    let meta: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");
    let meta = core.db.as_ref().expect("open").begin_read().expect("a view").open_table(meta).expect("the table");
    let format = meta.get("format").expect("readable").expect("there").value().to_vec();
    (format, meta.get("auth").expect("readable").is_some())
}

/// A version that knows nothing of users knows format 1, and refuses the others.
#[test]
fn users_are_there_again_and_keep_older_versions_out() {
    use crate::api::command::{RoleAdd, UserAdd};
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("kv.redb");
    let open = || RedbMachine::open(&path, OWNER, Options::default()).expect("a database");
    let machine = open();
    assert_eq!(noted(&machine.core), (vec![1], false));
    let changes = [
        auth_change::Change::UserAdd(UserAdd { name: "ann".into(), password_hash: "p".into() }),
        auth_change::Change::RoleAdd(RoleAdd { name: "r".into() }),
    ];
    for change in &changes {
        machine.core.change(|store| model::change_auth(store, change)).expect("a change").expect("done");
    }
    let before = machine.view().auth();
    drop(machine);
    let machine = open();
    assert_eq!((machine.view().auth(), noted(&machine.core)), (before.clone(), (vec![2], true)));
    assert_eq!(before.revision(), 3);
    // An image without users takes them away.
    load(&machine.core, &model::image(Store::new()), 100);
    assert_eq!(noted(&machine.core), (vec![1], false));
    drop(machine);
    assert_eq!(*open().view().auth(), crate::store::Auth::default());
}

/// A start writes as well, and so does an orderly end, after the last command: of the database that a disk failed then nobody knows more.
#[test]
fn a_database_whose_disk_fails_at_a_start_or_an_end_is_not_trusted_either() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = dir.path().join("kv.redb.failed");
    let disk = Failing::default();
    let core = disk.open(&mark).expect("a database");
    core.change(|store| model::change(store, &[put("a", b"1")])).expect("a change");
    core.close().expect("a sync");
    assert!(!mark.exists());
    disk.fail(true);
    drop(core);
    assert!(mark.exists(), "the last commit failed, and the next start is not told");

    std::fs::remove_file(&mark).expect("a mark");
    disk.fail(false);
    drop(disk.open(&mark).expect("a database"));
    assert!(!mark.exists());
    disk.fail(true);
    let error = disk.open(&mark).expect_err("the disk is sick").to_string();
    assert!(error.contains("the disk is sick"), "{error}");
    assert!(mark.exists(), "a start failed, and the next one is not told");
}

/// A rule of the store that panics does so on every node: whoever deletes databases over it deletes all of them.
#[test]
fn a_panic_that_is_not_of_the_database_is_not_told_as_damage() {
    let core = core();
    let error = core.change(|_| -> () { panic!("revisions go back") }).expect_err("it panicked").to_string();
    assert!(error.contains("revisions go back") && error.contains("kv.redb"), "{error}");
    assert!(error.contains("leave the file as it is") && !error.contains("move the file away"), "{error}");
    assert!(core.change(|_| ()).is_err(), "it goes on");
}

/// redb closes such a database with a commit of one phase, on which a loss of power may leave nothing that can be opened.
#[test]
fn nothing_is_written_to_a_database_any_more_in_which_something_is_wrong() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Failing::default();
    let core = disk.open(&dir.path().join("kv.redb.failed")).expect("a database");
    core.change(|store| model::change(store, &[put("a", b"1")])).expect("a change");
    core.make_durable(LogId::new(9, 9)).expect("a sync");
    core.change(|store| model::change(store, &[put("a", b"2")])).expect("a change");
    let bytes = || {
        let mut all = vec![0; disk.disk.len().expect("a length") as usize];
        disk.disk.read(0, &mut all).expect("all of it");
        all
    };
    core.change(|_| -> () { panic!("revisions go back") }).expect_err("it panicked");
    let before = bytes();
    drop(core);
    assert!(bytes() == before, "it was written to");
    let again = disk.open(&dir.path().join("kv.redb.failed")).expect("it is as it was synced");
    assert!(again.change(|_| ()).is_ok());
}

/// Such writes fail, and that is no failure of the disk: the node would give another reason than the one it stopped for, and its next start would replace a
/// file that is to be left as it is.
#[test]
fn a_write_that_is_kept_from_such_a_database_is_not_told_as_a_failure_of_its_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = dir.path().join("kv.redb.failed");
    let core = Failing::default().open(&mark).expect("a database");
    // While it is under way a read comes upon something.
    let committed = core.transact(&mut core.writer(), true, |_, _| {
        let read = core.read(core.view(), |_| -> Result<(), Refusal> { panic!("revisions go back") });
        assert!(read.is_err());
        Ok(Ok(()))
    });
    let error = committed.expect_err("it was written to").to_string();
    assert!(error.contains("revisions go back") && error.contains("leave the file as it is"), "{error}");
    assert!(!mark.exists(), "the next start replaces the file");
}

/// A client that waits for the room of what it compacted is told, and does not wait until it loses patience.
#[tokio::test]
async fn a_sweep_that_can_not_end_is_told_to_whoever_waits_for_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Failing::default();
    let core = Arc::new(disk.open(&dir.path().join("kv.redb.failed")).expect("a database"));
    let changes = [put("a", b"1"), put("a", b"2")];
    changes
        .iter()
        .for_each(|one| core.change(|store| model::change(store, std::slice::from_ref(one))).expect("a change"));
    core.change(|store| model::compact(store, 3)).expect("a compaction").expect("done");
    let view = KvView::new(core.clone());
    let waiting = tokio::spawn(async move { view.swept(3).await });
    tokio::task::yield_now().await;
    disk.fail(true);
    core.make_durable(LogId::new(9, 9)).expect_err("the sync fails");
    core.sweep();
    let told = tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await.expect("it is still waiting");
    let error = told.expect("no panic").expect_err("nothing was dropped").to_string();
    assert!(error.contains("could not be dropped"), "{error}");
}

/// More than one page of keys, on a disk that answers no read before it is told to.
fn on_a_disk_that_hangs() -> (Failing, KvView) {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Failing::default();
    let core = Arc::new(disk.open(&dir.path().join("kv.redb.failed")).expect("a database"));
    let changes: Vec<_> = (0..2000).map(|n| put(&format!("key-{n}"), &[7; 90])).collect();
    core.change(|store| changes.iter().for_each(|one| model::change(store, std::slice::from_ref(one))))
        .expect("changes");
    core.close().expect("a sync");
    disk.hang(true);
    (disk, KvView::new(core))
}

/// On the threads that serve clients the protocol runs too: it could neither send heartbeats nor notice that the disk hangs.
#[tokio::test]
async fn a_get_from_a_disk_that_hangs_holds_up_no_other_task() {
    let (disk, view) = on_a_disk_that_hangs();
    let get = RangeRequest { key: "key-1000".into(), ..Default::default() };
    let get = tokio::spawn(async move { view.range(get).await });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!get.is_finished(), "all others waited for the disk, or the get did not");
    disk.hang(false);
    assert_eq!(get.await.expect("no panic").expect("an answer").count, 1);
}

/// There are 512 threads for all that blocks, and others need them: certificates are read on them, for one.
#[tokio::test]
async fn gets_from_a_disk_that_hangs_leave_threads_to_others() {
    let (disk, view) = on_a_disk_that_hangs();
    let begun = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut gets = tokio::task::JoinSet::new();
    for _ in 0..600 {
        let begun = begun.clone();
        let (view, get) = (view.clone(), RangeRequest { key: "key-1000".into(), ..Default::default() });
        // Polled one after the other.
        let and_then = async move { begun.fetch_add(1, Ordering::Relaxed) };
        gets.spawn(async move { futures_util::future::join(view.range(get), and_then).await.0 });
    }
    while begun.load(Ordering::Relaxed) < 600 {
        tokio::task::yield_now().await;
    }
    let other = tokio::task::spawn_blocking(|| ());
    let other = tokio::time::timeout(std::time::Duration::from_secs(2), other).await;
    other.expect("all threads wait for the disk").expect("no panic");
    assert!(gets.try_join_next().is_none(), "the disk does not hang any more");
    disk.hang(false);
    while let Some(get) = gets.join_next().await {
        assert_eq!(get.expect("no panic").expect("an answer").count, 1);
    }
}

/// Many that gather much at once refuse each other where room runs out, and whoever pages through keys does not wait for them.
#[tokio::test]
async fn few_reads_of_much_run_at_once_and_others_pass_them() {
    let (disk, view) = on_a_disk_that_hangs();
    disk.hang(false);
    let all = RangeRequest { key: "key".into(), range_end: "kez".into(), ..Default::default() };
    // Until there is room, whoever takes some waits.
    let there_is_room = Arc::new(AtomicBool::new(false));
    let (gathering, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut reads = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (there_is_room, gathering, most) = (there_is_room.clone(), gathering.clone(), most.clone());
        let room = Room::held(usize::MAX, move |_| {
            most.fetch_max(gathering.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            while !there_is_room.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            gathering.fetch_sub(1, Ordering::SeqCst);
            true
        });
        let (view, all) = (view.clone(), all.clone());
        reads.spawn(async move { view.range_within(None, all, room).await });
    }
    while gathering.load(Ordering::SeqCst) < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let few = [RangeRequest { limit: 10, ..all.clone() }, RangeRequest { count_only: true, ..all }];
    for request in few {
        let answer = tokio::time::timeout(Duration::from_secs(10), view.range(request)).await;
        assert_eq!(answer.expect("it waited for the others").expect("an answer").count, 2000);
    }
    there_is_room.store(true, Ordering::SeqCst);
    while let Some(read) = reads.join_next().await {
        assert_eq!(read.expect("no panic").expect("an answer").kvs.len(), 2000);
    }
    assert_eq!(most.load(Ordering::SeqCst), 4);
}

#[test]
fn room_is_asked_for_before_an_answer_is_made() {
    let mut tables = InTables::new();
    tables.change(&model_room::many_large());
    let core = tables.0;
    model_room::room_is_asked_for_before_an_answer_is_made(|request, room| {
        let answer = crate::machine::Engine::range(&*core, None, request, room);
        answer.map_err(|error| match error {
            ReadError::Refused(refusal) => refusal,
            ReadError::Failed(reason) => panic!("{reason}"),
        })
    });
}
