//! Follows the interfaces that the program is on: one that was deleted and comes back gets the program again.

use std::{fs, os::fd::AsFd as _};

use aya::maps::{HashMap, MapData};
use lb_common::control::{PEERS, Peer, PeerRow, mac_word};

use super::{
    InterfaceChange, InterfaceInfo, InterfaceNews,
    announce::Place,
    attach::{self, Attachment},
    ebpf::EbpfDatapath,
    error::OpenError,
    pins, sys,
};
use crate::net::links::Link;

/// Stands for the mode of an interface that is not there.
pub(super) const MISSING: &str = "missing";

/// The packet path's own MAC addresses, by interface.
pub(super) type LinkMacs = HashMap<MapData, u32, u64>;

/// Tells the packet path an interface's MAC address.
pub(super) fn put_mac(macs: &mut LinkMacs, link: &Link) {
    let Some(mac) = link.mac else { return };
    if let Err(error) = macs.insert(link.index, mac_word(mac), 0) {
        tracing::warn!("{}: neighbours that ask for announced VIPs get no answer: {error}", link.name);
    }
}

impl EbpfDatapath {
    /// See [`super::Datapath::follow_links`].
    pub(super) fn follow(&mut self, links: &[Link]) -> Vec<InterfaceChange> {
        let mut attachments = std::mem::take(&mut self.attachments);
        let mut changes = Vec::new();
        for attachment in &mut attachments {
            let name = attachment.info.name.clone();
            let mut tell = |news| changes.push(InterfaceChange { interface: name.clone(), news });
            self.follow_one(attachment, links, &mut tell);
        }
        self.attachments = attachments;
        if !changes.is_empty() {
            let places = self.places();
            self.announcer.listen(&places);
        }
        changes
    }

    fn follow_one(&mut self, attachment: &mut Attachment, links: &[Link], tell: &mut impl FnMut(InterfaceNews)) {
        if let Some(fd) = &attachment.link {
            let attached = sys::link_info(fd.as_fd()).is_ok_and(|info| info.ifindex == attachment.info.ifindex);
            match links.iter().find(|link| link.index == attachment.info.ifindex) {
                Some(link) if attached => return self.look_at(attachment, link, tell),
                // The list has left it out: it is there, and so is the program.
                None if attached && sys::has_interface(attachment.info.ifindex) => return,
                // `ebb unload` has taken it off, and its pin with it.
                _ if !self.pins.of_link(attachment.info.ifindex).exists() => return,
                _ => self.part_with(attachment, tell),
            }
        }
        let Some(link) = links.iter().find(|link| link.name == attachment.info.name) else { return };
        // Without the program's pin everything was unloaded meanwhile.
        if self.pins.has(pins::PROGRAM) && attachment.link.is_none() {
            self.come_back(attachment, link, tell);
        }
    }

    fn look_at(&mut self, attachment: &mut Attachment, link: &Link, tell: &mut impl FnMut(InterfaceNews)) {
        let before = std::mem::replace(&mut attachment.seen, (link.up, link.mac));
        if before == attachment.seen {
            return;
        }
        put_mac(&mut self.link_macs, link);
        match (before.0, link.up) {
            (true, false) => tell(InterfaceNews::Down),
            (_, true) => tell(InterfaceNews::Up),
            (false, false) => {}
        }
    }

    fn part_with(&mut self, attachment: &mut Attachment, tell: &mut impl FnMut(InterfaceNews)) {
        let ifindex = std::mem::take(&mut attachment.info.ifindex);
        attachment.was = ifindex;
        attachment.link = None;
        MISSING.clone_into(&mut attachment.info.mode);
        // It may be gone by another's hand, and the map may never have had it.
        let _ = fs::remove_file(self.pins.of_link(ifindex));
        let _ = self.link_macs.remove(&ifindex);
        tell(InterfaceNews::Gone);
    }

    fn come_back(&mut self, attachment: &mut Attachment, link: &Link, tell: &mut impl FnMut(InterfaceNews)) {
        put_mac(&mut self.link_macs, link);
        match self.attach_again(link) {
            Ok(attached) => {
                self.move_peers(attachment.was, link);
                *attachment = attached;
                tell(InterfaceNews::Attached(attachment.info.mode.clone()));
            }
            Err(error) => {
                let said = error.to_string();
                if attachment.refused.as_ref() != Some(&said) {
                    tell(InterfaceNews::Refused(said.clone()));
                    attachment.refused = Some(said);
                }
            }
        }
    }

    fn attach_again(&self, link: &Link) -> Result<Attachment, OpenError> {
        let refused = |source| OpenError::Refused { action: format!("cannot pin the link of {}", link.name), source };
        let (mode, fd) = attach::attach(self.program.as_fd(), link, self.mode)?;
        let path = self.pins.of_link(link.index);
        // Left over from an interface that had this index.
        let _ = fs::remove_file(&path);
        sys::pin(fd.as_fd(), &path).map_err(refused)?;
        Ok(Attachment::new(link, mode, fd))
    }

    /// Clients' neighbours on an interface that was deleted are on the one that has come in its place: flows go on.
    ///
    /// The packet path no longer makes rows for the old interface, since no packet comes in there.
    fn move_peers(&self, was: u32, link: &Link) {
        let Some(mac) = link.mac else { return };
        let own_mac = mac_word(mac);
        for row in 1..PEERS {
            let Some(known) = self.maps.peers.read(row) else { continue };
            let Some(peer) = Peer::unpack(known.peer) else { continue };
            if peer.ifindex == was && link.index <= Peer::MAX_IFINDEX {
                let peer = Peer { ifindex: link.index, ..peer };
                let tag = known.own_mac >> 48 << 48;
                self.maps.peers.write(row, &PeerRow { peer: peer.pack(), own_mac: tag | own_mac });
            }
        }
    }

    /// The interfaces to announce on.
    pub(super) fn places(&self) -> Vec<Place> {
        let there = self.attachments.iter().filter(|attachment| attachment.link.is_some() && attachment.seen.0);
        there
            .filter_map(|attachment| {
                let InterfaceInfo { name, ifindex, .. } = &attachment.info;
                Some(Place { name: name.clone(), ifindex: *ifindex, mac: attachment.seen.1? })
            })
            .collect()
    }
}
