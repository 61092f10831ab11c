//! Follows what the host itself has: its interfaces and its own addresses.

use std::{collections::BTreeSet, io, net::IpAddr, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use rtnetlink::{
    Handle, MulticastGroup,
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
    },
};
use tokio::sync::watch;

use super::{
    links::Link,
    request::{self, RequestError},
};

/// Changes come in bursts: everything is looked at once for those of so long.
const SETTLE: Duration = Duration::from_millis(50);
/// A look at everything, in case a change was missed.
const REFRESH: Duration = Duration::from_secs(10);
/// Pause before new sockets after the old ones failed.
const RECONNECT: Duration = Duration::from_secs(1);

/// What is followed.
const GROUPS: [MulticastGroup; 3] = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];

/// What the host has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its interfaces.
    pub links: Vec<Link>,
    /// Its own addresses, on whatever interface.
    pub addresses: BTreeSet<IpAddr>,
}

/// Follows the host in a task of its own, which ends when nobody looks any more. The first look is over when this returns.
pub async fn follow() -> io::Result<watch::Receiver<Arc<Host>>> {
    let (connection, handle) = request::connect()?;
    let connection = tokio::spawn(connection);
    let first = look(&handle).await;
    connection.abort();
    let (sender, receiver) = watch::channel(Arc::new(first?));
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            () = keep_looking(&sender) => {}
        }
    });
    Ok(receiver)
}

async fn keep_looking(sender: &watch::Sender<Arc<Host>>) {
    loop {
        if let Err(error) = look_at_changes(sender).await {
            tracing::warn!("netlink is not to be had ({error}): interfaces are not followed");
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Looks whenever something has changed, until a socket fails.
async fn look_at_changes(sender: &watch::Sender<Arc<Host>>) -> io::Result<()> {
    let (connection, handle) = request::connect()?;
    let (events, _, mut messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(connection);
    tasks.spawn(events);
    loop {
        let found = Arc::new(look(&handle).await?);
        sender.send_if_modified(|known| {
            let changed = *known != found;
            *known = found;
            changed
        });
        tokio::select! {
            message = messages.next() => if message.is_none() { return Ok(()) },
            () = tokio::time::sleep(REFRESH) => {}
        }
        tokio::time::sleep(SETTLE).await;
        // What has come meanwhile is in the look that follows.
        while let Ok(Some(_)) = tokio::time::timeout(Duration::ZERO, messages.next()).await {}
    }
}

async fn look(handle: &Handle) -> Result<Host, RequestError> {
    let links = request::links(handle).await?;
    let messages = request::list(handle, RouteNetlinkMessage::GetAddress(AddressMessage::default())).await?;
    let addresses = messages.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(message) => own_address(message),
        _ => None,
    });
    Ok(Host { addresses: addresses.collect(), links })
}

/// On a point-to-point interface `Address` is the other end's, and `Local` is ours (if_addr.h).
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}
