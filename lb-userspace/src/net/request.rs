//! What the kernel is asked over netlink: each request has a limit in time, and an answer is whole or an error.

use std::{io, time::Duration};

use futures_util::{Stream, StreamExt as _};
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_DUMP_INTR, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
};

use super::links::Link;

/// How long the kernel may take, which answers as soon as it is asked.
const LIMIT: Duration = Duration::from_secs(10);
/// Something changed while it was listed: so often it is listed anew at once, before that counts as a failure.
const ATTEMPTS: usize = 5;

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

/// All that the kernel lists, by a handle from [`connect`].
pub(super) async fn list<T, S>(ask: impl Fn() -> S) -> Result<Vec<T>, RequestError>
where
    S: Stream<Item = Result<T, rtnetlink::Error>>,
{
    for _ in 0..ATTEMPTS {
        if let Some(items) = limited(whole(ask())).await? {
            return Ok(items);
        }
    }
    Err(RequestError::Changing)
}

/// All interfaces.
pub(super) async fn links(handle: &Handle) -> Result<Vec<Link>, RequestError> {
    let links = list(|| handle.link().get().execute()).await?;
    Ok(links.iter().map(Link::from_message).collect())
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
async fn whole<T>(messages: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Option<Vec<T>>, RequestError> {
    let mut messages = std::pin::pin!(messages);
    let mut items = Vec::new();
    while let Some(message) = messages.next().await {
        match message {
            Ok(item) => items.push(item),
            Err(rtnetlink::Error::UnexpectedMessage(end)) => {
                let NetlinkPayload::Done(done) = &end.payload else {
                    return Err(rtnetlink::Error::UnexpectedMessage(end).into());
                };
                if done.code != 0 {
                    return Err(RequestError::Refused(io::Error::from_raw_os_error(done.code.saturating_abs())));
                }
                let changed = end.header.flags & NLM_F_DUMP_INTR != 0;
                return Ok((!changed).then_some(items));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(RequestError::Broken("the socket failed in the midst of a list".to_owned()))
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use rtnetlink::packet_core::{DoneMessage, NetlinkHeader, NetlinkMessage};

    use super::*;

    type Item = Result<u32, rtnetlink::Error>;

    fn end(code: i32, flags: u16) -> Item {
        let mut done = DoneMessage::default();
        done.code = code;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        Err(rtnetlink::Error::UnexpectedMessage(NetlinkMessage::new(header, NetlinkPayload::Done(done))))
    }

    async fn listed(messages: Vec<Item>) -> Result<Vec<u32>, RequestError> {
        list(|| stream::iter(messages.clone())).await
    }

    #[tokio::test]
    async fn a_list_that_ends_early_is_an_error() {
        assert_eq!(listed(vec![Ok(1), Ok(2), end(0, 0)]).await.expect("whole"), [1, 2]);
        assert!(listed(vec![Ok(1)]).await.expect_err("the socket failed").is_of_socket());
        let refused = listed(vec![Ok(1), end(-libc::ENOMEM, 0)]).await.expect_err("the kernel gave up");
        assert!(refused.is(&[libc::ENOMEM]) && !refused.is_of_socket());
        let changing = listed(vec![Ok(1), end(0, NLM_F_DUMP_INTR)]).await;
        assert!(matches!(changing, Err(RequestError::Changing)));
    }

    #[tokio::test]
    async fn no_answer_is_not_an_answer() {
        assert_eq!(one(stream::iter([Ok::<_, rtnetlink::Error>(7)])).await.expect("an answer"), 7);
        assert!(one(stream::iter(Vec::<Item>::new())).await.expect_err("the socket failed").is_of_socket());
        let (connection, handle) = connect().expect("a socket");
        drop(connection);
        assert!(list(|| handle.link().get().execute()).await.expect_err("nobody serves it").is_of_socket());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_kernel_is_waited_for_no_longer_than_the_limit() {
        let silent = one(stream::pending::<Item>()).await.expect_err("no answer");
        assert!(matches!(silent, RequestError::Silent) && silent.is_of_socket());
    }

    #[tokio::test]
    async fn the_kernel_ends_its_lists() {
        let (connection, handle) = connect().expect("a socket");
        let serving = tokio::spawn(connection);
        assert!(links(&handle).await.expect("a list").iter().any(|link| link.index == 1));
        assert!(!list(|| handle.address().get().execute()).await.expect("a list").is_empty());
        list(|| handle.neighbours().get().execute()).await.expect("a list");
        serving.abort();
    }
}
