//! One request and its answer. Both run at the same time: a server may answer before it has read everything.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::Porter;
use super::inbox::Inbox;
use crate::gate::body::{Body, Measure};
use crate::gate::relay::{acknowledge, ends_by_reset};
use crate::gate::request::{Kind, Request};
use crate::gate::response::{self, Read};

/// A server that knows nothing of `Expect` says nothing either: its client sends the body after a while (RFC 9110
/// §10.1.1), and so do we, after longer than any client waits.
const EXPECT_PATIENCE: Duration = Duration::from_secs(5);

/// A client that has sent its next request believes the answer to be over. Where we can't tell, the server's silence of so
/// long says that it is.
const ODD_PATIENCE: Duration = Duration::from_secs(1);
/// One that sent it without waiting for the answer believes nothing yet.
const PIPELINED_PATIENCE: Duration = Duration::from_secs(5);

/// What follows an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Another request.
    Next,
    /// Nothing; the client may still have to read.
    Close,
    /// Nothing; the client may still be sending a body that nobody wants: its request is answered.
    Early,
    /// Nothing: the client is away.
    Gone,
    /// The request's body is damaged, and nothing was answered.
    Malformed(&'static str),
    /// The server did not answer.
    Failed { status: u16, what: &'static str },
    /// The server was reset within its answer: so is the client, who must not take what there is for the whole.
    Broken,
    /// Another protocol.
    Tunnel,
}

pub(super) struct Ends<'a> {
    pub(super) client: &'a mut TcpStream,
    pub(super) from_client: &'a mut Inbox,
    pub(super) server: &'a mut TcpStream,
    pub(super) from_server: &'a mut Inbox,
}

/// Whether a body that waits for it may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Go {
    Wait,
    Now,
    Never,
}

/// What both directions know of each other.
struct Course<'a, P> {
    request: &'a Request,
    porter: &'a P,
    start: Instant,
    /// When the last octet moved, in milliseconds from the start.
    moved_ms: AtomicU64,
    /// The client has got a part of an answer.
    has_answer: AtomicBool,
    go: watch::Sender<Go>,
    /// Where the answer ends nobody knows but who wrote it.
    odd: watch::Sender<bool>,
}

/// The request is out.
struct Sent<'s> {
    client: ReadHalf<'s>,
    server: WriteHalf<'s>,
    /// Octets of the next request came with it.
    has_next: bool,
}

enum Unsent {
    Client,
    Server,
    Malformed(&'static str),
    /// The body was waited for no more.
    Withheld,
}

enum Received {
    Over {
        is_persistent: bool,
    },
    Tunnel,
    /// The server ended without an answer.
    Nothing,
    /// It changed the protocol, which nobody asked for.
    Unasked,
    /// It was reset within its answer.
    Broken,
    ClientGone,
}

enum Cut {
    /// It has ended.
    Source,
    /// It is gone.
    Reset,
    Sink,
    Malformed(&'static str),
}

impl Ends<'_> {
    pub(super) async fn exchange<P: Porter>(self, request: &Request, porter: &P, idle: Duration) -> After {
        let course = Course {
            request,
            porter,
            start: Instant::now(),
            moved_ms: AtomicU64::new(0),
            has_answer: AtomicBool::new(false),
            go: watch::Sender::new(if request.expects { Go::Wait } else { Go::Now }),
            odd: watch::Sender::new(false),
        };
        tokio::select! {
            after = self.run(&course) => after,
            () = course.silence(idle) => {
                course.failed(504, "it did not go on within the time that a connection may be silent")
            }
        }
    }

