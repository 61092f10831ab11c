//! The Unix socket as a file: made with its directories, taken over from a daemon that died, never from one that lives, and made
//! anew when somebody deletes it.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown},
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::unistd::Group;
use serde::{Deserialize, Deserializer};
use tokio::net::{UnixListener, UnixStream};

use crate::ownership::{Trusted, Untrusted};

/// Who may connect: whoever may write to the socket may do everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The mode of the socket's file.
    pub mode: SocketMode,
    /// Its group, by name or number, unless it is to be the daemon's own.
    pub group: Option<String>,
}

impl Default for Access {
    /// The daemon's own user and group.
    fn default() -> Self {
        Self { mode: SocketMode(0o660), group: None }
    }
}

/// A mode in octal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(pub u32);

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        match u32::from_str_radix(digits, 8) {
            Ok(mode) if mode <= 0o777 && digits.len() >= 3 => Ok(Self(mode)),
            _ => Err(format!("'{text}' is not a mode: write octal digits such as 0660")),
        }
    }
}

impl<'de> Deserialize<'de> for SocketMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The number of a group.
fn group_number(group: &str) -> io::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    match Group::from_name(group)? {
        Some(found) => Ok(found.gid.as_raw()),
        None => Err(io::Error::new(io::ErrorKind::NotFound, "there is no such group; see /etc/group")),
    }
}

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A daemon answers there.
    #[error(
        "another daemon answers at {}; stop it first or choose another socket with --socket",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something that is no socket has the name.
    #[error(
        "{} exists and is not a socket; move it away or choose another with --socket",
        .0.display()
    )]
    NotASocket(PathBuf),
    /// Others could put one of theirs in its place.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// It cannot be given to a group that the daemon is not in.
    #[error(
        "cannot give the socket to the group '{0}': the daemon is neither in it nor has CAP_CHOWN; under systemd put \
         Group={0} into the unit's [Service] (systemctl edit ebb)"
    )]
    NotAMember(String),
    /// There is no group to give it to.
    #[error("cannot give the socket to the group '{group}': {source}")]
    Group {
        /// As it was named.
        group: String,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Access {
    fn grant(&self, file: &Path) -> Result<(), SocketError> {
        let io = |source| SocketError::Io { action: "set the mode of", path: file.to_owned(), source };
        if let Some(group) = &self.group {
            let refused = |source: io::Error| match source.kind() {
                io::ErrorKind::PermissionDenied => SocketError::NotAMember(group.clone()),
                _ => SocketError::Group { group: group.clone(), source },
            };
            group_number(group).and_then(|number| lchown(file, None, Some(number))).map_err(refused)?;
        }
        fs::set_permissions(file, fs::Permissions::from_mode(self.mode.0)).map_err(io)
    }
}

/// A socket with its mode and group, under another name: nobody knows of it yet.
#[derive(Debug)]
pub struct Aside {
    listener: StdListener,
    path: PathBuf,
    access: Access,
    made_as: PathBuf,
}

/// How often it is looked whether the file is still there, while nobody calls.
const LOOK: Duration = Duration::from_secs(1);

/// A listening socket whose file goes when this does.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    access: Access,
    placed: Mutex<Placed>,
}

/// The socket at its path.
#[derive(Clone, Debug)]
struct Placed {
    listener: Arc<UnixListener>,
    /// Device and inode of our file, so that a successor's is not removed.
    identity: (u64, u64),
}

impl Socket {
    /// Makes the socket and its directories, and puts it in place. A stale socket is replaced.
    pub fn bind(path: &Path, access: &Access) -> Result<Self, SocketError> {
        Self::prepare(path, access)?.put_in_place()
    }

    /// Makes the socket and its directories, aside: nobody can connect before the mode is right, and a stale file is replaced
    /// in one step.
    pub fn prepare(path: &Path, access: &Access) -> Result<Aside, SocketError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Io { action, path, source }
        };
        refuse_foreign(path)?;
        if let Some(directory) = directory_of(path) {
            fs::create_dir_all(directory).map_err(io("make the directory", directory))?;
            refuse_foreign(path)?;
        }
        refuse_occupied(path)?;
        let aside = path.with_extension(format!("{}~", std::process::id()));
        let _ = fs::remove_file(&aside);
        let listener = StdListener::bind(&aside).map_err(io("listen on", path))?;
        let made = Aside { listener, path: path.to_owned(), access: access.clone(), made_as: aside };
        made.listener.set_nonblocking(true).map_err(io("listen on", path))?;
        access.grant(&made.made_as)?;
        Ok(made)
    }

    /// Refuses what [`Socket::bind`] would refuse, and makes nothing.
    pub fn check(path: &Path, access: &Access) -> Result<(), SocketError> {
        if let Some(group) = &access.group {
            group_number(group).map_err(|source| SocketError::Group { group: group.clone(), source })?;
        }
        refuse_foreign(path)?;
        refuse_occupied(path)
    }

    /// The next caller.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let listener = self.placed().listener;
            tokio::select! {
                biased;
                caller = listener.accept() => return caller.map(|(stream, _)| stream),
                () = tokio::time::sleep(LOOK) => self.look_after(),
            }
        }
    }

    fn placed(&self) -> Placed {
        // It is replaced whole, so a panic elsewhere does not spoil it.
        self.placed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Without its file nobody would reach the daemon any more. What somebody else has put in its place is theirs.
    fn look_after(&self) {
        if !fs::symlink_metadata(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return;
        }
        // By now this process may not be allowed any more to give it to a group that it is not in.
        let own_group = || Self::prepare(&self.path, &Access { group: None, ..self.access.clone() });
        let aside = Self::prepare(&self.path, &self.access).or_else(|_| own_group());
        match aside.and_then(|aside| aside.place()) {
            Ok(anew) => {
                tracing::warn!("{} was deleted: it was made anew", self.path.display());
                *self.placed.lock().unwrap_or_else(PoisonError::into_inner) = anew;
            }
            Err(error) => tracing::error!("{} was deleted, and {error}; trying again", self.path.display()),
        }
    }
}

