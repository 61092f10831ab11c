//! Loading the program against pinned maps: new ones, or those of an earlier daemon.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::MapError,
    programs::{ProgramError, Xdp},
};
use aya_obj::Object;
use lb_common::{map_name, tally::FlowTally};

use super::{
    error::{OpenError, While as _},
    maps::Sizes,
    object::OBJECT,
    pins::Pins,
    sys,
};

/// The program that balances, by its name in the object.
const BALANCER: &str = "ebb_xdp";
/// The program that takes packets out of their tunnel, by its name in the object.
pub(crate) const DECAPSULATOR: &str = "ebb_decap";

/// A map as the object declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Declared {
    name: String,
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// The program in the kernel.
pub(crate) struct Loaded {
    pub(crate) program: OwnedFd,
    /// Its id.
    pub(crate) id: u32,
    /// Holds the log, if the program has one.
    pub(crate) ebpf: Ebpf,
    /// Whether the maps were made now.
    pub(crate) fresh: bool,
    /// Removes the pins made by this load unless it is told that all went well.
    pub(crate) undo: Undo,
}

/// Removes pins when dropped, unless kept.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    paths: Vec<PathBuf>,
}

impl Undo {
    /// One more to remove.
    pub(crate) fn add(&mut self, path: PathBuf) {
        self.paths.push(path);
    }

