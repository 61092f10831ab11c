//! What the program must do with any frame at all, said a second time and by other means: a plain walk over bytes, with
//! none of the program's code but the steering hash, which is a contract between nodes.
//!
//! The world it speaks of is a service of each mode, families and protocol. The last backend of each drains, without an
//! end: some slots of the ring are still its, some remember it as their previous owner. Nothing in this world changes, so
//! a packet's fate hangs on what came before only by fragments and by flows, and those the model remembers.

mod parse;
mod random;
mod wire;

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use lb_common::{
    backend::{Backend, BackendState},
    control::{Control, control_flag},
    hash,
    outcome::Outcome,
    ring::{self, Published, RingSlot},
    service::{Service, VipEntry, vip_kind},
};

use self::parse::{Ip, number};
pub use self::random::{Random, damaged, frame, sound};
use crate::{
    lab::FAMILIES,
    packets::tcp_flag::{ACK, FIN, RST, SYN},
    rig::{Cell, MODES, Mode, PROTOCOLS, Protocol, Rig, Sizes, server_id_entry},
};

/// Backends of each service; the last one drains.
pub const BACKENDS: u32 = 4;
/// The one that drains.
pub const DRAINING: u32 = BACKENDS - 1;
/// Slots of each ring.
pub const RING: u32 = 4099;

/// The services, by slot.
pub fn cells() -> Vec<Cell> {
    let families =
        |mode| FAMILIES.into_iter().flat_map(move |family| PROTOCOLS.map(|protocol| Cell { mode, family, protocol }));
    MODES.into_iter().flat_map(families).collect()
}

/// Backend slot of a service's backend.
pub fn backend_slot(service: usize, backend: u32) -> u32 {
    service as u32 * BACKENDS + backend
}

/// Which backend owns a slot of a ring: mixed up, so that neighbours differ. One slot in eight is the draining one's, as
/// if the ring had not been published yet.
pub fn owner(service: usize, slot: u32) -> u32 {
    let mixed = hash::mix(u64::from(slot) << 8 | service as u64);
    if mixed % 8 == 7 { DRAINING } else { (mixed >> 32) as u32 % DRAINING }
}

/// Whether a slot remembers that the draining backend owned it.
pub fn remembers(service: usize, slot: u32) -> bool {
    hash::mix(u64::from(slot) << 8 | service as u64 | 1 << 40).is_multiple_of(4)
}

/// The services of the world as rows, by slot.
pub fn services() -> Vec<Service> {
    let ring = Published { half: 0, size: RING }.pack();
    let row = |(service, cell): (usize, Cell)| {
        let (length, cid_rotation) = cid(service).unwrap_or_default();
        Service { ring, server_id_len: length as u8, cid_rotation, ..cell.service_row() }
    };
    cells().into_iter().enumerate().map(row).collect()
}

/// The backends of the world, by slot.
pub fn backends() -> Vec<Backend> {
    let mut rows = Vec::new();
    for (service, cell) in cells().into_iter().enumerate() {
        for backend in 0..BACKENDS {
            let mut row = cell.backend_row(backend_slot(service, backend) as u8, service as u16);
            if backend == DRAINING {
                row.state = BackendState::Draining as u8;
            }
            rows.push(row);
        }
    }
    rows
}

/// What a service looks at in QUIC connection ids: the length of server ids, and the configuration. Services of UDP do, all
/// but two.
pub fn cid(service: usize) -> Option<(usize, u8)> {
    const LENGTHS: [usize; 8] = [1, 4, 0, 15, 8, 7, 0, 9];
    let length = LENGTHS[service / PROTOCOLS.len()];
    let looks = cells()[service].protocol == Protocol::Udp && length > 0;
    looks.then_some((length, (service / PROTOCOLS.len() % 7) as u8))
}

/// A backend's id in those.
pub fn server_id(service: usize, backend: u32) -> Vec<u8> {
    let length = cid(service).map_or(0, |(length, _)| length);
    let mixed = hash::mix(u64::from(backend_slot(service, backend)) + 1).to_be_bytes();
    let first = [(backend as u8) << 4 | service as u8];
    first.into_iter().chain(mixed).chain(mixed).take(length).collect()
}

/// Maps that a world can be put on.
pub trait Maps {
    /// Changes the settings.
    fn change_control(&mut self, change: impl FnOnce(&mut Control));
    /// Adds an entry to the VIP table.
    fn put_vip(&mut self, entry: VipEntry) -> Result<()>;
    /// Writes a service's row.
    fn put_service(&mut self, slot: u32, row: Service);
    /// Writes a backend's row.
    fn put_backend(&mut self, slot: u32, row: Backend);
    /// Makes a ring, in half 0.
    fn put_ring(&mut self, service: u16, ring: &[RingSlot]) -> Result<()>;
}

