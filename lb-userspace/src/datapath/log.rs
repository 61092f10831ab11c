//! What the program says of rare events.

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};

/// The program's log. Its lines go to the `log` crate's logger, and from there where tracing's go.
pub struct ProgramLog(EbpfLogger<&'static dyn log::Log>);

impl ProgramLog {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, aya_log::Error> {
        EbpfLogger::init(ebpf).map(Self)
    }

    /// Passes lines on until it is dropped.
    pub async fn run(self) -> io::Result<()> {
        // SAFETY: the logger owns its map's descriptor, which stays open and the same for as long as it lives, and it
        // lives in here.
        let mut descriptor = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }?;
        loop {
            let mut ready = descriptor.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}

impl std::fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProgramLog")
    }
}
