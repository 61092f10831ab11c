//! The configuration file: its types, its mistakes, and how it is read.

pub mod diagnose;
pub mod file;
pub mod health;
pub mod reference;
pub mod remote;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use self::{diagnose::Mistake, file::File};

/// The longest file that is read: far above what the daemon takes, far below what would hurt.
const LENGTH_LIMIT: u64 = 16 << 20;

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It says something wrong.
    #[error("{}: {mistake}", path.display())]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// What, and where in it.
        mistake: Mistake,
    },
}

/// Reads and checks a file.
pub fn load(path: &Path) -> Result<File, LoadError> {
    read(path).map(|(_, file)| file)
}

/// Reads a file and checks it, those that it names included: for the host that it is about.
pub fn load_here(path: &Path) -> Result<File, LoadError> {
    let (text, file) = read(path)?;
    let checked = file.daemon.remote.as_ref().map_or(Ok(()), |remote| remote.check_files(&text));
    checked.map_err(|mistake| LoadError::Wrong { path: path.to_owned(), mistake })?;
    Ok(file)
}

fn read(path: &Path) -> Result<(String, File), LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > LENGTH_LIMIT {
        let source = io::Error::other(format!("{length} bytes are too many for a configuration"));
        return Err(unreadable(source));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    match file::parse(&text) {
        Ok(file) => Ok((text, file)),
        Err(mistake) => Err(LoadError::Wrong { path: path.to_owned(), mistake }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_named_in_front_of_the_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ebb.toml");
        fs::write(&path, "[[service]]\nname = \"web\"\nvipp = 1\n").expect("writes");
        let said = load(&path).expect_err("a key is unknown").to_string();
        assert_eq!(said, format!("{}: line 3, column 1: unknown key \"vipp\", did you mean \"vip\"?", path.display()));
    }

    #[test]
    fn a_missing_file_says_so() {
        let said = load(Path::new("/nonexistent/ebb.toml")).expect_err("there is none").to_string();
        assert!(said.starts_with("cannot read /nonexistent/ebb.toml: "), "{said}");
    }
}
