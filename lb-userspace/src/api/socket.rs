//! The Unix socket as a file: made with its directories, taken over from a daemon that died, never from one that lives.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as StdStream,
    },
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

/// Who may connect: the owner and the group.
const MODE: u32 = 0o660;

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
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
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
        let placed = fs::set_permissions(&aside, fs::Permissions::from_mode(MODE))
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

    /// Refuses a path that [`Socket::bind`] would refuse, and makes nothing.
    pub fn check(path: &Path) -> Result<(), SocketError> {
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
        let socket = Socket::bind(&path).expect("binds");
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists(), "the file goes with the socket");
    }

    #[tokio::test]
    async fn a_live_daemon_is_not_displaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ebb.sock");
        let _first = Socket::bind(&path).expect("binds");
        let error = Socket::bind(&path).expect_err("it is taken");
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ebb.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists(), "a listener that died leaves its file");
        let _socket = Socket::bind(&path).expect("replaces it");
        StdStream::connect(&path).expect("the new one answers");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("precious.txt");
        fs::write(&path, "keep me").expect("writes");
        let error = Socket::bind(&path).expect_err("it is a file");
        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "keep me");
    }
}