    async fn run<P: Porter>(self, course: &Course<'_, P>) -> After {
        let (client_read, client_write) = self.client.split();
        let (server_read, server_write) = self.server.split();
        let mut send = pin!(course.send(client_read, self.from_client, server_write));
        let from_server = &mut *self.from_server;
        let after = {
            let mut receive = pin!(course.receive(server_read, from_server, client_write));
            let sent = tokio::select! {
                biased;
                sent = &mut send => sent,
                received = &mut receive => {
                    return course.answered_early(&received, send).await;
                }
            };
            match sent {
                Ok(sent) => tokio::select! {
                    biased;
                    received = receive => course.after(&received),
                    after = course.meanwhile(sent) => after,
                },
                Err(Unsent::Client) => After::Gone,
                Err(Unsent::Malformed(_)) if course.has_answer.load(Ordering::Relaxed) => After::Close,
                Err(Unsent::Malformed(why)) => After::Malformed(why),
                // It may have answered before it closed.
                Err(Unsent::Server | Unsent::Withheld) => {
                    course.after(&receive.await).at_most_close().early()
                }
            }
        };
        // Who says more than was asked for is not asked again.
        if after == After::Next && !self.from_server.unread().is_empty() { After::Close } else { after }
    }
}

impl After {
    fn at_most_close(self) -> Self {
        if self == Self::Next { Self::Close } else { self }
    }

