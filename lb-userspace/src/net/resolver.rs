//! Follows next hops over netlink.
//!
//! All interfaces count, not only those that the program is attached to: a frame may leave by any whose driver takes
//! redirected frames. The sockets belong to the network namespace of the thread that calls [`NetlinkResolver::start`].

use std::{collections::VecDeque, io, net::IpAddr, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    links::Link,
    table::{Action, Neighbour, Route, Table},
    tunnels::Tunnels,
};
use crate::daemon::{NextHopUpdate, Resolver};

/// How often neighbours that lead to backends are confirmed. The kernel does not see the traffic that XDP forwards, so it
/// would let them grow stale.
const REFRESH: Duration = Duration::from_secs(10);
/// How often those that do not answer are asked again; the kernel's own three attempts take three seconds.
const RETRY: Duration = Duration::from_secs(1);
/// Changes of routes come in bursts: asked anew when one has been quiet for this long.
const SETTLE: Duration = Duration::from_millis(100);
/// Routes are asked anew so long after a router said that a path is narrow: anybody can forge that, as often as they like.
const NARROWED: Duration = Duration::from_millis(500);
/// Pause before new sockets after the old ones failed.
const RECONNECT: Duration = Duration::from_secs(1);

/// What is followed.
const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

#[derive(Clone, Copy, Debug)]
enum Command {
    Watch(IpAddr),
    Unwatch(IpAddr),
}

/// Resolves next hops in a task of its own, which ends when this is dropped.
#[derive(Debug)]
pub struct NetlinkResolver {
    commands: mpsc::UnboundedSender<Command>,
}

impl NetlinkResolver {
    /// Opens the sockets and starts the task; needs a tokio runtime. What is found goes to `updates`.
    pub fn start(updates: mpsc::UnboundedSender<NextHopUpdate>) -> io::Result<Self> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let sockets = Sockets::open()?;
        let worker = Worker { table: Table::default(), updates, commands: receiver, sockets, tunnels: Tunnels::open() };
        tokio::spawn(worker.run());
        Ok(Self { commands })
    }
}

impl Resolver for NetlinkResolver {
    fn watch(&mut self, address: IpAddr) {
        // The task ends before this only when nobody takes its updates any more.
        let _ = self.commands.send(Command::Watch(address));
    }

    fn unwatch(&mut self, address: IpAddr) {
        let _ = self.commands.send(Command::Unwatch(address));
    }
}

type Messages = futures_util::stream::BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>;

/// One socket to ask by, one to be told by. Dropping this ends the tasks that serve them.
struct Sockets {
    handle: Handle,
    messages: Messages,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Sockets {
    fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let (events, _, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
        let tasks = [tokio::spawn(connection), tokio::spawn(events)];
        Ok(Self { handle, messages: messages.map(|(message, _)| message).boxed(), tasks })
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What a message means for the table.
enum Event {
    Actions(Vec<Action>),
    RoutesChanged,
    /// The socket's buffer overflowed: events are missing.
    Lost,
}

struct Worker {
    table: Table,
    updates: mpsc::UnboundedSender<NextHopUpdate>,
    commands: mpsc::UnboundedReceiver<Command>,
    sockets: Sockets,
    tunnels: Tunnels,
}

impl Worker {
    async fn run(mut self) {
        let mut refresh = interval(REFRESH);
        let mut retry = interval(RETRY);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut settled: Option<Instant> = None;
        let mut todo = self.resync().await;
        loop {
            if self.carry_out(todo).await.is_break() {
                return;
            }
            let quiet = sleep_until(settled.unwrap_or_else(Instant::now));
            todo = tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Watch(address)) => self.table.watch(address),
                    Some(Command::Unwatch(address)) => { self.table.unwatch(address); Vec::new() }
                    None => return,
                },
                message = self.sockets.messages.next() => match message.map(|m| self.event(m)) {
                    Some(Event::Actions(actions)) => actions,
                    Some(Event::RoutesChanged) => { settled = Some(Instant::now() + SETTLE); Vec::new() }
                    Some(Event::Lost) => self.resync().await,
                    None => self.reconnect().await,
                },
                // The path to a tunnel's end is narrow: the route says so from now on.
                () = self.tunnels.told() => { settled.get_or_insert(Instant::now() + NARROWED); Vec::new() }
                () = quiet, if settled.is_some() => { settled = None; self.table.routes_changed() }
                _ = retry.tick() => self.table.retry(),
                // A look at everything, in case an event was missed in a way that nobody told.
                _ = refresh.tick() => { let mut all = self.resync().await; all.extend(self.table.refresh()); all }
            };
        }
    }

