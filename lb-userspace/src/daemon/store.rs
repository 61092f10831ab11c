//! What survives the daemon: `state.json`, written whole and put in place by a rename.
//!
//! **Invariant:** what a command changes has its room on the disk before it takes force ([`Store::make_room`]): a full disk
//! refuses the command instead of forgetting it.

mod sound;

use std::{
    collections::VecDeque,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::reserved_file::ReservedFile;
use crate::{
    control::{
        advisor::Lengths,
        model::ServiceSpec,
        ring::{Ring, SavedRing},
        slots::Slots,
        state::{
            Now,
            balancer::{Balancer, Departed},
            service::{Entry, Service},
        },
    },
    datapath::ServiceSlot,
    ownership::{self, Trusted, Untrusted},
};

/// The format written. Another one is refused: better no start than a wrong one.
const VERSION: u32 = 1;
const FILE: &str = "state.json";

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Others could change it.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// The disk said no.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no room for what a command would change.
    #[error(
        "no room to keep this change in {path} ({source}), so nothing was changed: free at least {} kB there",
        missing.div_ceil(1_000)
    )]
    NoRoom {
        /// The file that it would be kept in.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
        /// Bytes that are wanting.
        missing: u64,
    },
    /// The file is not what this program writes.
    #[error("{path} is not a state this version of ebb can read ({why}): move it away to start empty")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Where the state is kept.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    file: ReservedFile,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    boot_id: String,
    next_event: u64,
    flow_state_lost_ns: Option<u64>,
    #[serde(default)]
    untracked: Option<u64>,
    service_slots: Slots,
    backend_slots: Slots,
    departed: VecDeque<Departed>,
    services: Vec<SavedService>,
}

#[derive(Serialize, Deserialize)]
struct SavedService {
    spec: ServiceSpec,
    slot: ServiceSlot,
    removing: bool,
    backends: Vec<Entry>,
    ring: SavedRing,
    #[serde(default)]
    lengths: Lengths,
}

/// A state that was read.
#[derive(Debug)]
pub struct Restored {
    /// Everything, as it was when it was written.
    pub balancer: Balancer,
    /// The machine has not been booted since: monotonic times still hold.
    pub same_boot: bool,
}

impl Store {
    /// A store in this directory, which is made if it is missing, and refused if others could change what is in it.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let directory = directory.into();
        trusted(&directory).make_directory(0o700)?;
        let path = directory.join(FILE);
        for path in [&path, &directory.join(format!("{FILE}.new"))] {
            check_file(path)?;
        }
        Ok(Self { directory, file: ReservedFile::new(path) })
    }

    /// Makes sure that the state will find room on the disk when it is `growth` bytes longer, beside all growth asked for since it
    /// was last written. Costs nothing while what is reserved suffices.
    pub fn make_room(&mut self, growth: u64) -> Result<(), StoreError> {
        let path = self.directory.join(FILE);
        self.file.make_room(growth).map_err(|(source, missing)| match missing {
            0 => StoreError::Io { action: "keep this change, so nothing was changed: open", path, source },
            _ => StoreError::NoRoom { path, source, missing },
        })
    }

    /// The state in words of the file. Pure apart from the ring, which works out what to write once after a change.
    pub fn render(balancer: &mut Balancer, boot_id: &str) -> Vec<u8> {
        let services = balancer.services.iter_mut().map(|service| SavedService {
            spec: service.spec.clone(),
            slot: service.slot,
            removing: service.removing,
            backends: service.backends.clone(),
            ring: service.ring.save(),
            lengths: service.lengths.clone(),
        });
        let saved = Saved {
            version: VERSION,
            boot_id: boot_id.to_owned(),
            services: services.collect(),
            next_event: balancer.next_event,
            flow_state_lost_ns: balancer.flow_state_lost_ns,
            untracked: balancer.untracked,
            service_slots: balancer.service_slots.clone(),
            backend_slots: balancer.backend_slots.clone(),
            departed: balancer.departed.clone(),
        };
        // Plain data with string keys: there is nothing in it that JSON could not say.
        serde_json::to_vec(&saved).unwrap_or_default()
    }

    /// Writes a rendered state so that after a crash there is either this one or the one before, whole.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write(bytes).map_err(|(action, path, source)| StoreError::Io { action, path, source })
    }

    /// Reads the state; `None` when there is none yet.
    pub fn read(&self, boot_id: &str, now: Now) -> Result<Option<Restored>, StoreError> {
        let path = self.directory.join(FILE);
        let failed = |source| StoreError::Io { action: "read", path: path.clone(), source };
        let mut file = match ownership::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        Self::parse(&bytes, boot_id, now).map(Some).map_err(|why| StoreError::Malformed { path, why })
    }

    /// Reads a state from the words of its file; what is wrong with it, if it is not one.
    pub fn parse(bytes: &[u8], boot_id: &str, now: Now) -> Result<Restored, String> {
        let version: Version = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if version.version != VERSION {
            return Err(format!("it has version {}, not {VERSION}", version.version));
        }
        let saved: Saved = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        sound::check(&saved)?;
        let same_boot = !boot_id.is_empty() && saved.boot_id == boot_id;
        let mut balancer = Balancer::default();
        balancer.services = saved.services.into_iter().map(restore_service).collect();
        balancer.service_slots = saved.service_slots;
        balancer.backend_slots = saved.backend_slots;
        balancer.flow_state_lost_ns = saved.flow_state_lost_ns.filter(|_| same_boot);
        balancer.untracked = saved.untracked.filter(|_| same_boot);
        balancer.next_event = saved.next_event;
        balancer.departed = saved.departed;
        if !same_boot {
            after_reboot(&mut balancer, now);
        }
        Ok(Restored { balancer, same_boot })
    }
}

/// Refuses a file that another has made, or that is a link to somewhere else.
fn check_file(path: &Path) -> Result<(), StoreError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => {
            Err(StoreError::Malformed { path: path.to_owned(), why: "it is a symbolic link".to_owned() })
        }
        Ok(metadata) => Ok(trusted(path).check_owner(&metadata)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StoreError::Io { action: "look at", path: path.to_owned(), source }),
    }
}

fn trusted(path: &Path) -> Trusted<'_> {
    Trusted { path, option: "--state-dir" }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

fn restore_service(saved: SavedService) -> Service {
    let mut service = Service::new(saved.spec, saved.slot);
    service.removing = saved.removing;
    service.backends = saved.backends;
    service.lengths = saved.lengths;
    let members = service.members();
    // A ring that does not fit its members is built afresh; `settle` puts into rotation who belongs there.
    service.ring = Ring::restore(&saved.ring, &members).unwrap_or_else(|| Ring::new(&members));
    service
}

/// Monotonic times of another boot mean nothing: deadlines go on by the wall clock, the rest starts anew.
fn after_reboot(balancer: &mut Balancer, now: Now) {
    for entry in balancer.services.iter_mut().flat_map(|service| &mut service.backends) {
        if let Some(drain) = &mut entry.machine.drain {
            drain.deadline = drain.deadline.map(|deadline| deadline.after_reboot(now));
            drain.hold = drain.hold.map(|hold| hold.after_reboot(now));
        }
        let until = &mut entry.machine.unhealthy_until;
        *until = until.map(|until| until.after_reboot(now));
        entry.ramp_since_ns = entry.ramp_since_ns.map(|_| now.mono_ns);
        // Interfaces may have other indices now.
        entry.next_hop = None;
    }
}
