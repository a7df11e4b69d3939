//! The database: opened, written in transactions, and read.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use raftkv::{ClusterId, Fatal, LogId, NodeId, Record, RecordChange, StorageError, mutant};
use redb::{
    Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, TableHandle,
    WriteTransaction,
};
use tokio::sync::watch;

use super::first::First;
use super::meta::{self, State};
use super::place::Distrust;
use super::tables::{Failure, NewestKey, OlderKey, Pair, Tables, Value, Writing};
use super::trouble::{caught, fatal, panicked, told};
use super::{Options, Owner};
use crate::api::command::Author;
use crate::api::etcdserverpb::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use crate::machine::{Engine, NEVER_SWEPT, ReadError, apply_one};
use crate::store::{Auth, Checksum, Head, Image, Refusal, Room, Store};

const SESSIONS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("sessions");

/// What a batch counts beside its commands: no batch is free.
pub(super) const BATCH: u64 = 256;

/// The names of the tables with the keys. An image is restored into tables of the next generation.
fn newest_name(generation: u64) -> String {
    format!("newest-{generation}")
}

fn older_name(generation: u64) -> String {
    format!("older-{generation}")
}

/// A moment of the store. While it is held, nothing of it is overwritten.
pub(super) struct View {
    newest: ReadOnlyTable<NewestKey, Value>,
    older: ReadOnlyTable<OlderKey, Value>,
    sessions: ReadOnlyTable<&'static [u8], &'static [u8]>,
    pub(super) head: Head,
    pub(super) applied: LogId,
}

impl View {
    fn open(db: &Database, state: &State) -> Result<Self, redb::Error> {
        let transaction = db.begin_read()?;
        Ok(Self {
            newest: transaction.open_table(TableDefinition::new(&newest_name(state.generation)))?,
            older: transaction.open_table(TableDefinition::new(&older_name(state.generation)))?,
            sessions: transaction.open_table(SESSIONS)?,
            head: state.head.clone(),
            applied: state.applied,
        })
    }
}

/// The tables of a view, for one request.
pub(super) struct Reading {
    pub(super) view: Arc<View>,
    pub(super) failure: Failure,
}

impl Pair for Reading {
    type Newest = ReadOnlyTable<NewestKey, Value>;
    type Older = ReadOnlyTable<OlderKey, Value>;

    fn newest(&self) -> &Self::Newest {
        &self.view.newest
    }

    fn older(&self) -> &Self::Older {
        &self.view.older
    }

    fn failure(&self) -> &Failure {
        &self.failure
    }
}

impl<'t> Writing<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction, generation: u64) -> Result<Self, redb::Error> {
        Ok(Self {
            newest: transaction.open_table(TableDefinition::new(&newest_name(generation)))?,
            older: transaction.open_table(TableDefinition::new(&older_name(generation)))?,
            failure: Failure::default(),
        })
    }
}

/// What was written, and how much of it is on disk.
pub(super) struct Writer {
    state: State,
    /// The last command that a loss of power can't take away any more.
    durable: LogId,
    /// What was written since, in bytes and in commands.
    pub(super) bytes: u64,
    commands: u64,
}

