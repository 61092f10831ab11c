//! Whose a path is: what the daemon trusts must not be anybody else's to change.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
};

/// Symbolic links followed in one path, as many as the kernel does.
const LINKS: u32 = 40;
/// Of a mode: the group and others may write; entries belong to those who made them.
const GROUP: u32 = 0o020;
const OTHERS: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Why a path is not used.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// Somebody else's.
    #[error(
        "{path} belongs to user {owner}, who could change what ebb relies on there: see what is in it, then chown root it, \
         or choose another {option}"
    )]
    Owner {
        /// What of the path.
        path: String,
        /// Whose.
        owner: u32,
        /// What chooses another one.
        option: &'static str,
    },
    /// Anybody may change it.
    #[error(
        "others than its owner may write to {path} (mode {mode:04o}) and change what ebb relies on there: see what is in it, \
         then chmod go-w it, or choose another {option}"
    )]
    Writable {
        /// What of the path.
        path: String,
        /// Its mode.
        mode: u32,
        /// What chooses another one.
        option: &'static str,
    },
    /// It cannot be looked at, or made.
    #[error("cannot {action} {path}: {source}; see to that, or choose another {option}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// What the system said.
        source: io::Error,
        /// What chooses another one.
        option: &'static str,
    },
}

/// A path that is relied on.
#[derive(Clone, Copy, Debug)]
pub struct Trusted<'a> {
    /// The path.
    pub path: &'a Path,
    /// What chooses another one, for the error.
    pub option: &'static str,
}

impl Trusted<'_> {
    /// Refuses a directory that somebody else could put something into, or in place of. What does not exist yet is fine.
    pub fn check_directory(&self) -> Result<(), Untrusted> {
        let (found, whole) = self.follow()?;
        // Where anybody may make files, one of them may have the name of ours.
        match fs::symlink_metadata(&found) {
            Ok(metadata) if whole && metadata.is_dir() => self.refuse_writable(&found, &metadata, false),
            _ => Ok(()),
        }
    }

    /// As [`Trusted::check_directory`] for one where it does no harm that others make files of their own, as in `/tmp`.
    pub fn check_way(&self) -> Result<(), Untrusted> {
        self.follow().map(drop)
    }

    /// Makes the directory, and those above it, unless it is there; refuses what [`Trusted::check_directory`] would.
    pub fn make_directory(&self, mode: u32) -> Result<(), Untrusted> {
        self.check_directory()?;
        let result = DirBuilder::new().recursive(true).mode(mode).create(self.path);
        result.map_err(|source| self.io("make the directory", self.path, source))?;
        // It may have been made by somebody else meanwhile.
        self.check_directory()
    }

    /// Refuses a file of somebody else's.
    pub fn check_owner(&self, metadata: &Metadata) -> Result<(), Untrusted> {
        self.refuse_foreign(self.path, metadata)
    }

    fn follow(&self) -> Result<(PathBuf, bool), Untrusted> {
        let absolute = std::path::absolute(self.path).map_err(|source| self.io("look at", self.path, source))?;
        self.walk(&absolute, LINKS)
    }

    /// Follows a path step by step, as the kernel does. What is found: the path without links, as far as it exists, and whether
    /// that is all of it.
    fn walk(&self, path: &Path, links: u32) -> Result<(PathBuf, bool), Untrusted> {
        let mut at = PathBuf::from("/");
        for component in path.components().filter(|component| !matches!(component, Component::RootDir)) {
            let next = at.join(component);
            let metadata = match fs::symlink_metadata(&next) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((at, false)),
                Err(source) => return Err(self.io("look at", &next, source)),
            };
            self.refuse_foreign(&next, &metadata)?;
            if metadata.is_symlink() {
                let target = fs::read_link(&next).map_err(|source| self.io("read the link", &next, source))?;
                let Some(left) = links.checked_sub(1) else {
                    return Err(self.io("follow", &next, io::Error::from_raw_os_error(libc::ELOOP)));
                };
                let (found, whole) = self.walk(&at.join(target), left)?;
                if !whole {
                    return Ok((found, false));
                }
                at = found;
            } else {
                if metadata.is_dir() {
                    self.refuse_writable(&next, &metadata, true)?;
                }
                at = next;
            }
        }
        Ok((at, true))
    }

    fn refuse_foreign(&self, path: &Path, metadata: &Metadata) -> Result<(), Untrusted> {
        let owner = metadata.uid();
        if owner == 0 || owner == rustix::process::geteuid().as_raw() {
            return Ok(());
        }
        Err(Untrusted::Owner { path: path.display().to_string(), owner, option: self.option })
    }

    fn refuse_writable(&self, path: &Path, metadata: &Metadata, unless_sticky: bool) -> Result<(), Untrusted> {
        let mode = metadata.mode() & 0o7777;
        // Root's own group has nobody in it who is not root.
        let writable = mode & OTHERS != 0 || (mode & GROUP != 0 && metadata.gid() != 0);
        if !writable || (unless_sticky && mode & STICKY != 0) {
            return Ok(());
        }
        Err(Untrusted::Writable { path: path.display().to_string(), mode, option: self.option })
    }

    fn io(&self, action: &'static str, path: &Path, source: io::Error) -> Untrusted {
        Untrusted::Io { action, path: path.display().to_string(), source, option: self.option }
    }
}

