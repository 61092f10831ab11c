//! The Unix socket as a file: made with its directories, taken over from a daemon that died, never from one that lives.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
        net::UnixStream as StdStream,
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Deserializer};
use tokio::net::{UnixListener, UnixStream};

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
    let name = std::ffi::CString::new(group)?;
    let mut room = vec![0; 64 << 10];
    // SAFETY: a group of all zeroes is a value; it is looked at only after it has been filled in.
    let mut found: libc::group = unsafe { std::mem::zeroed() };
    let mut result = std::ptr::null_mut();
    // SAFETY: all pointers are to memory of this frame that outlives the call; `room` is as long as is said.
    let code =
        unsafe { libc::getgrnam_r(name.as_ptr(), &raw mut found, room.as_mut_ptr(), room.len(), &raw mut result) };
    match (code, result.is_null()) {
        (0, false) => Ok(found.gr_gid),
        (0, true) => Err(io::Error::new(io::ErrorKind::NotFound, "there is no such group; see /etc/group")),
        (code, _) => Err(io::Error::from_raw_os_error(code)),
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
    fn grant(&self, file: &Path) -> io::Result<()> {
        if let Some(group) = &self.group {
            chown(file, None, Some(group_number(group)?))?;
        }
        fs::set_permissions(file, fs::Permissions::from_mode(self.mode.0))
    }
}

/// A listening socket whose file goes when this does.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our file, so that a successor's is not removed.
    identity: (u64, u64),
}

impl Socket {
    /// Makes the socket and its directories. A stale socket is replaced.
    pub fn bind(path: &Path, access: &Access) -> Result<Self, SocketError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Io { action, path, source }
        };
        if let Some(directory) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(io("make the directory", directory))?;
        }
        refuse_occupied(path)?;
        // Made aside and moved into place: nobody can connect before the mode is right, and a stale file is replaced in one step.
        let aside = path.with_extension(format!("{}~", std::process::id()));
        let _ = fs::remove_file(&aside);
        let listener = UnixListener::bind(&aside).map_err(io("listen on", path))?;
        let placed = access
            .grant(&aside)
            .and_then(|()| fs::metadata(&aside))
            .and_then(|metadata| fs::rename(&aside, path).map(|()| metadata));
        match placed {
            Ok(metadata) => Ok(Self { listener, path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) }),
            Err(source) => {
                let _ = fs::remove_file(&aside);
                Err(io("put in place", path)(source))
            }
        }
    }

    /// Refuses what [`Socket::bind`] would refuse, and makes nothing.
    pub fn check(path: &Path, access: &Access) -> Result<(), SocketError> {
        if let Some(group) = &access.group {
            group_number(group).map_err(|source| SocketError::Group { group: group.clone(), source })?;
        }
        refuse_occupied(path)
    }

    /// The next caller.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
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
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("precious.txt");
        fs::write(&path, "keep me").expect("writes");
        let error = Socket::bind(&path, &Access::default()).expect_err("it is a file");
        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "keep me");
    }
}