/// The database, shared by the machine, its readers, its images and its sweep.
pub(super) struct Core {
    /// Its file, for messages.
    path: String,
    /// What is marked when the disk fails, so that the database is not trusted any more.
    distrust: Option<Distrust>,
    /// What went wrong first below it.
    first: First,
    /// Away at the very end.
    pub(super) db: Option<Database>,
    pub(super) options: Options,
    writer: Mutex<Writer>,
    view: RwLock<Arc<View>>,
    /// What was found to be wrong: nothing more is applied then.
    broken: OnceLock<Fatal>,
    pub(super) swept: watch::Sender<i64>,
    /// Whether a thread is dropping what a compaction has left.
    pub(super) sweeping: Mutex<bool>,
    /// Tells that thread to end.
    pub(super) stop: AtomicBool,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Core {
    /// Opens a database, or makes a new one. Where the disk fails on the way, it is not trusted any more either.
    pub(super) fn open(
        path: String,
        distrust: Option<Distrust>,
        open: impl FnOnce(First) -> Result<Database, DatabaseError>,
        owner: Owner,
        options: Options,
    ) -> Result<Self, Fatal> {
        let first = First::default();
        let opened = caught(|| -> Result<_, redb::Error> {
            let db = open(first.clone())?;
            let found = meta::load(&db, owner)?;
            Ok((db, found))
        });
        let (db, found) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return Err(told(&path, distrust.as_ref(), fatal(&path, first.told_by(error)))),
            Err(panic) => return Err(panicked(&path, &panic)),
        };
        let state = found.map_err(|reason| Fatal::from(StorageError::Refused { path: path.clone(), reason }))?;
        let prepared = caught(|| {
            prepare(&db, owner, &state)?;
            View::open(&db, &state)
        });
        let view = match prepared {
            Ok(Ok(view)) => view,
            Ok(Err(error)) => return Err(told(&path, distrust.as_ref(), fatal(&path, first.told_by(error)))),
            Err(panic) => return Err(panicked(&path, &panic)),
        };
        let (swept, _) = watch::channel(state.head.swept);
        let writer = Writer { durable: state.applied, state, bytes: 0, commands: 0 };
        Ok(Self {
            path,
            distrust,
            first,
            db: Some(db),
            options,
            writer: Mutex::new(writer),
            view: RwLock::new(Arc::new(view)),
            broken: OnceLock::new(),
            swept,
            sweeping: Mutex::new(false),
            stop: AtomicBool::new(false),
        })
    }

    // A thread that panicked has left what it was told to, or nothing: a poisoned lock adds nothing.
    pub(super) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn db(&self) -> Result<&Database, redb::Error> {
        self.db.as_ref().ok_or(redb::Error::DatabaseClosed)
    }

    /// What was found to be wrong stops the node with the next command: it can neither go on from it, nor answer for it. Nobody sweeps any more either.
    /// It is what was found first that counts: what fails later may do so because nothing is written any more, and no disk is to blame for that.
    fn broke(&self, fatal: Fatal) -> Fatal {
        if self.broken.set(fatal.clone()).is_err() {
            return self.broken.get().cloned().unwrap_or(fatal);
        }
        self.first.freeze();
        self.swept.send_replace(NEVER_SWEPT);
        told(&self.path, self.distrust.as_ref(), fatal)
    }

    fn fatal(&self, error: redb::Error) -> Fatal {
        fatal(&self.path, self.first.told_by(error))
    }

    fn check(&self) -> Result<(), Fatal> {
        self.broken.get().map_or(Ok(()), |fatal| Err(fatal.clone()))
    }

