//! A file that is replaced whole, with the room for its next version reserved: a disk that fills up cannot refuse what has
//! been promised.
//!
//! The next version is written into a spare file beside it, whose blocks are there already, and the two change places. What is
//! not needed of the room is filled with spaces, so that no block is given back: the readers are JSON's, which pass over them.
//!
//! What nobody asked for grows the file too: a drain that ends, a check that fails. So each write leaves the next one some room
//! more than it took itself, as far as the disk has it.

use std::{
    fs::{self, File},
    io::{self, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with},
    io::Errno,
};

use crate::ownership;

/// Room beyond what is needed, so that not every change asks for more.
const SLACK: u64 = 64 << 10;
/// Bytes of a block, as `stat` counts them.
const BLOCK: u64 = 512;

/// What was being done, to what, and what the system said.
pub(super) type Failure = (&'static str, PathBuf, io::Error);

/// See the module.
#[derive(Debug)]
pub(super) struct ReservedFile {
    path: PathBuf,
    spare: PathBuf,
    /// Bytes that the spare file can take; `None` before it was looked at.
    room: Option<u64>,
    /// Bytes of the present version.
    len: u64,
    /// Growth promised since it was written.
    promised: u64,
    /// What a write needs open, from when it was promised: a process may be out of descriptors by then.
    files: Option<Files>,
}

/// The two versions and their directory.
#[derive(Debug)]
struct Files {
    spare: File,
    /// Once it is known: the next spare.
    present: Option<File>,
    directory: File,
}

impl ReservedFile {
    /// Touches nothing yet.
    pub(super) fn new(path: PathBuf) -> Self {
        let mut spare = path.clone().into_os_string();
        spare.push(".new");
        Self { path, spare: spare.into(), room: None, len: 0, promised: 0, files: None }
    }

    /// Promises room for a version that is longer by `growth` bytes, and by all that was promised since the last was written. After
    /// an error, which comes with the number of bytes that are wanting, this growth is not promised.
    ///
    /// Where the file system cannot reserve room, nothing is promised, and only the writing tells.
    pub(super) fn make_room(&mut self, growth: u64) -> Result<(), (io::Error, u64)> {
        let files = self.open().map_err(|(_, _, error)| (error, 0))?;
        let least = self.len + self.promised + growth;
        let room = self.room.unwrap_or(0);
        if room < least {
            let reserved = reserve(&files.spare, ample(least)).map(|()| ample(least));
            let reserved = reserved.or_else(|_| reserve(&files.spare, least).map(|()| least));
            self.room = Some(reserved.map_err(|error| (error, least - room))?);
        }
        self.files = Some(files);
        self.promised += growth;
        Ok(())
    }

    /// Puts `bytes` in the file's place, so that after a crash there is either this version or the one before, whole.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Files { mut spare, present, directory } = self.open()?;
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| (action, path, source)
        };
        let written = fill(&mut spare, bytes);
        if written.is_err() {
            // Some of it may have grown the file, some of it not.
            self.room = Some(allocated(&spare));
        }
        written.map_err(failed("write", &self.spare))?;
        let exchanged = self.exchange().map_err(failed("replace", &self.path))?;
        (self.len, self.promised) = (bytes.len() as u64, 0);
        let synced = directory.sync_all().map_err(failed("sync", &self.path));
        // What was there before is the spare from now on.
        let next = if exchanged { present } else { None };
        let next = next.or_else(|| ownership::open_to_write(&self.spare).ok());
        self.room = Some(next.as_ref().map_or(0, |next| room_after(next, self.len)));
        self.files = next.map(|next| Files { spare: next, present: Some(spare), directory });
        synced
    }

    /// What a write needs open, taken from where it is kept for as long as all goes well.
    fn open(&mut self) -> Result<Files, Failure> {
        if let Some(files) = self.files.take() {
            return Ok(files);
        }
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| (action, path, source)
        };
        let spare = ownership::open_to_write(&self.spare).map_err(failed("create", &self.spare))?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let directory = File::open(directory).map_err(failed("open", directory))?;
        Ok(Files { spare, present: None, directory })
    }

    /// Puts the spare in place; whether what was there is the spare now.
    fn exchange(&self) -> io::Result<bool> {
        match renameat_with(CWD, &self.spare, CWD, &self.path, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(true),
            // There was none yet, or the file system cannot exchange.
            Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => fs::rename(&self.spare, &self.path).map(|()| false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Bytes that a version of `len` may grow to before room is asked for again.
fn ample(len: u64) -> u64 {
    len + len / 8 + SLACK
}

/// Makes room in the spare for what follows a version of `len` bytes, if the disk has it; what there is.
fn room_after(spare: &File, len: u64) -> u64 {
    let there = allocated(spare);
    if there >= len + SLACK {
        return there;
    }
    match reserve(spare, ample(len)) {
        Ok(()) => allocated(spare),
        // Nothing was promised: a full disk is told of when something is.
        Err(_) => there,
    }
}

/// Gives the spare file blocks for so many bytes.
fn reserve(spare: &File, bytes: u64) -> io::Result<()> {
    match fallocate(spare, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        done => Ok(done?),
    }
}

/// Bytes that can be written into a file without a new block.
fn allocated(file: &File) -> u64 {
    file.metadata().map_or(0, |metadata| metadata.len().min(metadata.blocks() * BLOCK))
}

/// Writes `bytes`, and spaces over what the file has beyond them.
fn fill(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let mut rest = file.metadata()?.len().saturating_sub(bytes.len() as u64);
    let ample = (bytes.len() as u64 + SLACK) * 4;
    if rest > ample {
        file.set_len(ample)?;
        rest = ample - bytes.len() as u64;
    }
    file.rewind()?;
    file.write_all(bytes)?;
    io::copy(&mut io::Read::take(io::repeat(b' '), rest), file)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(path: &Path) -> String {
        let text = fs::read_to_string(path).expect("the file");
        text.trim_end_matches(' ').to_owned()
    }

    #[test]
    fn each_version_takes_the_place_of_the_one_before_within_the_room_promised() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let mut file = ReservedFile::new(path.clone());
        file.write(b"first").expect("written");
        assert_eq!(content(&path), "first");

        file.make_room(100_000).expect("room");
        let spare = File::open(directory.path().join("file.new")).expect("the spare");
        assert!(allocated(&spare) >= 100_005, "{}", allocated(&spare));
        let long = "x".repeat(100_005);
        file.write(long.as_bytes()).expect("written");
        assert_eq!(content(&path), long);

        // A shorter one leaves nothing of the longer, and the room is not given back.
        file.make_room(0).expect("room");
        file.write(b"third").expect("written");
        file.write(b"fourth").expect("written");
        assert_eq!(content(&path), "fourth");
        assert!(allocated(&File::open(&path).expect("the file")) >= 100_005);
    }

    #[test]
    fn promises_add_up_until_they_are_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut file = ReservedFile::new(directory.path().join("file"));
        file.write(b"").expect("written");
        for _ in 0..10 {
            file.make_room(SLACK).expect("room");
        }
        assert!(file.room >= Some(10 * SLACK), "{file:?}");
        file.write(b"kept").expect("written");
        assert_eq!(file.promised, 0);
    }

    #[test]
    fn each_write_leaves_room_for_one_that_is_longer_and_that_nobody_promised() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut file = ReservedFile::new(directory.path().join("file"));
        let mut len = 100;
        for _ in 0..4 {
            file.write(&vec![b'x'; len]).expect("written");
            let spare = File::open(directory.path().join("file.new")).expect("the spare");
            let (room, least) = (allocated(&spare), len as u64 + SLACK);
            assert!(room >= least && file.room == Some(room), "{room} of {least}: {file:?}");
            len += 50_000;
        }
    }

    #[test]
    fn a_much_shorter_version_gives_room_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let mut file = ReservedFile::new(path.clone());
        let long = vec![b'x'; 3 << 20];
        file.write(&long).expect("written");
        file.write(b"a").expect("written");
        file.write(b"b").expect("written");
        assert_eq!(content(&path), "b");
        assert!(fs::metadata(&path).expect("its size").len() <= (1 + SLACK) * 4);
    }

    #[test]
    fn a_link_in_the_spare_s_place_is_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let victim = directory.path().join("victim");
        fs::write(&victim, "precious").expect("written");
        std::os::unix::fs::symlink(&victim, directory.path().join("file.new")).expect("a link");
        let mut file = ReservedFile::new(directory.path().join("file"));
        assert!(file.write(b"state").is_err() && file.make_room(1).is_err());
        assert_eq!(content(&victim), "precious");
    }
}