impl Maps for Rig {
    fn change_control(&mut self, change: impl FnOnce(&mut Control)) {
        self.control.change(0, change);
    }

    fn put_vip(&mut self, entry: VipEntry) -> Result<()> {
        Self::put_vip(self, entry)
    }

    fn put_service(&mut self, slot: u32, row: Service) {
        self.services.set(slot, row);
    }

    fn put_backend(&mut self, slot: u32, row: Backend) {
        self.backends.set(slot, row);
    }

    fn put_ring(&mut self, service: u16, ring: &[RingSlot]) -> Result<()> {
        Self::put_ring(self, service, 0, ring)
    }
}

/// The world as maps of [`SIZES`].
pub fn set_up(maps: &mut impl Maps) -> Result<()> {
    for service in 0..cells().len() {
        let slot = |backend: u32| 1 + backend_slot(service, backend);
        let slots: Vec<RingSlot> = (0..RING)
            .map(|index| RingSlot {
                owner: slot(owner(service, index)),
                previous: if remembers(service, index) { slot(DRAINING) } else { 0 },
            })
            .collect();
        maps.put_ring(service as u16, &slots)?;
    }
    set_rows(maps)
}

/// All of the world but its rings.
pub fn set_rows(maps: &mut impl Maps) -> Result<()> {
    maps.change_control(|control| control.flags = control_flag::NAT);
    for (service, row) in services().into_iter().enumerate() {
        maps.put_vip(cells()[service].vip_entry(service as u16))?;
        maps.put_service(service as u32, row);
    }
    for (slot, row) in backends().into_iter().enumerate() {
        maps.put_backend(slot as u32, row);
        let cell = cells()[usize::from(row.service)];
        if cid(row.service.into()).is_some() {
            let id = server_id(row.service.into(), slot as u32 % BACKENDS);
            maps.put_vip(server_id_entry(row.service, &id, slot as u32))?;
        }
        if cell.mode == Mode::Nat {
            let (kind, target) = (vip_kind::NAT_SOURCE, row.service.into());
            let protocol = cell.protocol.number();
            maps.put_vip(VipEntry { addr: row.addr, port: row.port, protocol, kind, target, pad: [0; 2] })?;
        }
    }
    Ok(())
}

/// Sizes that the world fits in, with room for the flows of many packets.
pub const SIZES: Sizes = Sizes { flow_slots: 32_768, backends: 64, services: 16, vips: 256 };

/// What must become of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Passed or dropped, and counted so.
    Ends(Outcome),
    /// Sent to one of those backend slots as a packet of a flow.
    To(BTreeSet<u32>),
    /// Sent to one of those backend slots as a later fragment.
    Fragment(BTreeSet<u32>),
    /// Sent back to the client as the VIP's, as a packet of a flow of that service.
    Reply(usize),
    /// The same as a later fragment.
    ReplyFragment(usize),
    /// One or the other: the flow has gone to several backends.
    ReplyOrPass(usize),
}

/// A mistake to make on purpose: a comparison that does not notice it proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    /// Looks behind one tag only.
    OneTag,
    /// Takes every IPv4 header for twenty bytes.
    NoOptions,
    /// Believes any total length.
    AnyLength,
    /// Takes an extension header for eight bytes shorter than it is.
    ShortExtensions,
    /// Does not look at IPv6 extensions at all.
    NoExtensions,
    /// Takes every fragment for a whole packet.
    NoFragments,
    /// Does not check the TCP header's length.
    AnyTcpHeader,
    /// Does not check the datagram's own length.
    AnyUdpLength,
    /// Steers by the ports the other way round.
    SwappedPorts,
    /// Steers to the next slot of the ring.
    NextSlot,
    /// Lets a port do for both protocols.
    AnyProtocol,
    /// Lets a later fragment overwrite a TCP header.
    TinyFragments,
    /// Forwards for ever.
    NoHops,
    /// Gives new flows to a draining backend.
    DrainingTakesNew,
    /// Leaves checksums as they are where addresses change.
    StaleChecksums,
    /// Does not look at QUIC connection ids.
    NoIds,
    /// Takes ids of any configuration.
    AnyRotation,
    /// Believes the ids in every long header, made up by clients or not.
    EveryLongHeader,
}