    fn early(self) -> Self {
        if self == Self::Close { Self::Early } else { self }
    }
}

impl<P: Porter> Course<'_, P> {
    /// The head as it was judged, then the body to its end.
    async fn send<'s>(
        &self,
        mut client: ReadHalf<'s>,
        inbox: &mut Inbox,
        mut server: WriteHalf<'s>,
    ) -> Result<Sent<'s>, Unsent> {
        let head = match &self.request.rewritten {
            Some(head) => head,
            None => inbox.unread().get(..self.request.length).unwrap_or_default(),
        };
        server.write_all(head).await.map_err(|_| Unsent::Server)?;
        self.sent(head.len());
        inbox.consume(self.request.length);
        if !self.may_send_body().await {
            return Err(Unsent::Withheld);
        }
        let moved = |octets| self.sent(octets);
        match copy(&mut client, inbox, &mut server, self.request.body, moved).await {
            Ok(()) => Ok(Sent { client, server, has_next: !inbox.unread().is_empty() }),
            Err(Cut::Source | Cut::Reset) => Err(Unsent::Client),
            Err(Cut::Sink) => Err(Unsent::Server),
            Err(Cut::Malformed(why)) => Err(Unsent::Malformed(why)),
        }
    }

    /// A body that waits for a 100 is held back until it comes: a server that answered without reading it would take it
    /// for the next request.
    async fn may_send_body(&self) -> bool {
        let mut go = self.go.subscribe();
        let decided = timeout(EXPECT_PATIENCE, go.wait_for(|go| *go != Go::Wait)).await;
        decided.is_err() || decided.is_ok_and(|go| go.is_ok_and(|go| *go == Go::Now))
    }

    async fn receive(
        &self,
        mut server: ReadHalf<'_>,
        inbox: &mut Inbox,
        mut client: WriteHalf<'_>,
    ) -> Received {
        loop {
            let mut reader = response::Reader::default();
            let read = loop {
                match reader.read(inbox.unread(), self.request.manner.headless) {
                    Read::Incomplete if inbox.unread().is_empty() => {}
                    Read::Incomplete => acknowledge(server.as_ref()),
                    read => break read,
                }
                match inbox.fill(&mut server).await {
                    Ok(octets) if octets > 0 => self.touch(),
                    Ok(_) | Err(_) if inbox.unread().is_empty() => return Received::Nothing,
                    Ok(_) | Err(_) => break Read::Odd("it ends within its head"),
                }
            };
            let response = match read {
                Read::Head(response) => response,
                Read::Odd(_) | Read::Incomplete => return self.pass_on(server, inbox, client).await,
            };
            if response.status == 101 && self.request.kind != Kind::WebSocket {
                return Received::Unasked;
            }
            self.decide(
                if response.is_interim() && response.status == 100 { Go::Now } else { Go::Never },
                response,
            );
            if !self.forward(inbox, response.length, &mut client).await {
                return Received::ClientGone;
            }
            if response.status == 101 {
                let rest = inbox.unread().len();
                let is_there = self.forward(inbox, rest, &mut client).await;
                return if is_there { Received::Tunnel } else { Received::ClientGone };
            }
            if response.is_interim() {
                continue;
            }
            return match self.copy_answer(&mut server, inbox, &mut client, response.body).await {
                Ok(()) => Received::Over { is_persistent: response.is_persistent },
                Err(Cut::Source) => Received::Over { is_persistent: false },
                Err(Cut::Reset) => Received::Broken,
                Err(Cut::Sink) => Received::ClientGone,
                Err(Cut::Malformed(_)) => self.pass_on(server, inbox, client).await,
            };
        }
    }

    /// The first word about a body that waits counts.
    fn decide(&self, to: Go, response: response::Response) {
        // Early hints and the like say nothing about the body.
        if response.is_interim() && to != Go::Now {
            return;
        }
        self.go.send_if_modified(|go| {
            *go == Go::Wait && {
                *go = to;
                true
            }
        });
    }

    /// What can't be followed goes to the client until the connection ends. No request follows it.
    async fn pass_on(
        &self,
        mut server: ReadHalf<'_>,
        inbox: &mut Inbox,
        mut client: WriteHalf<'_>,
    ) -> Received {
        self.go.send_if_modified(|go| {
            *go == Go::Wait && {
                *go = Go::Never;
                true
            }
        });
        self.odd.send_replace(true);
        match self.copy_answer(&mut server, inbox, &mut client, Body::UntilClose).await {
            Err(Cut::Sink) => Received::ClientGone,
            Err(Cut::Reset) => Received::Broken,
            Ok(()) | Err(Cut::Source | Cut::Malformed(_)) => Received::Over { is_persistent: false },
        }
    }

    async fn copy_answer(
        &self,
        server: &mut ReadHalf<'_>,
        inbox: &mut Inbox,
        client: &mut WriteHalf<'_>,
        body: Body,
    ) -> Result<(), Cut> {
        if body != Body::UntilClose {
            return copy(server, inbox, client, body, |octets| self.received(octets)).await;
        }
        // Only its end says how long it is: what is cut off, by whatever ends this task or the worker, must not look whole.
        ends_by_reset(client.as_ref(), true);
        let copied = copy(server, inbox, client, body, |octets| self.received(octets)).await;
        if matches!(copied, Ok(()) | Err(Cut::Source)) {
            ends_by_reset(client.as_ref(), false);
            // Whoever still sends a body may wait for this end, and nothing can follow it.
            client.shutdown().await.ok();
        }
        copied
    }

    async fn forward(&self, inbox: &mut Inbox, octets: usize, client: &mut WriteHalf<'_>) -> bool {
        let written = client.write_all(inbox.unread().get(..octets).unwrap_or_default()).await;
        self.has_answer.store(true, Ordering::Relaxed);
        self.received(octets);
        inbox.consume(octets);
        written.is_ok()
    }

    /// The answer was over first. Its client may still have to send the body that it promised, and not every client hears
    /// the answer if it can't; then it ends, since not every server reads on to where the next request begins.
    async fn answered_early<F, T>(&self, received: &Received, send: std::pin::Pin<&mut F>) -> After
    where
        F: Future<Output = Result<T, Unsent>>,
    {
        let after = self.after(received).at_most_close();
        // A server that means to go on may take what is left of the body for the next request, which nobody judged: only one
        // that closes gets it.
        if matches!(received, Received::Over { is_persistent: true }) {
            return after.early();
        }
        if after == After::Close && *self.go.borrow() == Go::Now {
            // However it ends, so does the connection.
            drop(send.await);
        }
        if after == After::Tunnel { After::Close } else { after }
    }

    fn after(&self, received: &Received) -> After {
        match received {
            Received::Over { is_persistent } if *is_persistent && self.request.is_persistent => After::Next,
            Received::Over { .. } => After::Close,
            Received::Tunnel => After::Tunnel,
            Received::ClientGone => After::Gone,
            Received::Broken => After::Broken,
            Received::Nothing => self.failed(502, "it closed the connection without an answer"),
            Received::Unasked => self.failed(502, "it changed the protocol unasked"),
        }
    }

    fn failed(&self, status: u16, what: &'static str) -> After {
        if self.has_answer.load(Ordering::Relaxed) { After::Close } else { After::Failed { status, what } }
    }

    fn sent(&self, octets: usize) {
        self.touch();
        self.porter.sent(u64::try_from(octets).unwrap_or(u64::MAX));
    }

    fn received(&self, octets: usize) {
        self.touch();
        self.porter.received(u64::try_from(octets).unwrap_or(u64::MAX));
    }

    fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(now, Ordering::Relaxed);
    }

    /// While the answer comes: a client that ends its side ends it for the server too, as without us, but for the requests
    /// that it has still to be asked; one that is reset is gone.
    async fn meanwhile(&self, mut sent: Sent<'_>) -> After {
        if !sent.has_next {
            match sent.client.peek(&mut [0]).await {
                Ok(0) => {
                    // If it fails the server is gone, which the other direction sees.
                    sent.server.shutdown().await.ok();
                    return std::future::pending().await;
                }
                // The next request, which waits for its turn.
                Ok(_) => {}
                Err(_) => return After::Gone,
            }
        }
        // It will not come after an answer without an end: the client tries it again on another connection.
        drop(self.odd.subscribe().wait_for(|odd| *odd).await);
        self.touch();
        if sent.has_next {
            self.silence(PIPELINED_PATIENCE).await;
            return After::Broken;
        }
        self.silence(ODD_PATIENCE).await;
        After::Close
    }

    /// Returns when nothing moved for `limit`.
    async fn silence(&self, limit: Duration) {
        loop {
            let moved = self.moved_ms.load(Ordering::Relaxed);
            sleep_until(self.start + Duration::from_millis(moved) + limit).await;
            if self.moved_ms.load(Ordering::Relaxed) == moved {
                return;
            }
        }
    }
}

