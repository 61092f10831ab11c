//! Which kernel this is, and which is new enough.

use std::{fmt, fs, io};

/// A kernel's version, to the digit that says what it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// The oldest kernel that is supported: the oldest that the tests are run on (`cargo xtask test --kernel 6.1`).
///
/// What the program and the daemon ask for is older: compare-and-exchange in programs came with 5.12,
/// `bpf_ktime_get_coarse_ns` with 5.11, inner arrays of different lengths with 5.10. But each verifier has its own idea of a
/// program this size, and what one has not been shown it need not take.
pub const OLDEST: Version = Version(6, 1);

impl Version {
    /// That of a release as the kernel gives it, `6.1.0-56-amd64`; none if it does not begin with two numbers.
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
        Some(Self(numbers.next()?, numbers.next()?))
    }

    /// The running kernel's.
    pub fn running() -> io::Result<Self> {
        let release = release()?;
        Self::parse(&release).ok_or_else(|| io::Error::other(format!("no kernel's release: {release}")))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The running kernel's release.
pub fn release() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/osrelease").map(|release| release.trim().to_owned())
}

/// Whether a release is one to be refused. One that says nothing is not: the kernel has the last word.
pub(crate) fn is_too_old(release: &str) -> bool {
    Version::parse(release).is_some_and(|version| version < OLDEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_apart() {
        assert_eq!(Version::parse("6.1.0-56-amd64"), Some(Version(6, 1)));
        assert_eq!(Version::parse("6.12.117+deb12-amd64"), Some(Version(6, 12)));
        assert_eq!(Version::parse("7.0-rc1"), Some(Version(7, 0)));
        assert_eq!(Version::parse("unknown"), None);
        assert!(is_too_old("5.15.0-91-generic") && is_too_old("4.19.0") && is_too_old("6.0.19"));
        assert!(!is_too_old("6.1.0") && !is_too_old("6.18.44") && !is_too_old("10.0.0") && !is_too_old("unknown"));
        assert_eq!(OLDEST.to_string(), "6.1");
    }
}
