//! Follows next hops over netlink.
//!
//! All interfaces count, not only those that the program is attached to: a frame may leave by any whose driver takes
//! redirected frames. The sockets belong to the network namespace of the thread that calls [`NetlinkResolver::start`].

use std::{collections::VecDeque, io, net::IpAddr, time::Duration};

use futures_util::StreamExt as _;
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
    request::{self, RequestError},
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

/// What the kernel answers where it would not send: nothing leads there, or a route of kind `unreachable` (`EHOSTUNREACH`),
/// `prohibit` (`EACCES`), `blackhole` (`EINVAL`) or `throw` (`EAGAIN`) does (`fib_props` in net/ipv4/fib_semantics.c,
/// `ip6_rt_type_to_error` in net/ipv6/route.c); or it does not speak that family.
const NO_ROUTE: [i32; 7] = [
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::EACCES,
    libc::EINVAL,
    libc::EAGAIN,
    libc::EOPNOTSUPP,
    libc::EAFNOSUPPORT,
];

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
        let worker = Worker {
            table: Table::default(),
            updates,
            commands: receiver,
            sockets,
            tunnels: Tunnels::open(),
            settled: None,
            failed: false,
        };
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
    tasks: Tasks,
}

type Tasks = [tokio::task::JoinHandle<()>; 2];

impl Sockets {
    fn open() -> io::Result<Self> {
        let (connection, handle) = request::connect()?;
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

/// Returns when one of them has ended, as it does when its socket fails.
async fn one_ends([asking, told]: &mut Tasks) {
    // Neither panics, and they are aborted only when nobody waits for them.
    tokio::select! {
        _ = asking => {}
        _ = told => {}
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
    /// When routes are to be asked for anew.
    settled: Option<Instant>,
    /// A request was not answered: new sockets are needed.
    failed: bool,
}

impl Worker {
    async fn run(mut self) {
        let mut refresh = interval(REFRESH);
        let mut retry = interval(RETRY);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut todo = self.resync().await;
        loop {
            if self.carry_out(todo).await.is_break() {
                return;
            }
            if self.failed {
                todo = self.reconnect().await;
                continue;
            }
            let quiet = sleep_until(self.settled.unwrap_or_else(Instant::now));
            todo = tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Watch(address)) => self.table.watch(address),
                    Some(Command::Unwatch(address)) => { self.table.unwatch(address); Vec::new() }
                    None => return,
                },
                message = self.sockets.messages.next() => match message.map(|m| self.event(m)) {
                    Some(Event::Actions(actions)) => actions,
                    Some(Event::RoutesChanged) => { self.settled = Some(Instant::now() + SETTLE); Vec::new() }
                    Some(Event::Lost) => self.resync().await,
                    None => self.reconnect().await,
                },
                () = one_ends(&mut self.sockets.tasks) => self.reconnect().await,
                // The path to a tunnel's end is narrow: the route says so from now on.
                () = self.tunnels.told() => { self.settled.get_or_insert(Instant::now() + NARROWED); Vec::new() }
                () = quiet, if self.settled.is_some() => { self.settled = None; self.table.routes_changed() }
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
                // All is asked anew by the next socket.
                Action::FindRoute(_) | Action::Probe { .. } if self.failed => {}
                Action::FindRoute(address) => match find_route(&self.sockets.handle, address).await {
                    Ok(route) => queue.extend(self.table.route(address, route)),
                    // What is known stands.
                    Err(error) => {
                        self.note(&error, &format_args!("the route to {address}"));
                        self.settled.get_or_insert(Instant::now() + RETRY);
                    }
                },
                Action::Probe { ifindex, address } => {
                    if let Err(error) = probe(&self.sockets.handle, ifindex, address).await {
                        self.note(&error, &format_args!("{address} on interface {ifindex}"));
                    }
                }
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

    /// Says that a request failed.
    fn note(&mut self, error: &RequestError, what: &dyn std::fmt::Display) {
        if error.is_of_socket() {
            self.failed = true;
            tracing::warn!("cannot ask for {what} over netlink: {error}; trying another socket");
        } else {
            tracing::debug!("cannot ask for {what} over netlink: {error}");
        }
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
                self.failed |= error.is_of_socket();
                tracing::warn!("cannot read interfaces and neighbours over netlink: {error}");
                // What was not asked for while there was no socket must not wait for the next list.
                if self.failed { Vec::new() } else { self.table.routes_changed() }
            }
        }
    }

    async fn reconnect(&mut self) -> Vec<Action> {
        loop {
            tokio::time::sleep(RECONNECT).await;
            match Sockets::open() {
                Ok(sockets) => {
                    self.sockets = sockets;
                    self.failed = false;
                    return self.resync().await;
                }
                Err(error) => tracing::warn!("netlink is not to be had ({error}): next hops are not followed"),
            }
        }
    }
}

type Everything = (Vec<Link>, Vec<((u32, IpAddr), Neighbour)>);

async fn everything(handle: &Handle) -> Result<Everything, RequestError> {
    let links = request::links(handle).await?;
    let messages = request::list(handle, RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())).await?;
    let known = messages.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(message),
        _ => None,
    });
    let neighbours = known.filter_map(|(ifindex, address, state)| Some(((ifindex, address), state?))).collect();
    Ok((links, neighbours))
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