/// All of them.
pub const MISTAKES: [Mistake; 18] = [
    Mistake::OneTag,
    Mistake::NoOptions,
    Mistake::AnyLength,
    Mistake::ShortExtensions,
    Mistake::NoExtensions,
    Mistake::NoFragments,
    Mistake::AnyTcpHeader,
    Mistake::AnyUdpLength,
    Mistake::SwappedPorts,
    Mistake::NextSlot,
    Mistake::AnyProtocol,
    Mistake::TinyFragments,
    Mistake::NoHops,
    Mistake::DrainingTakesNew,
    Mistake::StaleChecksums,
    Mistake::NoIds,
    Mistake::AnyRotation,
    Mistake::EveryLongHeader,
];

/// What the fragments of a packet have in common.
type Whose = (IpAddr, IpAddr, u32, u8);

/// Whose flow: service, client.
type Key = (usize, IpAddr, u16);

/// A frame's tags as they are written to those who sent it; `None` where there were two, of which nothing is remembered.
type Way = Option<Vec<u8>>;

/// Where later fragments go.
#[derive(Clone, Debug)]
enum Onward {
    To(BTreeSet<u32>),
    Reply(usize),
}

/// What the program did with a frame.
#[derive(Clone, Debug)]
pub struct Run {
    /// The frame.
    pub frame: Vec<u8>,
    /// The action.
    pub action: crate::rig::Action,
    /// As what it was counted.
    pub outcome: Outcome,
    /// What became of the frame.
    pub out: Vec<u8>,
}

/// The model, with what it remembers.
#[derive(Debug, Default)]
pub struct Model {
    mistake: Option<Mistake>,
    /// By backend slot.
    backends: Vec<Backend>,
    fragments: HashMap<Whose, Onward>,
    /// Backends that each flow has gone to; more than one where a port was used again.
    flows: HashMap<Key, BTreeSet<u32>>,
    /// The tags that packets of the flow came with: a reply leaves with one of these.
    ways: HashMap<Key, BTreeSet<Way>>,
}

impl Model {
    /// A model of the world.
    pub fn new() -> Self {
        Self { backends: backends(), ..Self::default() }
    }

    /// A model that makes a mistake.
    pub fn mistaken(mistake: Mistake) -> Self {
        Self { mistake: Some(mistake), ..Self::new() }
    }

    /// Forgets all that came before.
    pub fn forget(&mut self) {
        self.fragments.clear();
        self.flows.clear();
        self.ways.clear();
    }

