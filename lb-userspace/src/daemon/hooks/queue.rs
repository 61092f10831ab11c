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
    /// The journal's bytes up to the end of its last accepted line.
    length: u64,
    /// What a failed write left behind that end could not be taken back yet.
    torn: bool,
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
        // A note that does not end a line is of an earlier journal: rather tell again than half.
        let ends_line = |done: &usize| *done == 0 || bytes[..whole].get(done - 1) == Some(&b'\n');
        let done = done.filter(ends_line).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[done..whole]);
        let waiting = text.lines().map(str::to_owned).collect();
        let mut queue = Self { journal, length: whole as u64, torn: false, done_path, done: done as u64, waiting };
        queue.note()?;
        Ok(queue)
    }

    /// Adds a line; refused when too many wait, and then the journal is as it was.
    pub(super) fn push(&mut self, line: String) -> io::Result<()> {
        if self.waiting.len() >= LIMIT {
            return Err(io::Error::other(format!("{LIMIT} notifications wait already")));
        }
        if self.torn {
            self.take_back()?;
        }
        let bytes = format!("{line}\n");
        if let Err(error) = self.journal.write_all(bytes.as_bytes()).and_then(|()| self.journal.sync_data()) {
            // The next line must not go on where half of this one ends; what fails here is tried again before that.
            self.torn = self.take_back().is_err();
            return Err(error);
        }
        self.length += bytes.len() as u64;
        self.waiting.push_back(line);
        Ok(())
    }

    /// Drops from the journal what no line was accepted for.
    fn take_back(&mut self) -> io::Result<()> {
        self.journal.set_len(self.length)?;
        self.torn = false;
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
            (self.length, self.done, self.torn) = (0, 0, false);
            // No note means the beginning, and unlike a new one needs no room on the disk: one that stayed would come to lie within
            // the journal as that grows.
            return match fs::remove_file(&self.done_path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
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

    /// Runs the test of this name in a process of its own, where no file grows beyond so many blocks of 512 bytes.
    fn with_small_files(test: &str, blocks: u32) {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" --exact \"$1\"");
        let program = std::env::current_exe().expect("this program");
        let test = format!("daemon::hooks::queue::tests::{test}");
        let mut shell = std::process::Command::new("/bin/sh");
        let ran = shell.arg("-c").arg(script).arg(program).arg(test).env(SMALL_FILES, "1").output().expect("a shell");
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    }

    const SMALL_FILES: &str = "EBB_TEST_SMALL_FILES";

    #[test]
    fn a_write_that_fails_halfway_leaves_the_journal_as_it_was() {
        if std::env::var_os(SMALL_FILES).is_none() {
            with_small_files("a_write_that_fails_halfway_leaves_the_journal_as_it_was", 8);
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let open = || Queue::open(directory.path(), "pager").expect("a queue");
        let mut queue = open();
        let long = "l".repeat(1_000);
        let accepted = (0..8).filter(|_| queue.push(long.clone()).is_ok()).count();
        assert!((1..8).contains(&accepted), "{accepted} lines: the limit is in force");
        queue.push("short".to_owned()).expect("there is room for that");
        drop(queue);
        let mut wanted = vec![long; accepted];
        wanted.push("short".to_owned());
        assert_eq!(rest(&mut open()), wanted);
    }

    #[test]
    fn what_could_not_be_taken_back_at_once_is_before_the_next_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || Queue::open(directory.path(), "pager").expect("a queue");
        let mut queue = open();
        queue.push("one".to_owned()).expect("there is room");
        queue.journal.write_all(b"{\"half\":").expect("written");
        queue.torn = true;
        queue.push("two".to_owned()).expect("there is room");
        drop(queue);
        assert_eq!(rest(&mut open()), ["one", "two"]);
    }

    #[test]
    fn no_note_of_an_emptied_journal_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || Queue::open(directory.path(), "pager").expect("a queue");
        let mut queue = open();
        for line in ["one", "two"] {
            queue.push(line.to_owned()).expect("there is room");
        }
        queue.pop().expect("the disk works");
        // No new note can be made from here on.
        fs::create_dir(directory.path().join("pager.done.new")).expect("made");
        queue.pop().expect("that needs no note");
        for line in ["three", "four"] {
            queue.push(line.to_owned()).expect("there is room");
        }
        drop(queue);
        fs::remove_dir(directory.path().join("pager.done.new")).expect("removed");
        assert_eq!(rest(&mut open()), ["three", "four"]);
    }

    #[test]
    fn a_note_within_a_line_means_the_beginning() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(path(directory.path(), "pager"), "one\ntwo\n").expect("written");
        fs::write(directory.path().join("pager.done"), "5").expect("written");
        assert_eq!(rest(&mut Queue::open(directory.path(), "pager").expect("a queue")), ["one", "two"]);
    }

    #[test]
    fn it_is_bounded() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(path(directory.path(), "pager"), "line\n".repeat(LIMIT)).expect("written");
        let mut queue = Queue::open(directory.path(), "pager").expect("a queue");
        assert!(queue.push("one more".to_owned()).is_err());
    }
}
