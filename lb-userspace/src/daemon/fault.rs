//! Whose fault it is when something outside cannot be reached or run.

use std::{error::Error, fmt, io, iter};

/// Why it did not go well, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Of the backend or the program, or of the network between.
    Theirs(String),
    /// Of this host, which is short of something; that says nothing of them.
    Own(String),
}

impl Fault {
    /// Whose this error is, told in `words`.
    pub(super) fn of(error: &(dyn Error + 'static), words: String) -> Self {
        let mut causes = iter::successors(Some(error), |&error| error.source());
        let own = causes.any(|cause| cause.downcast_ref::<io::Error>().is_some_and(is_shortage));
        if own { Self::Own(words) } else { Self::Theirs(words) }
    }
}

impl From<String> for Fault {
    fn from(words: String) -> Self {
        Self::Theirs(words)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Theirs(words) | Self::Own(words)) = self;
        f.write_str(words)
    }
}

/// No descriptor, no memory, no process, no port or address to ask from: whatever the other end, it would have been the same.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EAGAIN
                | libc::EADDRNOTAVAIL
                | libc::EADDRINUSE
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_this_host_s_however_deep_it_lies() {
        #[derive(Debug)]
        struct Outer(io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("outer")
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let error = io::Error::from_raw_os_error;
        for number in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL] {
            assert_eq!(Fault::of(&error(number), "w".to_owned()), Fault::Own("w".to_owned()), "{number}");
            assert_eq!(Fault::of(&Outer(error(number)), "w".to_owned()), Fault::Own("w".to_owned()), "{number}");
        }
        for number in [libc::ECONNREFUSED, libc::ECONNRESET, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ETIMEDOUT] {
            assert_eq!(Fault::of(&error(number), "w".to_owned()), Fault::Theirs("w".to_owned()), "{number}");
        }
    }
}
