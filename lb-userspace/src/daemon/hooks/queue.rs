//! What a hook has still to be told, in order and on disk.
//!
//! Lines are appended to a journal; another file says up to which byte of it they have been delivered. A daemon that is killed
//! between a delivery and that note delivers again: at least once, with the same id.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::ownership::{self, Trusted};

/// So many undelivered lines are kept for a hook.
pub(super) const LIMIT: usize = 10_000;

/// One hook's queue.
#[derive(Debug)]
pub(super) struct Queue {
    journal: File,
    done_path: PathBuf,
    /// Up to here it has been delivered.
    done: u64,
    waiting: VecDeque<String>,
}

impl Queue {
    /// The queue of this name in this directory, with what an earlier daemon left undelivered.
    pub(super) fn open(directory: &Path, name: &str) -> io::Result<Self> {
        let trusted = Trusted { path: directory, option: "--state-dir" };
        trusted.make_directory(0o700).map_err(io::Error::other)?;
        let done_path = directory.join(format!("{name}.done"));
        let mut options = OpenOptions::new();
        options.create(true).append(true).read(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut journal = options.open(path(directory, name))?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut journal, &mut bytes)?;
        // The last write of a killed daemon may be half a line.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        journal.set_len(whole as u64)?;
        let done = fs::read_to_string(&done_path).ok().and_then(|text| text.trim().parse::<usize>().ok());
        let done = done.filter(|done| *done <= whole).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[done..whole]);
        let mut queue =
            Self { journal, done_path, done: done as u64, waiting: text.lines().map(str::to_owned).collect() };
        queue.note()?;
        Ok(queue)
    }

    /// Adds a line; refused when too many wait.
    pub(super) fn push(&mut self, line: String) -> io::Result<()> {
        if self.waiting.len() >= LIMIT {
            return Err(io::Error::other(format!("{LIMIT} notifications wait already")));
        }
        self.journal.write_all(format!("{line}\n").as_bytes())?;
        self.journal.sync_data()?;
        self.waiting.push_back(line);
        Ok(())
    }

    /// The line to be delivered next.
    pub(super) fn front(&self) -> Option<String> {
        self.waiting.front().cloned()
    }

    /// The first line has been delivered, or given up.
    pub(super) fn pop(&mut self) -> io::Result<()> {
        if let Some(line) = self.waiting.pop_front() {
            self.done += line.len() as u64 + 1;
        }
        self.note()
    }

    fn note(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            // A crash after this line leaves a note beyond the journal's end, which then means its beginning.
            self.journal.set_len(0)?;
            self.done = 0;
        }
        let (mut file, aside) = ownership::create_aside(&self.done_path)?;
        write!(file, "{}", self.done)?;
        file.sync_data()?;
        fs::rename(aside, &self.done_path)
    }
}

fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.journal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(queue: &mut Queue) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = queue.front() {
            lines.push(line);
            queue.pop().expect("the disk works");
        }
        lines
    }

    #[test]
    fn what_was_not_delivered_is_there_after_a_restart_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || Queue::open(directory.path(), "pager").expect("a queue");
        let mut queue = open();
        for line in ["one", "two", "three"] {
            queue.push(line.to_owned()).expect("there is room");
        }
        queue.pop().expect("the disk works");
        drop(queue);
        let mut queue = open();
        queue.push("four".to_owned()).expect("there is room");
        drop(queue);
        assert_eq!(rest(&mut open()), ["two", "three", "four"]);
        assert_eq!(rest(&mut open()), Vec::<String>::new());
        let left = fs::metadata(path(directory.path(), "pager")).expect("it is there").len();
        assert_eq!(left, 0, "an empty queue takes no room");
    }

    #[test]
    fn half_a_line_is_dropped_and_a_wrong_note_means_the_beginning() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(path(directory.path(), "pager"), "one\ntwo\nthr").expect("written");
        fs::write(directory.path().join("pager.done"), "99").expect("written");
        let mut queue = Queue::open(directory.path(), "pager").expect("a queue");
        queue.push("four".to_owned()).expect("there is room");
        assert_eq!(rest(&mut queue), ["one", "two", "four"]);
    }

    #[test]
    fn it_is_bounded() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(path(directory.path(), "pager"), "line\n".repeat(LIMIT)).expect("written");
        let mut queue = Queue::open(directory.path(), "pager").expect("a queue");
        assert!(queue.push("one more".to_owned()).is_err());
    }
}
