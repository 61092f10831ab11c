//! What the kernel is asked over netlink: each request has a limit in time, and an answer is whole or an error.

use std::{io, time::Duration};

use futures_util::{Stream, StreamExt as _};
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{RouteNetlinkMessage, link::LinkMessage},
};

use super::links::Link;

/// How long the kernel may take, which answers as soon as it is asked.
const LIMIT: Duration = Duration::from_secs(10);
/// Something changed while it was listed: so often it is listed anew at once, before that counts as a failure.
pub(super) const ATTEMPTS: usize = 10;

/// The socket by which requests are made.
pub(super) type Connection = rtnetlink::proto::Connection<RouteNetlinkMessage>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The kernel's answer is an error.
    #[error("{0}")]
    Refused(#[source] io::Error),
    /// It is not what was asked for, or ended before it was whole.
    #[error("{0}")]
    Broken(String),
    /// What was listed changed meanwhile, each time.
    #[error("the list changed while it was read, {ATTEMPTS} times")]
    Changing,
    /// None came.
    #[error("no answer within {LIMIT:?}")]
    Silent,
}

impl RequestError {
    /// Whether another socket is needed.
    pub(super) fn is_of_socket(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Silent)
    }

    /// Whether the kernel has answered so.
    pub(super) fn is(&self, errnos: &[i32]) -> bool {
        matches!(self, Self::Refused(error) if error.raw_os_error().is_some_and(|errno| errnos.contains(&errno)))
    }
}

impl From<rtnetlink::Error> for RequestError {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::Refused(message.to_io()),
            other => Self::Broken(other.to_string()),
        }
    }
}

impl From<RequestError> for io::Error {
    fn from(error: RequestError) -> Self {
        Self::other(error)
    }
}

/// A socket to ask by, for a task of its own, and the way to it.
pub(super) fn connect() -> io::Result<(Connection, Handle)> {
    let (mut connection, handle, _) = rtnetlink::new_connection()?;
    // Only by the message at its end a list is known to be whole: when the socket fails, it just ends.
    connection.set_forward_done(true);
    Ok((connection, handle))
}

/// A request for all that there is of something.
pub(super) fn dump(what: RouteNetlinkMessage) -> NetlinkMessage<RouteNetlinkMessage> {
    let mut request = NetlinkMessage::from(what);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request
}