/// Asks the kernel how it would send to an address, rules and all; `None` if it would not.
async fn find_route(handle: &Handle, address: IpAddr) -> Result<Option<Route>, RequestError> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    // The longest prefix is one of any address.
    let Ok(request) = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, bits) else { return Ok(None) };
    match request::one(handle.route().get(request.build()).execute()).await {
        Ok(answer) => Ok(read_route(address, &answer)),
        Err(error) if error.is(&NO_ROUTE) => {
            tracing::debug!("no route to {address}: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
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
async fn probe(handle: &Handle, ifindex: u32, address: IpAddr) -> Result<(), RequestError> {
    let request = handle.neighbours().add(ifindex, address).replace();
    let asking = request.state(NeighbourState::None).flags(NeighbourFlags::Use).execute();
    request::limited(async { Ok(asking.await?) }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> (Worker, mpsc::UnboundedSender<Command>, mpsc::UnboundedReceiver<NextHopUpdate>) {
        let (updates, told) = mpsc::unbounded_channel();
        let (commands, receiver) = mpsc::unbounded_channel();
        let worker = Worker {
            table: Table::default(),
            updates,
            commands: receiver,
            sockets: Sockets::open().expect("sockets"),
            tunnels: Tunnels::open(),
            settled: None,
            failed: false,
        };
        (worker, commands, told)
    }

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn a_dead_socket_says_nothing_about_routes() {
        let (mut worker, _commands, mut told) = worker();
        worker.sockets.tasks[0].abort();
        one_ends(&mut worker.sockets.tasks).await;
        let asked = worker.table.watch(LOOPBACK);
        assert!(worker.carry_out(asked).await.is_continue());
        assert!(worker.failed && told.try_recv().is_err(), "what is known stands");
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced() {
        for (dead, watched_first) in [(0, false), (0, true), (1, true)] {
            let (worker, commands, mut told) = worker();
            let ending = worker.sockets.tasks[dead].abort_handle();
            if watched_first {
                commands.send(Command::Watch(LOOPBACK)).expect("it is read");
            }
            let running = tokio::spawn(worker.run());
            if watched_first {
                assert_eq!(told.recv().await.map(|update| update.next_hop), Some(None), "it is this host's own");
            }
            ending.abort();
            let other = "127.0.0.2".parse().expect("an address");
            commands.send(Command::Watch(other)).expect("it is read");
            let found = tokio::time::timeout(Duration::from_secs(30), told.recv()).await.expect("it asks again");
            assert_eq!(found, Some(NextHopUpdate { address: other, next_hop: None }));
            running.abort();
        }
    }

    #[test]
    fn only_what_says_so_means_that_there_is_no_route() {
        let error = |errno| RequestError::Refused(io::Error::from_raw_os_error(errno));
        for errno in [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL] {
            assert!(error(errno).is(&NO_ROUTE), "{errno}");
        }
        for errno in [libc::ENOMEM, libc::ENOBUFS, libc::EBUSY, libc::EINTR] {
            assert!(!error(errno).is(&NO_ROUTE) && !error(errno).is_of_socket(), "{errno}");
        }
    }
}