impl Aside {
    /// Lets callers find it. Must be called within a tokio runtime.
    pub fn put_in_place(self) -> Result<Socket, SocketError> {
        let placed = Mutex::new(self.place()?);
        Ok(Socket { path: self.path.clone(), access: self.access.clone(), placed })
    }

    fn place(&self) -> Result<Placed, SocketError> {
        refuse_occupied(&self.path)?;
        let placed = || {
            let metadata = fs::symlink_metadata(&self.made_as)?;
            let listener = UnixListener::from_std(self.listener.try_clone()?)?;
            fs::rename(&self.made_as, &self.path)?;
            Ok(Placed { listener: Arc::new(listener), identity: (metadata.dev(), metadata.ino()) })
        };
        placed().map_err(|source| SocketError::Io { action: "put in place", path: self.path.clone(), source })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Unless it has been put in place there is a file of that name.
        let _ = fs::remove_file(&self.made_as);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.placed().identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The directory that a socket is in, unless it is the present one.
fn directory_of(path: &Path) -> Option<&Path> {
    path.parent().filter(|directory| !directory.as_os_str().is_empty())
}

/// Refuses a place where others could put a socket of theirs: callers would take them for the daemon.
fn refuse_foreign(path: &Path) -> Result<(), SocketError> {
    let directory = directory_of(path).unwrap_or(Path::new("."));
    Ok(Trusted { path: directory, option: "--socket" }.check_way()?)
}

fn refuse_occupied(path: &Path) -> Result<(), SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(SocketError::Io { action: "look at", path: path.to_owned(), source });
        }
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match StdStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn directories_are_made_and_the_mode_is_set() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a/b/ebb.sock");
        let socket = Socket::bind(&path, &Access::default()).expect("binds");
        let mode = |path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o660);
        let other = dir.path().join("other.sock");
        let access = Access { mode: "0606".parse().expect("a mode"), group: Some("0".to_owned()) };
        let _other = Socket::bind(&other, &access).expect("binds");
        assert_eq!(mode(&other), 0o606);
        drop(socket);
        assert!(!path.exists(), "the file goes with the socket");
    }

    #[test]
    fn groups_and_modes_that_are_none_are_refused() {
        let access = Access { group: Some("no such group".to_owned()), ..Access::default() };
        let said = Socket::check(Path::new("/nowhere/ebb.sock"), &access).expect_err("there is none").to_string();
        assert!(said.contains("'no such group': there is no such group"), "{said}");
        assert_eq!(group_number("root").expect("it is everywhere"), 0);
        for mode in ["", "7", "rw-", "0999", "1660", "-660"] {
            assert!(mode.parse::<SocketMode>().is_err(), "{mode}");
        }
    }

    #[tokio::test]
    async fn a_live_daemon_is_not_displaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ebb.sock");
        let _first = Socket::bind(&path, &Access::default()).expect("binds");
        let error = Socket::bind(&path, &Access::default()).expect_err("it is taken");
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ebb.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists(), "a listener that died leaves its file");
        let _socket = Socket::bind(&path, &Access::default()).expect("replaces it");
        StdStream::connect(&path).expect("the new one answers");
    }

    #[tokio::test]
    async fn a_deleted_socket_is_made_anew_with_its_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ebb/ebb.sock");
        let socket = Socket::bind(&path, &Access::default()).expect("binds");
        fs::remove_dir_all(path.parent().expect("a parent")).expect("deletes");
        let call = async {
            loop {
                match UnixStream::connect(&path).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let both = async { tokio::join!(call, socket.accept()) };
        let (_, accepted) = tokio::time::timeout(Duration::from_secs(30), both).await.expect("in time");
        accepted.expect("a caller");
        assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists(), "the new file goes with the socket too");
    }

    #[tokio::test]
    async fn what_somebody_else_has_put_in_its_place_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ebb.sock");
        let socket = Socket::bind(&path, &Access::default()).expect("binds");
        fs::remove_file(&path).expect("deletes");
        fs::write(&path, "theirs").expect("writes");
        socket.look_after();
        drop(socket);
        assert_eq!(fs::read_to_string(&path).expect("reads"), "theirs");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("precious.txt");
        fs::write(&path, "keep me").expect("writes");
        let error = Socket::bind(&path, &Access::default()).expect_err("it is a file");
        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "keep me");
    }
}
