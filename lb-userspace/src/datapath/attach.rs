//! Attaching the program to interfaces, and taking over what an earlier daemon attached.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use super::{
    InterfaceInfo,
    error::{OpenError, While as _},
    pins::{PinnedLink, Pins},
    program::Undo,
    sys,
};
use crate::net::links::{Link, XdpMode};

/// `XDP_FLAGS_SKB_MODE`.
const GENERIC: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`.
const NATIVE: u32 = 1 << 2;

/// Which mode is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Native, or where the driver refuses it generic, with a warning.
    #[default]
    Auto,
    /// Native or nothing.
    Native,
    /// Generic.
    Generic,
}

impl Mode {
    fn first(self) -> XdpMode {
        match self {
            Self::Auto | Self::Native => XdpMode::Native,
            Self::Generic => XdpMode::Generic,
        }
    }

    fn allows(self, mode: XdpMode) -> bool {
        match self {
            Self::Auto => true,
            Self::Native => mode == XdpMode::Native,
            Self::Generic => mode == XdpMode::Generic,
        }
    }
}

/// The program on one interface.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) info: InterfaceInfo,
    /// `None` while the interface is gone.
    pub(crate) link: Option<OwnedFd>,
    /// Whether the interface was up when it was looked at last, and its MAC address.
    pub(crate) seen: (bool, Option<[u8; 6]>),
    /// The interface's index before it went.
    pub(crate) was: u32,
    /// Why it could not be attached to when it came back.
    pub(crate) refused: Option<String>,
}

impl Attachment {
    /// The program on `link`.
    pub(crate) fn new(link: &Link, mode: XdpMode, fd: OwnedFd) -> Self {
        let info = InterfaceInfo { name: link.name.clone(), ifindex: link.index, mode: mode.name().to_owned() };
        Self { info, link: Some(fd), seen: (link.up, link.mac), was: link.index, refused: None }
    }
}

/// Interfaces to attach to, and what an earlier daemon left.
#[derive(Debug)]
pub(crate) struct Plan {
    /// In the order they were named; those of an earlier daemon when none was named.
    targets: Vec<(Link, Option<PinnedLink>)>,
    /// Attached before and not wanted any more.
    unwanted: Vec<PinnedLink>,
}

/// Decides what is to be attached, without changing anything.
pub(crate) fn plan(pins: &Pins, names: &[String], known: &[Link]) -> Result<Plan, OpenError> {
    let mut pinned = pins.links()?;
    for link in &pinned {
        // A link's interface index means something in its own network namespace only.
        let here = known.iter().find(|known| known.index == link.ifindex);
        if here.and_then(|here| here.xdp).is_none_or(|(_, program)| program != link.program) {
            return Err(OpenError::ForeignNamespace { path: pins.path().into() });
        }
    }
    let mut targets = Vec::new();
    if names.is_empty() {
        for link in std::mem::take(&mut pinned) {
            targets.extend(known.iter().find(|known| known.index == link.ifindex).cloned().zip(Some(Some(link))));
        }
    }
    for name in names {
        let link = find(known, name)?;
        if targets.iter().any(|(target, _)| target.index == link.index) {
            continue;
        }
        let before = pinned.iter().position(|pinned| pinned.ifindex == link.index).map(|at| pinned.swap_remove(at));
        if let (Some((_, program)), None) = (link.xdp, &before) {
            return Err(OpenError::Occupied { interface: name.clone(), program });
        }
        targets.push((link.clone(), before));
    }
    if targets.is_empty() {
        return Err(OpenError::NoInterfaces);
    }
    Ok(Plan { targets, unwanted: pinned })
}

/// An interface by its name.
pub(crate) fn find<'a>(known: &'a [Link], name: &str) -> Result<&'a Link, OpenError> {
    known.iter().find(|link| link.name == name).ok_or_else(|| {
        let mut names: Vec<&str> = known.iter().map(|link| link.name.as_str()).collect();
        names.sort_unstable();
        OpenError::NoInterface { name: name.to_owned(), known: names.join(", ") }
    })
}

impl Plan {
    /// The interfaces.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &Link> {
        self.targets.iter().map(|(link, _)| link)
    }

    /// Attaches where nothing is yet, then replaces the program where an earlier one is: from the first such step on,
    /// nothing that can be foreseen fails.
    pub(crate) fn carry_out(
        self,
        pins: &Pins,
        program: BorrowedFd<'_>,
        mode: Mode,
        undo: &mut Undo,
    ) -> Result<Vec<Attachment>, OpenError> {
        let mut new = Vec::new();
        for (link, before) in &self.targets {
            if before.is_none() {
                let (xdp, fd) = attach(program, link, mode)?;
                let path = pins.of_link(link.index);
                sys::pin(fd.as_fd(), &path).opening(|| format!("cannot pin {}", path.display()))?;
                undo.add(path);
                new.push((link.index, xdp, fd));
            }
        }
        let mut attached = Vec::new();
        for (link, before) in self.targets {
            warn_of_traps(&link);
            let (xdp, fd) = match before {
                Some(before) => take_over(pins, program, &link, before, mode)?,
                None => match new.iter().position(|(index, _, _)| *index == link.index) {
                    Some(at) => {
                        let (_, xdp, fd) = new.swap_remove(at);
                        (xdp, fd)
                    }
                    None => continue,
                },
            };
            attached.push(Attachment::new(&link, xdp, fd));
        }
        for link in self.unwanted {
            tracing::info!("detaching from interface {}, which is no longer named", link.ifindex);
            remove_link(&link)?;
        }
        Ok(attached)
    }
}

/// Detaches a link's program and removes its pin, in this order: a pin without a program is found again, a program without
/// a pin is not.
pub(crate) fn remove_link(link: &PinnedLink) -> Result<(), OpenError> {
    sys::detach_link(link.link.as_fd()).opening(|| format!("cannot detach from interface {}", link.ifindex))?;
    fs::remove_file(&link.path).opening(|| format!("cannot remove {}", link.path.display()))
}

/// Attaches the program in the mode asked for; the link detaches it when it is dropped without having been pinned.
pub(crate) fn attach(program: BorrowedFd<'_>, link: &Link, mode: Mode) -> Result<(XdpMode, OwnedFd), OpenError> {
    let first = mode.first();
    match attach_as(program, link, first) {
        Ok(fd) => Ok((first, fd)),
        Err(error) if mode == Mode::Auto && error.raw_os_error() != Some(libc::EBUSY) => {
            tracing::warn!(
                "{} takes no XDP program in its driver ({error}){}: using the slower generic mode",
                link.name,
                hint(link, &error)
            );
            let fd = attach_as(program, link, XdpMode::Generic)
                .map_err(|source| attach_error(link, XdpMode::Generic, source))?;
            Ok((XdpMode::Generic, fd))
        }
        Err(error) => Err(attach_error(link, first, error)),
    }
}

fn attach_as(program: BorrowedFd<'_>, link: &Link, mode: XdpMode) -> io::Result<OwnedFd> {
    let flags = match mode {
        XdpMode::Native => NATIVE,
        XdpMode::Generic => GENERIC,
    };
    sys::attach_xdp(program, link.index, flags)
}

fn attach_error(link: &Link, mode: XdpMode, source: io::Error) -> OpenError {
    match source.raw_os_error() {
        Some(libc::EPERM) => OpenError::Privilege,
        // Somebody was faster than our look at the interface.
        Some(libc::EBUSY) => OpenError::Occupied { interface: link.name.clone(), program: 0 },
        _ => {
            let hint = hint(link, &source);
            OpenError::Attach { interface: link.name.clone(), mode: mode.name(), source, hint }
        }
    }
}

/// Packets of a larger MTU do not fit a page with the room that XDP needs: drivers then want programs that take a packet in
/// several buffers. (4,096 bytes less 256 of headroom, less what the kernel keeps behind a frame; for a veth
/// `veth_xdp_set` in drivers/net/veth.c.)
pub(crate) const ONE_PAGE_MTU: u32 = 3498;

fn hint(link: &Link, error: &io::Error) -> String {
    // What a veth says if its other end's MTU is too large, which may not be to be seen from here.
    let too_large = error.raw_os_error() == Some(libc::ERANGE);
    if too_large || link.mtu > ONE_PAGE_MTU {
        let whose = if link.is_veth { "its MTU, or its other end's," } else { "its MTU" };
        return format!(
            "; {whose} needs packets in several buffers, which Ebb does not take in native mode: lower it to at most \
             {ONE_PAGE_MTU} bytes, or use --mode generic"
        );
    }
    if link.is_veth {
        "; a veth wants no fewer receive queues than its other end has transmit queues, or --mode generic".to_owned()
    } else {
        "; --mode generic works with every driver".to_owned()
    }
}

/// Puts the new program behind an earlier daemon's link.
fn take_over(
    pins: &Pins,
    program: BorrowedFd<'_>,
    link: &Link,
    before: PinnedLink,
    mode: Mode,
) -> Result<(XdpMode, OwnedFd), OpenError> {
    let present = link.xdp.map_or(XdpMode::Native, |(mode, _)| mode);
    sys::update_link(before.link.as_fd(), program)
        .opening(|| format!("cannot replace the program on {}", link.name))?;
    if mode.allows(present) {
        return Ok((present, before.link));
    }
    // An interface runs XDP in one mode at a time: there is a moment without.
    tracing::warn!(
        "{} changes from {} to {} mode, which interrupts it",
        link.name,
        present.name(),
        mode.first().name()
    );
    remove_link(&before)?;
    let (attached, fd, refusal) = match attach_as(program, link, mode.first()) {
        Ok(fd) => (mode.first(), fd, None),
        Err(source) => {
            let fd = attach_as(program, link, present).map_err(|source| attach_error(link, present, source))?;
            (present, fd, Some(attach_error(link, mode.first(), source)))
        }
    };
    let path = pins.of_link(link.index);
    sys::pin(fd.as_fd(), &path).opening(|| format!("cannot pin {}", path.display()))?;
    match refusal {
        Some(refusal) => Err(refusal),
        None => Ok((attached, fd)),
    }
}

/// A backend behind two VLANs is never resolved: this is why.
pub(crate) fn warn_of_stacked_vlans(known: &[Link]) {
    let parent = |link: &Link| known.iter().find(|other| link.vlan.is_some_and(|(parent, _)| parent == other.index));
    for link in known.iter().filter(|link| parent(link).is_some_and(|parent| parent.vlan.is_some())) {
        tracing::warn!(
            "{} is a VLAN within a VLAN: a backend behind it stays unresolved, as frames get one tag at most; route it by a \
             plain VLAN, or put a router before it",
            link.name
        );
    }
}

/// A tag that the driver has taken out of the frame is not to be seen by the program: what it answers or sends back to a
/// client would leave without it.
pub(crate) fn warn_of_vlans(link: &Link, known: &[Link]) {
    if known.iter().any(|other| other.vlan.is_some_and(|(parent, _)| parent == link.index)) {
        let (how, whose) =
            if link.is_veth { ("txvlan off", "DEV, its other end") } else { ("rxvlan off", link.name.as_str()) };
        tracing::warn!(
            "{} has VLANs, whose tags must stay in the frames: ethtool -K {whose} {how}, or packets lose them",
            link.name
        );
    }
}

fn warn_of_traps(link: &Link) {
    if link.is_veth {
        tracing::warn!(
            "{} is a veth: senders on the other ends must complete their checksums (ethtool -K DEV tx off), and every \
             peer that frames are sent to must itself run an XDP program, or they vanish",
            link.name
        );
    }
    if !link.up {
        tracing::warn!("{} is down", link.name);
    }
}