    /// One transaction, durable or not. What it makes of the state is in it as well, and readers see it afterwards.
    pub(super) fn transact<T>(
        &self,
        writer: &mut Writer,
        durable: bool,
        run: impl FnOnce(&WriteTransaction, &mut State) -> Result<Result<T, Fatal>, redb::Error>,
    ) -> Result<T, Fatal> {
        self.check()?;
        let mut state = writer.state.clone();
        let done = caught(|| -> Result<Result<(T, View), Fatal>, redb::Error> {
            let mut transaction = self.db()?.begin_write()?;
            transaction.set_durability(if durable { Durability::Immediate } else { Durability::None })?;
            transaction.set_quick_repair(durable);
            let answer = match run(&transaction, &mut state)? {
                Ok(answer) => answer,
                Err(fatal) => {
                    transaction.abort()?;
                    return Ok(Err(fatal));
                }
            };
            meta::save(&transaction, &writer.state, &state)?;
            transaction.commit()?;
            Ok(Ok((answer, View::open(self.db()?, &state)?)))
        });
        let (answer, view) = match done {
            Ok(Ok(Ok(done))) => done,
            // A command that this version does not know: nothing of its batch is done.
            Ok(Ok(Err(fatal))) => return Err(fatal),
            Ok(Err(error)) => return Err(self.broke(self.fatal(error))),
            Err(panic) => return Err(self.broke(panicked(&self.path, &panic))),
        };
        if durable {
            (writer.durable, writer.bytes, writer.commands) = (state.applied, 0, 0);
        }
        writer.state = state;
        let old = {
            let mut current = self.view.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, Arc::new(view))
        };
        drop(old);
        Ok(answer)
    }

    /// Applies commands, and keeps with them what `changes` says of the records.
    pub(super) fn apply(
        &self,
        commands: Vec<(LogId, Bytes)>,
        upto: LogId,
        changes: impl FnOnce(&[Bytes]) -> Vec<RecordChange>,
    ) -> Result<Vec<Bytes>, Fatal> {
        let mut writer = self.writer();
        writer.bytes += BATCH + commands.iter().map(|(_, command)| command.len() as u64).sum::<u64>();
        writer.commands += commands.len() as u64;
        let durable = writer.bytes >= self.options.sync_bytes || writer.commands >= self.options.sync_commands;
        let apart = mutant!("applied-apart-from-its-contents");
        let answers = self.transact(&mut writer, durable, |transaction, state| {
            let mut answers = Vec::with_capacity(commands.len());
            if !commands.is_empty() {
                let applied = change(transaction, state, |store| {
                    commands.into_iter().try_for_each(|(at, command)| {
                        answers.push(apply_one(store, at, command)?);
                        Ok(())
                    })
                })?;
                if let Err(fatal) = applied {
                    return Ok(Err(fatal));
                }
            }
            let mut sessions = None;
            for change in changes(&answers) {
                let sessions = match &mut sessions {
                    Some(sessions) => sessions,
                    none => none.insert(transaction.open_table(SESSIONS)?),
                };
                match change {
                    RecordChange::Put(Record { key, value }) => sessions.insert(&*key, &*value)?,
                    RecordChange::Delete(key) => sessions.remove(&*key)?,
                };
            }
            state.applied = if apart { state.applied } else { upto };
            Ok(Ok(answers))
        })?;
        if apart {
            self.transact(&mut writer, false, |_, state| {
                state.applied = upto;
                Ok(Ok(()))
            })?;
        }
        Ok(answers)
    }

    /// Sees to it that a loss of power can't take away what was applied up to here.
    pub(super) fn make_durable(&self, upto: LogId) -> Result<(), Fatal> {
        let mut writer = self.writer();
        if writer.durable >= upto {
            return Ok(());
        }
        self.transact(&mut writer, true, |_, _| Ok(Ok(())))
    }

    /// Sees to it that nothing of what was done needs to be done again after a restart.
    pub(super) fn close(&self) -> Result<(), Fatal> {
        let mut writer = self.writer();
        if writer.bytes == 0 {
            return Ok(());
        }
        self.transact(&mut writer, true, |_, _| Ok(Ok(())))
    }

    /// Changes the store without a command.
    #[cfg(test)]
    pub(super) fn change<T>(&self, run: impl FnOnce(&mut Store<Tables<Writing<'_>>>) -> T) -> Result<T, Fatal> {
        self.transact(&mut self.writer(), false, |transaction, state| change(transaction, state, run).map(Ok))
    }

    /// All records of sessions.
    pub(super) fn records(&self) -> Result<Vec<Record>, Fatal> {
        let view = self.view();
        let all = caught(|| -> Result<Vec<Record>, redb::Error> {
            let mut records = Vec::new();
            for entry in view.sessions.iter()? {
                let (key, value) = entry?;
                let (key, value) = (Bytes::copy_from_slice(key.value()), Bytes::copy_from_slice(value.value()));
                records.push(Record { key, value });
            }
            Ok(records)
        });
        match all {
            Ok(Ok(records)) => Ok(records),
            Ok(Err(error)) => Err(self.broke(self.fatal(error))),
            Err(panic) => Err(self.broke(panicked(&self.path, &panic))),
        }
    }

    /// Runs a read on a view of the store.
    pub(super) fn read<T>(
        &self,
        view: Arc<View>,
        run: impl FnOnce(&Store<Tables<Reading>>) -> Result<T, Refusal>,
    ) -> Result<T, ReadError> {
        let head = view.head.clone();
        let store = Store::over(Tables(Reading { view, failure: Failure::default() }), head);
        let answer = caught(|| run(&store));
        let failed = match (store.keys.0.failure.take(), answer) {
            (Ok(()), Ok(answer)) => return Ok(answer?),
            (Err(error), _) => self.fatal(error.into()),
            (Ok(()), Err(panic)) => panicked(&self.path, &panic),
        };
        tracing::error!(error = %failed, "a read failed");
        Err(ReadError::Failed(self.broke(failed).to_string()))
    }

    /// An image of what is there now.
    pub(super) fn image(&self) -> Image<Tables<Reading>> {
        let view = self.view();
        let head = view.head.clone();
        Image::new(Store::over(Tables(Reading { view, failure: Failure::default() }), head))
    }

    /// The next record of an image. Before its end the state that it reflects is made durable.
    pub(super) fn next_record(&self, image: &mut Image<Tables<Reading>>) -> Result<Option<Bytes>, Fatal> {
        let record = caught(|| image.next_record());
        let Reading { view, failure } = &mut image.store.keys.0;
        match (std::mem::take(failure).take(), record) {
            (Ok(()), Ok(Some(record))) => Ok(Some(record)),
            (Ok(()), Ok(None)) if mutant!("image-ends-before-it-is-durable") => Ok(None),
            (Ok(()), Ok(None)) => self.make_durable(view.applied).map(|()| None),
            (Err(error), _) => Err(self.broke(self.fatal(error.into()))),
            (Ok(()), Err(panic)) => Err(self.broke(panicked(&self.path, &panic))),
        }
    }
}

