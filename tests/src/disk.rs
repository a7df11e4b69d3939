//! A small disk of its own, to be filled.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// A mounted `tmpfs`. Unmounted when it goes away.
#[derive(Debug)]
pub struct SmallDisk {
    dir: TempDir,
    bytes: u64,
}

impl SmallDisk {
    /// Mounts a disk of that many bytes.
    ///
    /// # Errors
    /// The system does not permit it: that takes root, or does not work here at all.
    pub fn mount(bytes: u64) -> Result<Self> {
        let dir = TempDir::with_prefix("raftkv-disk-")?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "raftkv-test"])
            .arg(dir.path())
            .output()
            .context("can't run `mount`")?;
        if !output.status.success() {
            bail!("`mount -t tmpfs` is not permitted: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(Self { dir, bytes })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Fills it up, all but that many bytes.
    ///
    /// # Errors
    /// It can't be written at all.
    pub fn fill(&self, leave: u64) -> Result<()> {
        let mut file = File::create(self.filler())?;
        let chunk = [0x5a; 64 << 10];
        while file.write_all(&chunk).is_ok() {}
        let size = file.metadata()?.len();
        file.set_len(size.saturating_sub(leave))?;
        Ok(())
    }

    /// Makes room again.
    ///
    /// # Errors
    /// It was not full.
    pub fn make_room(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.filler())?)
    }

    /// Replaces it by a larger one with the same files.
    ///
    /// # Errors
    /// The system does not permit it any more.
    pub fn grow(&mut self, bytes: u64) -> Result<()> {
        self.bytes += bytes;
        let size = format!("remount,size={}", self.bytes);
        let output = Command::new("mount").args(["-o", &size]).arg(self.dir.path()).output()?;
        if !output.status.success() {
            bail!("`mount -o {size}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    fn filler(&self) -> PathBuf {
        self.dir.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is about to end may still hold a file.
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).output();
    }
}