    /// All is well: nothing is removed.
    pub(crate) fn keep(&mut self) {
        self.paths.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for path in &self.paths {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

/// Decides by itself whether flows' packets are counted, see `lb-ebpf/src/tally.rs`.
const TALLY: &str = "EBB_TALLY";

/// Loads the program. Maps that are pinned are used as they are, whatever `sizes` says (but for what counts flows' packets);
/// the caller has the lock.
pub(crate) fn load(pins: &Pins, sizes: &Sizes, log_level: u8) -> Result<Loaded, OpenError> {
    let declared = declared_maps()?;
    let fresh = !adoptable(pins, &declared);
    let mut undo = Undo::default();
    if fresh {
        for map in &declared {
            let path = pins.of(&map.name);
            if path.exists() {
                fs::remove_file(&path).opening(|| format!("cannot remove {}", path.display()))?;
            }
            undo.add(path);
        }
    } else {
        for map in &declared {
            check_layout(pins, map)?;
            warn_of_other_size(pins, map, sizes)?;
        }
    }

    let tallies = pins.of(map_name::TALLIES);
    // The flow table stays as large as it was made.
    let flow_rows = if fresh { sizes.of(map_name::FLOWS) } else { Some(rows_of(pins, map_name::FLOWS)?) };
    let counts = u8::from(sizes.tallies);
    let tally_rows = flow_rows.filter(|_| sizes.tallies).unwrap_or(1);
    if renew_tallies(pins, tally_rows)? {
        undo.add(tallies.clone());
    }

    let mut loader = EbpfLoader::new();
    // No relocation against the kernel's types: parsing them all would only delay the start.
    loader.btf(None).override_global(aya_log::LEVEL, &log_level, false).override_global(TALLY, &counts, true);
    loader.map_pin_path(map_name::TALLIES, tallies).map_max_entries(map_name::TALLIES, tally_rows);
    for map in &declared {
        loader.map_pin_path(&map.name, pins.of(&map.name));
        if let Some(size) = sizes.of(&map.name) {
            loader.map_max_entries(&map.name, size);
        }
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| load_error(&error))?;
    let program = load_program(&mut ebpf, BALANCER)?;
    let id = sys::program_id(program.as_fd()).opening(|| "cannot look at the program".into())?;
    Ok(Loaded { program, id, ebpf, fresh, undo })
}

/// Makes way for a map of the size that is wanted now: it can be lost without a flow being lost. Whether one is to be made.
fn renew_tallies(pins: &Pins, rows: u32) -> Result<bool, OpenError> {
    if !pins.has(map_name::TALLIES) {
        return Ok(true);
    }
    let info = info_of(pins, map_name::TALLIES)?;
    let fits = (info.map_type, info.value_size as usize, info.max_entries, info.map_flags)
        == (sys::ARRAY, size_of::<FlowTally>(), rows, sys::MMAPABLE);
    if !fits {
        let path = pins.of(map_name::TALLIES);
        fs::remove_file(&path).opening(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(!fits)
}

/// Loads one of the object's programs with maps of its own, which go when it goes.
pub(crate) fn load_alone(name: &str, sizes: &Sizes) -> Result<(OwnedFd, Ebpf), OpenError> {
    let declared = declared_maps()?;
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for map in &declared {
        if let Some(size) = sizes.of(&map.name) {
            loader.map_max_entries(&map.name, size);
        }
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| load_error(&error))?;
    let program = load_program(&mut ebpf, name)?;
    Ok((program, ebpf))
}

fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<OwnedFd, OpenError> {
    let missing = || OpenError::Program(format!("the object has no XDP program {name}"));
    let program: &mut Xdp = ebpf.program_mut(name).ok_or_else(missing)?.try_into().map_err(|_| missing())?;
    program.load().map_err(|error| {
        if let ProgramError::LoadError { verifier_log, .. } = &error {
            tracing::debug!("the verifier: {verifier_log}");
        }
        let text = chain(&error);
        OpenError::Program(text.lines().next().unwrap_or_default().to_owned())
    })?;
    let fd: BorrowedFd<'_> = program.fd().map_err(|error| OpenError::Program(chain(&error)))?.as_fd();
    fd.try_clone_to_owned().opening(|| "cannot duplicate a descriptor".into())
}

fn load_error(error: &EbpfError) -> OpenError {
    let mut text = chain(error);
    if let EbpfError::MapError(MapError::CreateError { name, io_error }) = error
        && name == map_name::FLOWS
        && matches!(io_error.raw_os_error(), Some(libc::ENOMEM | libc::E2BIG))
    {
        text.push_str("; a smaller --max-flows takes less memory (78 bytes a flow)");
    }
    OpenError::Program(text)
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The maps that outlive a load.
fn declared_maps() -> Result<Vec<Declared>, OpenError> {
    let object = Object::parse(OBJECT).map_err(|error| OpenError::Program(chain(&error)))?;
    let declared = |name: &str| {
        let missing = || OpenError::Program(format!("the object has no map {name}"));
        let map = object.maps.get(name).ok_or_else(missing)?;
        Ok(Declared {
            name: name.to_owned(),
            map_type: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: map.max_entries(),
            flags: map.map_flags(),
        })
    };
    map_name::ALL.into_iter().map(declared).collect()
}

/// Whether an earlier daemon's maps are all there. Some without the others are of no use: entries of the flow table
/// cannot be found without the secrets in the control row.
fn adoptable(pins: &Pins, declared: &[Declared]) -> bool {
    let missing: Vec<&str> = declared.iter().map(|map| map.name.as_str()).filter(|name| !pins.has(name)).collect();
    if missing.len() == declared.len() {
        return false;
    }
    if missing.is_empty() {
        return true;
    }
    tracing::warn!(
        "of the maps pinned in {}, {} are missing: starting afresh",
        pins.path().display(),
        missing.join(", ")
    );
    false
}

/// Refuses a pinned map that the program or the daemon would misread.
fn check_layout(pins: &Pins, map: &Declared) -> Result<(), OpenError> {
    let info = info_of(pins, &map.name)?;
    let found = [info.map_type, info.key_size, info.value_size, info.map_flags];
    let wanted = [map.map_type, map.key_size, map.value_size, map.flags];
    if found == wanted {
        return Ok(());
    }
    let what = format!("{}: type, key size, value size and flags are {found:?} in place of {wanted:?}", map.name);
    Err(OpenError::Layout { path: pins.path().into(), what })
}

fn warn_of_other_size(pins: &Pins, map: &Declared, sizes: &Sizes) -> Result<(), OpenError> {
    let info = info_of(pins, &map.name)?;
    if let Some(wanted) = sizes.of(&map.name)
        && wanted != info.max_entries
    {
        tracing::warn!(
            "{} keeps its {} entries from the last start ({wanted} now asked for); ebb unload and a new start change it",
            map.name,
            info.max_entries
        );
    }
    Ok(())
}

fn rows_of(pins: &Pins, name: &str) -> Result<u32, OpenError> {
    info_of(pins, name).map(|info| info.max_entries)
}

fn info_of(pins: &Pins, name: &str) -> Result<sys::MapInfo, OpenError> {
    let fd = pins.map(name)?;
    sys::map_info(fd.as_fd()).opening(|| format!("cannot look at {}", pins.of(name).display()))
}