/// Restoring.
impl Core {
    /// Deletes what is left of another restore, and names the generation of tables for the next.
    pub(super) fn begin_restore(&self) -> Result<u64, Fatal> {
        let mut writer = self.writer();
        self.transact(&mut writer, false, |transaction, state| {
            delete_others(transaction, state.generation)?;
            Ok(Ok(state.generation + 1))
        })
    }

    /// Writes to tables that are not in force yet.
    pub(super) fn load(
        &self,
        generation: u64,
        durable: bool,
        insert: impl FnOnce(&mut Writing<'_>) -> Result<(), redb::Error>,
    ) -> Result<(), Fatal> {
        let mut writer = self.writer();
        self.transact(&mut writer, durable, |transaction, _| {
            insert(&mut Writing::open(transaction, generation)?)?;
            Ok(Ok(()))
        })
    }

    /// Puts these tables in force, durably, and deletes those before.
    pub(super) fn switch(
        &self,
        generation: u64,
        head: Head,
        records: Vec<Record>,
        applied: LogId,
    ) -> Result<(), Fatal> {
        let mut writer = self.writer();
        let swept = head.swept;
        let durable = !mutant!("restore-told-before-it-is-durable");
        self.transact(&mut writer, durable, |transaction, state| {
            // An image of nothing has made none.
            drop(Writing::open(transaction, generation)?);
            transaction.delete_table(SESSIONS)?;
            let mut sessions = transaction.open_table(SESSIONS)?;
            for Record { key, value } in records {
                sessions.insert(&*key, &*value)?;
            }
            *state = State { generation, head, applied };
            Ok(Ok(()))
        })?;
        self.swept.send_replace(swept);
        self.transact(&mut writer, false, |transaction, state| {
            delete_others(transaction, state.generation)?;
            Ok(Ok(()))
        })
    }
}

/// redb writes once more when it closes a database. Whatever holds a view of it is gone by now.
impl Drop for Core {
    fn drop(&mut self) {
        let Some(db) = self.db.take() else { return };
        let closed = caught(|| db.close());
        // After a failure there is nothing to be said that was not said then.
        if self.broken.get().is_some() {
            return;
        }
        let failed = match closed {
            Ok(Ok(())) => return,
            Ok(Err(error)) => self.fatal(error.into()),
            Err(panic) => panicked(&self.path, &panic),
        };
        let error = told(&self.path, self.distrust.as_ref(), failed);
        tracing::warn!(%error, "the database could not be closed in good order; what it lacks is in the log");
    }
}

impl Engine for Core {
    fn range(&self, author: Option<&Author>, request: &RangeRequest, room: Room) -> Result<RangeResponse, ReadError> {
        self.read(self.view(), |store| store.range_as(author, request, room))
    }

