//! Images in a directory, a file each: what it is, and its bytes. A draft becomes an image when its checksum is behind them and it is renamed. The
//! latest image is held in memory as well, and all is done where it is called: a store for large images would leave that to threads of its own.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use raftkv::{Drafts, Published, Snapshot, SnapshotId, SnapshotMeta, SnapshotWriter, StorageError, Turn};

use crate::{lock, records};

struct Shared {
    dir: PathBuf,
    drafts: Drafts,
    latest: Mutex<Option<(Published, Bytes)>>,
}

/// The store.
pub struct Images(Arc<Shared>);

struct Writer {
    shared: Arc<Shared>,
    turn: Turn,
    draft: PathBuf,
    meta: SnapshotMeta,
    file: File,
    offset: u64,
    checksum: u32,
}

fn damaged(path: &Path, offset: usize) -> StorageError {
    let reason = "it does not match its checksum".into();
    StorageError::Corrupt { path: path.display().to_string(), offset: offset as u64, index: None, reason }
}

impl Shared {
    fn path(&self, SnapshotMeta { last, id, .. }: &SnapshotMeta, extension: &str) -> PathBuf {
        self.dir.join(format!("{:016x}-{:016x}-{id}.{extension}", last.term.0, last.index.0))
    }

    /// What files of this kind hold, in the order of what it reflects.
    fn list(&self, extension: &str) -> Result<Vec<(SnapshotMeta, Bytes)>, StorageError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(StorageError::io("list", &self.dir))?.filter_map(Result::ok) {
            let path = entry.path();
            if path.extension().is_some_and(|found| found == extension) {
                let bytes = Bytes::from(fs::read(&path).map_err(StorageError::io("read", &path))?);
                match records::decode(&bytes) {
                    Some((meta, len)) => found.push((meta, bytes.slice(len..))),
                    None if extension == "image" => return Err(damaged(&path, 0)),
                    // A draft that was not begun whole holds nothing.
                    None => {}
                }
            }
        }
        found.sort_by_key(|(meta, _): &(SnapshotMeta, _)| meta.last);
        Ok(found)
    }

    fn remove(&self, meta: &SnapshotMeta, extension: &str) -> Result<(), StorageError> {
        let path = self.path(meta, extension);
        fs::remove_file(&path).map_err(StorageError::io("remove", &path))
    }
}

impl Images {
    /// Opens the images in this directory, which may be new.
    pub fn open(dir: PathBuf) -> Result<Self, StorageError> {
        fs::create_dir_all(&dir).map_err(StorageError::io("create", &dir))?;
        let shared = Shared { dir, drafts: Drafts::default(), latest: Mutex::default() };
        let mut images = shared.list("image")?;
        if let Some((meta, mut image)) = images.pop() {
            let (path, len) = (shared.path(&meta, "image"), image.len());
            let end = image.split_off(len.saturating_sub(4));
            let checksum = crc32c::crc32c(&image);
            if end != checksum.to_be_bytes()[..] {
                return Err(damaged(&path, len));
            }
            let published = Published { meta, len: image.len() as u64, checksum };
            *lock(&shared.latest) = Some((published, image));
        }
        images.iter().try_for_each(|(older, _)| shared.remove(older, "image"))?;
        Ok(Self(Arc::new(shared)))
    }
}

#[async_trait]
impl Snapshot for Images {
    async fn latest(&self) -> Result<Option<Published>, StorageError> {
        Ok(lock(&self.0.latest).as_ref().map(|(published, _)| published.clone()))
    }

    async fn read(&self, id: &SnapshotId, offset: u64, max: usize) -> Result<Bytes, StorageError> {
        let latest = lock(&self.0.latest);
        let image = latest.as_ref().filter(|(published, _)| published.meta.id == *id);
        let (_, image) = image.ok_or_else(|| StorageError::Misuse(format!("there is no image {id}")))?;
        let from = (offset as usize).min(image.len());
        Ok(image.slice(from..from.saturating_add(max).min(image.len())))
    }

    async fn begin(&self, meta: SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, StorageError> {
        let (shared, draft) = (self.0.clone(), self.0.path(&meta, "draft"));
        let unfinished = shared.list("draft")?;
        let (turn, gone) = shared.drafts.begin(&meta, unfinished.iter().map(|(meta, _)| meta.clone()).collect());
        gone.iter().try_for_each(|draft| shared.remove(draft, "draft"))?;
        let there = unfinished.into_iter().find(|(other, _)| *other == meta).map(|(_, bytes)| bytes);
        let mut file = match there {
            Some(_) => File::options().append(true).open(&draft),
            None => File::create(&draft),
        }
        .map_err(StorageError::io("open", &draft))?;
        if there.is_none() {
            records::push(&mut file, &draft, &meta)?;
            records::sync_names(&shared.dir)?;
        }
        let bytes = there.unwrap_or_default();
        let (offset, checksum) = (bytes.len() as u64, crc32c::crc32c(&bytes));
        Ok(Box::new(Writer { shared, turn, draft, meta, file, offset, checksum }))
    }
}

#[async_trait]
impl SnapshotWriter for Writer {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn checksum(&self) -> u32 {
        self.checksum
    }

    async fn append(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        self.shared.drafts.check(&self.turn)?;
        let written = self.file.write_all(&chunk).and_then(|()| self.file.sync_data());
        written.map_err(StorageError::io("write", &self.draft))?;
        self.checksum = crc32c::crc32c_append(self.checksum, &chunk);
        self.offset += chunk.len() as u64;
        Ok(())
    }

    async fn publish(mut self: Box<Self>) -> Result<(), StorageError> {
        let end = self.checksum.to_be_bytes().to_vec();
        self.append(end.into()).await?;
        let Self { shared, draft, meta, .. } = *self;
        let image = shared.path(&meta, "image");
        fs::rename(&draft, &image).map_err(StorageError::io("rename", &draft))?;
        records::sync_names(&shared.dir)?;
        *lock(&shared.latest) = lock(&Images::open(shared.dir.clone())?.0.latest).take();
        Ok(())
    }

    async fn discard(self: Box<Self>) -> Result<(), StorageError> {
        self.shared.drafts.check(&self.turn)?;
        self.shared.remove(&self.meta, "draft")?;
        records::sync_names(&self.shared.dir)
    }
}