    fn errs(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// Why the run is not what it should be, if so.
    pub fn difference(&mut self, run: &Run) -> Option<String> {
        let (fate, ip) = self.fate(&run.frame);
        let differs = self.compare(&fate, ip.as_ref(), run).err();
        if let (Fate::ReplyOrPass(service), Some(ip @ Ip { piece: Some((id, ..)), .. })) = (&fate, &ip)
            && run.outcome != Outcome::NotForService
        {
            self.fragments.insert(whose(ip, *id), Onward::Reply(*service));
        }
        self.learn(ip.as_ref(), run);
        differs.map(|difference| {
            format!(
                "{difference}: the model says {fate:?}, the program {:?} and {:?}\n  in  {:02x?}\n  out {:02x?}",
                run.action, run.outcome, run.frame, run.out
            )
        })
    }

    /// The fate of a frame.
    fn fate(&mut self, frame: &[u8]) -> (Fate, Option<Ip>) {
        let parsed = self.link(frame).and_then(|(kind, at)| match kind {
            0x0800 => Some(self.ipv4(frame, at, true)),
            0x86dd => Some(self.ipv6(frame, at, true)),
            _ => None,
        });
        match parsed {
            None => (Fate::Ends(Outcome::NotForService), None),
            Some(None) => (Fate::Ends(Outcome::PassedMalformed), None),
            Some(Some(ip)) => (self.follow(frame, &ip).unwrap_or_else(Fate::Ends), Some(ip)),
        }
    }

    fn follow(&mut self, frame: &[u8], ip: &Ip) -> Result<Fate, Outcome> {
        if let Some((id, offset, _)) = ip.piece
            && offset != 0
        {
            return self.later(ip, id, offset);
        }
        if ip.protocol == 1 || ip.protocol == 58 {
            return Err(self.icmp(frame, ip));
        }
        if ip.protocol != 6 && ip.protocol != 17 {
            return Err(Outcome::NotForService);
        }
        let ports = frame.get(ip.payload..ip.payload + 4).ok_or(Outcome::PassedMalformed)?;
        let (source, destination) = (number(&ports[..2]), number(&ports[2..]));
        let Some(service) = self.service(ip, destination) else {
            return self.reply(frame, ip, source, destination);
        };
        if !self.is_sound(frame, ip) {
            return Err(Outcome::DroppedMalformed);
        }
        let flags = if ip.protocol == 6 { frame.get(ip.payload + 13).copied() } else { None };
        let backends = self.steer(service, ip, (source, destination), flags, self.named(frame, ip, service))?;
        if let Some((id, ..)) = ip.piece {
            self.fragments.insert(whose(ip, id), Onward::To(backends.clone()));
        }
        self.hops(service, ip)?;
        Ok(Fate::To(backends))
    }

    /// A packet must have a hop left where Ebb forwards as a router does.
    fn hops(&self, service: usize, ip: &Ip) -> Result<(), Outcome> {
        let router = cells()[service].mode != Mode::Dsr && !self.errs(Mistake::NoHops);
        if router && ip.hops <= 1 { Err(Outcome::DroppedHopLimit) } else { Ok(()) }
    }

    /// A later fragment follows its first, unless it would overwrite the first one's TCP header.
    fn later(&self, ip: &Ip, id: u32, offset: u16) -> Result<Fate, Outcome> {
        let onward = self.fragments.get(&whose(ip, id)).ok_or(Outcome::NotForService)?;
        if ip.protocol == 6 && offset < 3 && !self.errs(Mistake::TinyFragments) {
            return Err(Outcome::DroppedFragment);
        }
        match onward {
            Onward::To(slots) => {
                let service = slots.first().map_or(0, |slot| (slot / BACKENDS) as usize);
                self.hops(service, ip)?;
                Ok(Fate::Fragment(slots.clone()))
            }
            Onward::Reply(service) => {
                self.hops(*service, ip)?;
                Ok(Fate::ReplyFragment(*service))
            }
        }
    }

    /// No VIP answers echoes here, and nothing is ever quoted that is a flow's: an error can only be malformed.
    fn icmp(&self, frame: &[u8], ip: &Ip) -> Outcome {
        let v4 = ip.source.is_ipv4();
        let Some(header) = frame.get(ip.payload..ip.payload + 8) else { return Outcome::NotForService };
        let is_error = if v4 { matches!(header[0], 3 | 11 | 12) } else { matches!(header[0], 1..=4) };
        if !is_error {
            return Outcome::NotForService;
        }
        let at = ip.payload + 8;
        let quoted = if v4 { self.ipv4(frame, at, false) } else { self.ipv6(frame, at, false) };
        match quoted {
            None => Outcome::PassedMalformed,
            Some(quoted) if quoted.is_later() || !matches!(quoted.protocol, 6 | 17) => Outcome::NotForService,
            Some(quoted) if frame.len() < quoted.payload + 4 => Outcome::PassedMalformed,
            Some(_) => Outcome::NotForService,
        }
    }

    /// A packet from a backend's endpoint to a client that has a flow there.
    fn reply(&mut self, frame: &[u8], ip: &Ip, source: u16, port: u16) -> Result<Fate, Outcome> {
        let endpoint = SocketAddr::new(ip.source, source);
        let from = self.backends.iter().position(|row| {
            let cell = cells()[usize::from(row.service)];
            let its = SocketAddr::new(row.addr.into(), u16::from_be(row.port));
            cell.mode == Mode::Nat && cell.protocol.number() == ip.protocol && its == endpoint
        });
        let from = from.ok_or(Outcome::NotForService)?;
        let service = from / BACKENDS as usize;
        let first = ip.piece.is_some();
        if ip.protocol == 6 && !self.is_sound(frame, ip) {
            return Err(if first { Outcome::NotForService } else { Outcome::DroppedMalformed });
        }
        let known = self.flows.get(&(service, ip.destination, port)).filter(|known| known.contains(&(from as u32)));
        let known = known.ok_or(Outcome::NotForService)?;
        let only = known.len() == 1;
        if only {
            if let Some((id, ..)) = ip.piece {
                self.fragments.insert(whose(ip, id), Onward::Reply(service));
            }
            self.hops(service, ip)?;
            if frame.len() < ip.payload + 8 {
                return Err(Outcome::DroppedMalformed);
            }
        }
        Ok(if only { Fate::Reply(service) } else { Fate::ReplyOrPass(service) })
    }

    fn service(&self, ip: &Ip, port: u16) -> Option<usize> {
        cells().iter().position(|cell| {
            let protocol = cell.protocol.number() == ip.protocol || self.errs(Mistake::AnyProtocol);
            cell.vip() == SocketAddr::new(ip.destination, port) && protocol
        })
    }

    /// The backends that the packet may go to: of a known flow, where that went; or else the one that it names; or else by
    /// the ring.
    fn steer(
        &self,
        service: usize,
        ip: &Ip,
        ports: (u16, u16),
        flags: Option<u8>,
        named: Option<u32>,
    ) -> Result<BTreeSet<u32>, Outcome> {
        let opens = flags.is_none_or(opens);
        let known = self.flows.get(&(service, ip.source, ports.0));
        match known {
            // A SYN on a known tuple goes where a new flow goes.
            Some(known) if !opens || flags.is_none() => return Ok(known.clone()),
            _ => {}
        }
        if let Some(backend) = named {
            return Ok([backend_slot(service, backend)].into());
        }
        let [a, b] = if self.errs(Mistake::SwappedPorts) { [ports.1, ports.0] } else { [ports.0, ports.1] };
        let word = u32::from(a.to_be()) | u32::from(b.to_be()) << 16;
        let hash = hash::steering(&ip.source.into(), &ip.destination.into(), word, ip.protocol);
        let backend = self.by_ring(service, hash, !opens).ok_or(Outcome::DroppedNoBackend)?;
        Ok([backend_slot(service, backend)].into())
    }

    fn by_ring(&self, service: usize, hash: u32, forgotten: bool) -> Option<u32> {
        let slot = |hash| (ring::slot_of(hash, RING) + u32::from(self.errs(Mistake::NextSlot))) % RING;
        if forgotten && remembers(service, slot(hash)) {
            return Some(DRAINING);
        }
        let salted =
            |attempt| if attempt == 0 { hash } else { (hash::mix(u64::from(hash) << 8 | attempt) >> 32) as u32 };
        let owners = (0..4).map(|attempt| owner(service, slot(salted(attempt))));
        owners.into_iter().find(|&owner| owner != DRAINING || self.errs(Mistake::DrainingTakesNew))
    }

    /// Takes in which flows the program has recorded, and where.
    fn learn(&mut self, ip: Option<&Ip>, run: &Run) {
        let Some(ip) = ip.filter(|ip| !ip.is_later() && matches!(ip.protocol, 6 | 17)) else { return };
        let Some(ports) = run.frame.get(ip.payload..ip.payload + 4) else { return };
        let (client, port) = (number(&ports[..2]), number(&ports[2..]));
        let Some(service) = self.service(ip, port) else { return };
        let slots: BTreeSet<u32> = if sent_at_all(run.outcome) {
            let sent = |slot: &u32| run.out[..6] == self.backends[*slot as usize].dst_mac;
            (0..BACKENDS).map(|backend| backend_slot(service, backend)).filter(sent).collect()
        } else if run.outcome == Outcome::DroppedHopLimit {
            // The flow was recorded before its first packet turned out to have no hop left.
            let flags = if ip.protocol == 6 { run.frame.get(ip.payload + 13).copied() } else { None };
            let stateless = flags.is_some_and(|flags| flags & (SYN | RST) != 0 && !opens(flags));
            let steered = self.steer(service, ip, (client, port), flags, self.named(&run.frame, ip, service));
            steered.ok().filter(|_| !stateless).unwrap_or_default()
        } else {
            BTreeSet::new()
        };
        if let (Some((id, ..)), false, true) = (ip.piece, slots.is_empty(), sent_at_all(run.outcome)) {
            self.fragments.insert(whose(ip, id), Onward::To(slots.clone()));
        }
        if !slots.is_empty() && run.outcome != Outcome::Stateless {
            let key = (service, ip.source, client);
            self.flows.entry(key).or_default().extend(slots);
            self.ways.entry(key).or_default().insert(way(&run.frame, ip.at));
        }
    }
}

/// How a frame came whose packet begins at `at`.
fn way(frame: &[u8], at: usize) -> Way {
    match at {
        14 => Some(Vec::new()),
        18 => Some([[0x81, 0], (number(&frame[14..16]) & 0xfff).to_be_bytes()].concat()),
        _ => None,
    }
}

/// Whether the packet, one for a service, went to a backend.
fn sent_at_all(outcome: Outcome) -> bool {
    use Outcome::{Adopted, Forwarded, NamedById, NewFlow, RemembersOwner, Stateless};
    matches!(outcome, NewFlow | Adopted | RemembersOwner | NamedById | Forwarded | Stateless)
}

/// Whether a segment with these flags opens a connection.
fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

fn whose(ip: &Ip, id: u32) -> Whose {
    // Of IPv6 fragments only the first need name the protocol (RFC 8200, section 4.5).
    let protocol = if ip.source.is_ipv4() { ip.protocol } else { 0 };
    (ip.source, ip.destination, id, protocol)
}