/// Copies a body to its end, beginning with what was read already.
async fn copy(
    from: &mut ReadHalf<'_>,
    inbox: &mut Inbox,
    to: &mut WriteHalf<'_>,
    body: Body,
    moved: impl Fn(usize),
) -> Result<(), Cut> {
    let mut measure = Measure::new(body);
    let mut has_waited = false;
    loop {
        let taken = measure.take(inbox.unread()).map_err(Cut::Malformed)?;
        if taken.octets > 0 {
            let octets = inbox.unread().get(..taken.octets).unwrap_or_default();
            to.write_all(octets).await.map_err(|_| Cut::Sink)?;
            moved(taken.octets);
            inbox.consume(taken.octets);
        }
        if taken.is_over {
            return Ok(());
        }
        if !std::mem::replace(&mut has_waited, true) {
            // Who writes head and body apart may hold the body back until the head is acknowledged (Nagle, RFC 9293 §3.7.4).
            acknowledge(from.as_ref());
        }
        match inbox.fill_body(from).await {
            Ok(octets) if octets > 0 => {}
            Ok(_) => return Err(Cut::Source),
            Err(_) => return Err(Cut::Reset),
        }
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::{AsyncWriteExt, Body, Inbox, copy};
    use crate::gate::relay::tests::pair;

    /// As the gate's sockets begin: whoever writes head and body apart would wait some 40 ms for the kernel's word.
    #[tokio::test]
    async fn who_has_more_to_say_is_told_at_once() {
        let ((mut server, mut from), (_client, mut to)) = (pair().await, pair().await);
        for (here, later, is_told) in [("ok", "", false), ("o", "k", true), ("", "ok", true)] {
            SockRef::from(&from).set_tcp_quickack(false).unwrap();
            let mut inbox = Inbox::new(here.into());
            let (mut reader, mut writer) = (from.split().0, to.split().1);
            let copied = copy(&mut reader, &mut inbox, &mut writer, Body::Length(2), |_| {});
            let (copied, said) = tokio::join!(copied, server.write_all(later.as_bytes()));
            assert!(copied.is_ok() && said.is_ok());
            assert_eq!(SockRef::from(&from).tcp_quickack().unwrap(), is_told, "{here:?} then {later:?}");
        }
    }
}