    /// Does what the table asks for, and what follows from that. Breaks when nobody takes updates any more.
    async fn carry_out(&mut self, actions: Vec<Action>) -> std::ops::ControlFlow<()> {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            match action {
                Action::FindRoute(address) => {
                    let route = find_route(&self.sockets.handle, address).await;
                    queue.extend(self.table.route(address, route));
                }
                Action::Probe { ifindex, address } => probe(&self.sockets.handle, ifindex, address).await,
                Action::Tell(update) => {
                    if let Some(hop) = update.next_hop {
                        tracing::debug!("{} is reached by {hop:?}", update.address);
                    } else {
                        tracing::info!("{} cannot be reached: no route, or nobody answers", update.address);
                    }
                    if self.updates.send(update).is_err() {
                        return std::ops::ControlFlow::Break(());
                    }
                }
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    fn event(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> Event {
        let inner = match message.payload {
            NetlinkPayload::InnerMessage(inner) => inner,
            NetlinkPayload::Overrun(_) => {
                tracing::info!("netlink told more than could be taken in: looking at everything anew");
                return Event::Lost;
            }
            _ => return Event::Actions(Vec::new()),
        };
        Event::Actions(match inner {
            RouteNetlinkMessage::NewLink(link) => self.table.link(Link::from_message(&link)),
            RouteNetlinkMessage::DelLink(link) => self.table.link_gone(link.header.index),
            RouteNetlinkMessage::NewNeighbour(message) => match neighbour(&message) {
                Some((ifindex, address, state)) => self.table.neighbour(ifindex, address, state),
                None => Vec::new(),
            },
            RouteNetlinkMessage::DelNeighbour(message) => match neighbour(&message) {
                Some((ifindex, address, _)) => self.table.neighbour(ifindex, address, None),
                None => Vec::new(),
            },
            RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_)
            | RouteNetlinkMessage::NewRule(_)
            | RouteNetlinkMessage::DelRule(_) => return Event::RoutesChanged,
            _ => Vec::new(),
        })
    }

    /// Reads all interfaces and neighbours.
    async fn resync(&mut self) -> Vec<Action> {
        match everything(&self.sockets.handle).await {
            Ok((links, neighbours)) => self.table.resync(links, neighbours),
            Err(error) => {
                tracing::warn!("cannot read interfaces and neighbours over netlink: {error}");
                Vec::new()
            }
        }
    }

    async fn reconnect(&mut self) -> Vec<Action> {
        loop {
            match Sockets::open() {
                Ok(sockets) => {
                    self.sockets = sockets;
                    return self.resync().await;
                }
                Err(error) => tracing::warn!("netlink is not to be had ({error}): next hops are not followed"),
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }
}

type Everything = (Vec<Link>, Vec<((u32, IpAddr), Neighbour)>);

async fn everything(handle: &Handle) -> Result<Everything, rtnetlink::Error> {
    let links = handle.link().get().execute().map_ok(|link| Link::from_message(&link)).try_collect().await?;
    let messages: Vec<NeighbourMessage> = handle.neighbours().get().execute().try_collect().await?;
    let known = messages.iter().filter_map(neighbour);
    Ok((links, known.filter_map(|(ifindex, address, state)| Some(((ifindex, address), state?))).collect()))
}

/// The neighbour in a message; the state is `None` where the kernel knows no more than its name.
fn neighbour(message: &NeighbourMessage) -> Option<(u32, IpAddr, Option<Neighbour>)> {
    let mut address = None;
    let mut mac: Option<[u8; 6]> = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = match message.header.state {
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => {
            mac.map(Neighbour::Known)
        }
        NeighbourState::Permanent | NeighbourState::Noarp => mac.map(Neighbour::Fixed),
        NeighbourState::Incomplete => Some(Neighbour::Asked),
        NeighbourState::Failed => Some(Neighbour::Silent),
        _ => None,
    };
    Some((message.header.ifindex, address?, state))
}

/// Asks the kernel how it would send to an address, rules and all.
async fn find_route(handle: &Handle, address: IpAddr) -> Option<Route> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let request = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, bits).ok()?.build();
    let answer = handle.route().get(request).execute().try_next().await;
    match answer {
        Ok(answer) => read_route(address, &answer?),
        Err(error) => {
            tracing::debug!("no route to {address}: {error}");
            None
        }
    }
}

fn read_route(address: IpAddr, message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        tracing::debug!("{address} is not to be sent to: {:?}", message.header.kind);
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    let mut ifindex = None;
    let mut route = Route { ifindex: 0, via: address, source: None, mtu: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(gateway) => route.via = ip(gateway)?,
            RouteAttribute::Via(RouteVia::Inet(v4)) => route.via = IpAddr::V4(*v4),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => route.via = IpAddr::V6(*v6),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    route.ifindex = ifindex?;
    Some(route)
}

/// Has the kernel resolve a neighbour, or confirm one that has gone stale, as if a packet were waiting for it
/// (`NTF_USE`, see neigh_add in net/core/neighbour.c). The only traffic is the solicitation itself.
async fn probe(handle: &Handle, ifindex: u32, address: IpAddr) {
    let request = handle.neighbours().add(ifindex, address).replace();
    let asked = request.state(NeighbourState::None).flags(NeighbourFlags::Use).execute().await;
    if let Err(error) = asked {
        tracing::debug!("cannot have {address} on interface {ifindex} resolved: {error}");
    }
}