/// Opens a file of ours for reading. One that is a symbolic link is refused.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Opens a file of ours for writing in place, or makes it, for its owner's eyes only. One that is a symbolic link is refused.
pub fn open_to_write(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// A new file beside `path`, for a rename into its place: its own, whatever lay there, for its owner's eyes only.
pub fn create_aside(path: &Path) -> io::Result<(File, PathBuf)> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let aside = PathBuf::from(name);
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Made or refused, never followed to somewhere else.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    Ok((file, aside))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};

    use super::*;

    /// Nobody in particular.
    const STRANGER: u32 = 65_534;

    fn check(path: &Path) -> Result<(), String> {
        Trusted { path, option: "--state-dir" }.check_directory().map_err(|error| error.to_string())
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
    }

    #[test]
    fn directories_that_others_can_change_are_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let own = place.path().join("own");
        assert_eq!(check(&own), Ok(()), "it is not there yet");
        fs::create_dir(&own).expect("made");
        assert_eq!(check(&own), Ok(()));
        for (mode, refused) in [(0o755, false), (0o700, false), (0o757, true), (0o1777, true)] {
            chmod(&own, mode);
            assert_eq!(check(&own).is_err(), refused, "{mode:o}");
        }
        // Somewhere below a directory like /tmp is fine, below one without the sticky bit is not.
        assert_eq!(check(&own.join("below")), Ok(()));
        chmod(&own, 0o777);
        let said = check(&own.join("below/further")).expect_err("it could be made by anybody");
        assert!(said.contains(&format!("{} (mode 0777)", own.display())) && said.contains("--state-dir"), "{said}");
    }

    #[test]
    fn what_belongs_to_others_is_refused_wherever_it_is_on_the_way() {
        assert!(rustix::process::geteuid().is_root(), "only root can give files away: run the tests as root");
        let place = tempfile::tempdir().expect("a directory");
        let path = |name: &str| place.path().join(name);
        fs::create_dir_all(path("a/b")).expect("made");
        assert_eq!(check(&path("a/b")), Ok(()));
        // A group with members may write.
        chown(path("a/b"), None, Some(STRANGER)).expect("given");
        chmod(&path("a/b"), 0o770);
        assert!(check(&path("a/b")).is_err());
        chown(path("a/b"), None, Some(0)).expect("given");
        assert_eq!(check(&path("a/b")), Ok(()), "root's group");

        symlink("a", path("link")).expect("linked");
        assert_eq!(check(&path("link/b")), Ok(()), "root's own link");
        symlink("link", path("chain")).expect("linked");
        assert_eq!(check(&path("chain/../a/b")), Ok(()));
        lchown(path("link"), Some(STRANGER), None).expect("given");
        for way in ["link/b", "chain/b"] {
            let said = check(&path(way)).expect_err("its owner could point it elsewhere");
            assert!(said.contains("link belongs to user 65534"), "{said}");
        }
        chown(path("a"), Some(STRANGER), None).expect("given");
        assert!(check(&path("a/b")).is_err(), "its owner could replace b");
        symlink("loop", path("loop")).expect("linked");
        assert!(check(&path("loop")).is_err());
    }

    #[test]
    fn files_are_made_and_read_without_following_links() {
        let place = tempfile::tempdir().expect("a directory");
        let (victim, file) = (place.path().join("victim"), place.path().join("state.json"));
        fs::write(&victim, "precious").expect("written");
        symlink(&victim, place.path().join("state.json.new")).expect("linked");
        let (made, aside) = create_aside(&file).expect("made");
        assert_eq!(made.metadata().expect("readable").mode() & 0o777, 0o600);
        fs::rename(aside, &file).expect("moved");
        assert_eq!(fs::read(&victim).expect("readable"), b"precious");
        fs::remove_file(&file).expect("removed");
        symlink(&victim, &file).expect("linked");
        assert!(open(&file).is_err(), "a link is not followed");
        assert!(open_to_write(&file).is_err(), "nor to write");
        let fresh = open_to_write(&place.path().join("fresh")).expect("made");
        assert_eq!(fresh.metadata().expect("readable").mode() & 0o777, 0o600);
    }
}