/// All that the kernel lists, by a handle from [`connect`].
pub(super) async fn list(handle: &Handle, what: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, RequestError> {
    let mut handle = handle.clone();
    for _ in 0..ATTEMPTS {
        let messages = handle.request(dump(what.clone()))?;
        if let Some(items) = limited(whole(messages)).await? {
            return Ok(items);
        }
    }
    Err(RequestError::Changing)
}

/// All interfaces.
pub(super) async fn links(handle: &Handle) -> Result<Vec<Link>, RequestError> {
    let messages = list(handle, RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
    Ok(messages.iter().filter_map(Link::of).collect())
}

/// The answer to a request for one thing.
pub(super) async fn one<T>(answers: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<T, RequestError> {
    let mut answers = std::pin::pin!(answers);
    let ended = || RequestError::Broken("the socket failed before the answer".to_owned());
    limited(async { Ok(answers.next().await.ok_or_else(ended)??) }).await
}

/// Waits no longer than a request may take.
pub(super) async fn limited<T>(request: impl Future<Output = Result<T, RequestError>>) -> Result<T, RequestError> {
    tokio::time::timeout(LIMIT, request).await.unwrap_or(Err(RequestError::Silent))
}

/// A list up to the message at its end; `None` if what it lists has changed meanwhile.
async fn whole(
    messages: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>>,
) -> Result<Option<Vec<RouteNetlinkMessage>>, RequestError> {
    let mut messages = std::pin::pin!(messages);
    let mut list = List::default();
    while let Some(message) = messages.next().await {
        if list.take(message)? {
            return Ok(list.whole());
        }
    }
    Err(RequestError::Broken("the socket failed in the midst of a list".to_owned()))
}

/// A list as it comes, message by message.
#[derive(Default)]
pub(super) struct List {
    items: Vec<RouteNetlinkMessage>,
    changed: bool,
}

impl List {
    /// Takes the next message; whether it is the one at the end.
    pub(super) fn take(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> Result<bool, RequestError> {
        // Said once, by the first message after the change (`nl_dump_check_consistent` in include/net/netlink.h).
        self.changed |= message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(item) => self.items.push(item),
            NetlinkPayload::Done(done) if done.code == 0 => return Ok(true),
            NetlinkPayload::Done(done) => {
                return Err(RequestError::Refused(io::Error::from_raw_os_error(done.code.saturating_abs())));
            }
            NetlinkPayload::Error(error) => return Err(RequestError::Refused(error.to_io())),
            other => return Err(RequestError::Broken(format!("{other:?} in the midst of a list"))),
        }
        Ok(false)
    }

    /// What it lists; `None` if that has changed meanwhile: something that was there all the time may then be missing.
    pub(super) fn whole(self) -> Option<Vec<RouteNetlinkMessage>> {
        (!self.changed).then_some(self.items)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use rtnetlink::{
        packet_core::{DoneMessage, NetlinkHeader},
        packet_route::{address::AddressMessage, neighbour::NeighbourMessage},
    };

    use super::*;

    type Message = NetlinkMessage<RouteNetlinkMessage>;

    fn message(payload: NetlinkPayload<RouteNetlinkMessage>, flags: u16) -> Message {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        NetlinkMessage::new(header, payload)
    }

    fn item(flags: u16) -> Message {
        let link = RouteNetlinkMessage::NewLink(LinkMessage::default());
        message(NetlinkPayload::InnerMessage(link), flags)
    }

    fn end(code: i32, flags: u16) -> Message {
        let mut done = DoneMessage::default();
        done.code = code;
        message(NetlinkPayload::Done(done), flags)
    }

    async fn listed(messages: Vec<Message>) -> Result<Option<usize>, RequestError> {
        Ok(whole(stream::iter(messages)).await?.map(|items| items.len()))
    }

    #[tokio::test]
    async fn a_list_that_ends_early_is_an_error() {
        assert_eq!(listed(vec![item(0), item(0), end(0, 0)]).await.expect("whole"), Some(2));
        assert!(listed(vec![item(0)]).await.expect_err("the socket failed").is_of_socket());
        let refused = listed(vec![item(0), end(-libc::ENOMEM, 0)]).await.expect_err("the kernel gave up");
        assert!(refused.is(&[libc::ENOMEM]) && !refused.is_of_socket());
        let overrun = message(NetlinkPayload::Overrun(Vec::new()), 0);
        assert!(listed(vec![item(0), overrun, end(0, 0)]).await.expect_err("some are lost").is_of_socket());
    }

    #[tokio::test]
    async fn a_list_that_changes_meanwhile_is_none() {
        for at in 0..3 {
            let flags = |of| if of == at { NLM_F_DUMP_INTR } else { 0 };
            let messages = vec![item(flags(0)), item(flags(1)), end(0, flags(2))];
            assert_eq!(listed(messages).await.expect("whole"), None, "said by message {at}");
        }
    }

    #[tokio::test]
    async fn no_answer_is_not_an_answer() {
        assert_eq!(one(stream::iter([Ok::<_, rtnetlink::Error>(7)])).await.expect("an answer"), 7);
        assert!(
            one(stream::iter(Vec::<Result<u32, rtnetlink::Error>>::new()))
                .await
                .expect_err("the socket failed")
                .is_of_socket()
        );
        let (connection, handle) = connect().expect("a socket");
        drop(connection);
        assert!(links(&handle).await.expect_err("nobody serves it").is_of_socket());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_kernel_is_waited_for_no_longer_than_the_limit() {
        let silent = one(stream::pending::<Result<u32, rtnetlink::Error>>()).await.expect_err("no answer");
        assert!(matches!(silent, RequestError::Silent) && silent.is_of_socket());
    }

    #[tokio::test]
    async fn the_kernel_ends_its_lists() {
        let (connection, handle) = connect().expect("a socket");
        let serving = tokio::spawn(connection);
        assert!(links(&handle).await.expect("a list").iter().any(|link| link.index == 1));
        let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        assert!(!list(&handle, addresses).await.expect("a list").is_empty());
        list(&handle, RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())).await.expect("a list");
        serving.abort();
    }
}