    fn read_txn(&self, author: Option<&Author>, request: &TxnRequest, room: Room) -> Result<TxnResponse, ReadError> {
        self.read(self.view(), |store| store.read_txn_as(author, request, room))
    }

    fn answer_bytes(&self, reads: &[RangeRequest], most: usize) -> Result<usize, ReadError> {
        self.read(self.view(), |store| store.answer_bytes(reads, most))
    }

    fn checksum(&self, revision: i64) -> Result<Checksum, ReadError> {
        self.read(self.view(), |store| store.checksum(revision))
    }

    fn head(&self) -> Head {
        self.view().head.clone()
    }

    fn auth(&self) -> Arc<Auth> {
        self.view().head.auth.clone()
    }

    fn is_quick(&self, _of_one_key: bool) -> bool {
        // Nobody knows what of it is in memory.
        !self.options.background
    }

    fn applied(&self) -> LogId {
        self.view().applied
    }

    fn swept(&self) -> watch::Receiver<i64> {
        self.swept.subscribe()
    }
}

/// Changes the store in a transaction. What was done to it after something went wrong counts for nothing.
pub(super) fn change<T>(
    transaction: &WriteTransaction,
    state: &mut State,
    run: impl FnOnce(&mut Store<Tables<Writing<'_>>>) -> T,
) -> Result<T, redb::Error> {
    let mut store = Store::over(Tables(Writing::open(transaction, state.generation)?), state.head.clone());
    let done = run(&mut store);
    let Store { keys, head } = store;
    keys.0.failure.take()?;
    state.head = head;
    Ok(done)
}

/// What a database needs before it is read: its own tables, and none that a restore has left.
fn prepare(db: &Database, owner: Owner, state: &State) -> Result<(), redb::Error> {
    let mut transaction = db.begin_write()?;
    transaction.set_quick_repair(true);
    meta::claim(&transaction, owner, state)?;
    drop(Writing::open(&transaction, state.generation)?);
    transaction.open_table(SESSIONS)?;
    delete_others(&transaction, state.generation)?;
    transaction.commit()?;
    Ok(())
}

/// Deletes tables with keys that are not in force.
fn delete_others(transaction: &WriteTransaction, generation: u64) -> Result<(), redb::Error> {
    let current = [newest_name(generation), older_name(generation)];
    let others: Vec<_> = transaction
        .list_tables()?
        .filter(|table| {
            let name = table.name();
            (name.starts_with("newest-") || name.starts_with("older-")) && !current.iter().any(|known| known == name)
        })
        .collect();
    for other in others {
        transaction.delete_table(other)?;
    }
    Ok(())
}

/// An owner, as bytes.
pub(super) fn identity(Owner { cluster: ClusterId(cluster), node: NodeId(node) }: Owner) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&cluster.to_le_bytes());
    bytes[8..].copy_from_slice(&node.to_le_bytes());
    bytes
}
