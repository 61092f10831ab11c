//! What must stand in the flow table.

use anyhow::{Result, bail, ensure};
use ebb_tests::rig::{Mode, Protocol};
use lb_common::{
    addr::Addr,
    flow::{FlowEntry, FlowKey, Life, Meta, flow_flag},
};

use crate::{
    change::FILLER,
    fixture::{B, Flow},
    judge::{Judge, SERVICE},
};

impl Judge<'_> {
    fn linked(&self) -> Vec<FlowEntry> {
        self.rig
            .flows
            .iter()
            .filter(|entry| Meta(entry.meta).life() == Life::Linked && entry.client != FILLER)
            .collect()
    }

    /// The table holds exactly these flows.
    pub fn flows(&self, wanted: &[Flow]) -> Result<()> {
        let held = self.linked();
        ensure!(held.len() == wanted.len(), "{} flows in the table: {held:#?}", held.len());
        let client = self.cell.client();
        for flow in wanted {
            let port = flow.port.unwrap_or(client.port());
            let key = FlowKey::new(Addr::from(client.ip()), port.to_be(), SERVICE);
            let answered = if flow.unanswered { !flow_flag::REPLY_SEEN } else { u16::MAX };
            let flags = flow.flags | (self.implied_flags(flow.backend) & answered);
            let found = held.iter().find(|entry| {
                entry.backend == flow.backend.slot()
                    && entry.generation == flow.generation
                    && Meta(entry.meta).flags() == flags
                    && (entry.client, entry.port_service) == (key.client, key.port_service)
            });
            let Some(entry) = found else {
                bail!("no flow like {flow:?} with flags {flags:#x} among {held:#?}");
            };
            if self.cell.protocol == Protocol::Tcp {
                for (what, is, should) in
                    [("client_seq", entry.client_seq, flow.seq), ("client_ack", entry.client_ack, flow.ack)]
                {
                    ensure!(should.is_none_or(|should| is == should), "{what} is {is}, should be {should:?}");
                }
            }
        }
        Ok(())
    }

    fn implied_flags(&self, backend: B) -> u16 {
        let datagram = if self.cell.protocol == Protocol::Udp { flow_flag::DATAGRAM } else { 0 };
        let both_ways = if self.cell.mode == Mode::Nat { flow_flag::BOTH_WAYS } else { 0 };
        let replied = if self.replied.contains(&backend) { flow_flag::REPLY_SEEN } else { 0 };
        datagram | both_ways | replied
    }

    /// No packet may leave the table with an entry that is half way between lives, or a home that does not count its
    /// flows.
    pub fn table_is_sound(&self) -> Result<()> {
        let (mut linked, mut homes) = (0, 0);
        // Entries that the suite itself has put there are no home's.
        let own = |entry: &FlowEntry| entry.client == FILLER;
        for (row, entry) in self.rig.flows.iter().enumerate() {
            match Meta(entry.meta).life() {
                Life::Free => {}
                Life::Linked => linked += u32::from(!own(&entry)),
                life => bail!("entry {row} was left {life:?}"),
            }
            homes += (entry.hop & ((1 << 48) - 1)).count_ones();
        }
        ensure!(linked == homes, "{linked} flows are linked, and homes count {homes}");
        Ok(())
    }
}
