//! Connections: taken as they come, up to a bound, with TLS where it is spoken, and each with who is at its other
//! end.

mod gathered;
mod greeting;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use self::gathered::Gathered;
use self::greeting::Greeting;
use crate::access::peer::{CertificateNames, Credentials, Peer};
use crate::access::tls::TlsKeeper;

/// How long a handshake may take, and then the first bytes of HTTP/2.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after the operating system gave no connection, so that a lack of descriptors is no busy loop.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections that are taken and not yet served.
const MOST_WAITING: usize = 16;

/// A connection.
pub struct Connection {
    stream: Gathered<Box<dyn Duplex>>,
    peer: Peer,
    /// Until it has begun to speak HTTP/2.
    greeting: Option<Greeting>,
    /// Counts the connection for as long as there is one.
    _place: OwnedSemaphorePermit,
}

/// What a call is spoken over.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.peer).finish()
    }
}

/// Connections as they come. None is an error: what goes wrong with one is no reason to take no other.
pub type Incoming = ReceiverStream<Result<Connection, Infallible>>;

/// What is spoken on a TCP connection.
#[derive(Debug, Clone)]
pub enum Spoken {
    /// The call itself, in the clear.
    Plain,
    /// TLS, with what is in force when the connection is made.
    Tls(Arc<TlsKeeper>),
}

/// Takes connections of a Unix socket, `most` at once, until what this returns is dropped. Those beyond are closed.
#[must_use]
pub fn from_unix(listener: UnixListener, most: u32) -> Incoming {
    let (door, incoming) = Door::new(most);
    tokio::spawn(async move {
        while let Some(accepted) = door.next(listener.accept()).await {
            let Some((place, (stream, _))) = door.let_in(accepted).await else {
                continue;
            };
            match local(&stream) {
                Ok(peer) => hand_over(&door.to, Connection::new(stream, peer, place)).await,
                Err(error) => {
                    tracing::warn!("a connection was closed: whose it is is not known: {error}");
                }
            }
        }
    });
    incoming
}

fn local(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    Ok(Peer::Local(Credentials {
        uid: credentials.uid(),
        gid: credentials.gid(),
        pid: credentials.pid(),
    }))
}

/// As [`from_unix`], of an address. Each handshake has a task of its own: one that is slow holds up nobody.
#[must_use]
pub fn from_tcp(listener: TcpListener, spoken: Spoken, most: u32) -> Incoming {
    let (door, incoming) = Door::new(most);
    tokio::spawn(async move {
        while let Some(accepted) = door.next(listener.accept()).await {
            let Some((place, (stream, address))) = door.let_in(accepted).await else {
                continue;
            };
            let (to, spoken) = (door.to.clone(), spoken.clone());
            tokio::spawn(async move {
                let shaken =
                    tokio::time::timeout(HANDSHAKE, shake(stream, address, &spoken, place));
                match shaken.await {
                    Ok(Ok(connection)) => hand_over(&to, connection).await,
                    Ok(Err(error)) => tracing::info!(%address, "no handshake: {error}"),
                    Err(_) => tracing::info!(%address, "no handshake in {HANDSHAKE:?}"),
                }
            });
        }
    });
    incoming
}

async fn shake(
    stream: TcpStream,
    address: SocketAddr,
    spoken: &Spoken,
    place: OwnedSemaphorePermit,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let Spoken::Tls(keeper) = spoken else {
        return Ok(Connection::new(stream, Peer::Loopback(address), place));
    };
    let stream = TlsAcceptor::from(keeper.current()).accept(stream).await?;
    let shown = stream.get_ref().1.peer_certificates();
    let names = shown
        .and_then(|chain| chain.first())
        .map(|der| CertificateNames::of(der));
    let peer = Peer::Tls {
        address,
        certificate: names.map(Arc::new),
    };
    Ok(Connection::new(stream, peer, place))
}

type Sender = mpsc::Sender<Result<Connection, Infallible>>;

/// Where nobody takes it the service is ending, which the door sees too.
async fn hand_over(to: &Sender, connection: Connection) {
    let _ = to.send(Ok(connection)).await;
}

/// Where connections come in.
struct Door {
    to: Sender,
    places: Arc<Semaphore>,
    most: u32,
}

impl Door {
    fn new(most: u32) -> (Self, Incoming) {
        let (to, incoming) = mpsc::channel(MOST_WAITING);
        let places = Arc::new(Semaphore::new(most as usize));
        (Self { to, places, most }, ReceiverStream::new(incoming))
    }

    /// What `accept` brings; `None` once nobody takes connections any more.
    async fn next<T>(&self, accept: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            accepted = accept => Some(accepted),
            () = self.to.closed() => None,
        }
    }

    /// A connection with its place; `None` where there is none, of either.
    async fn let_in<T>(&self, accepted: io::Result<T>) -> Option<(OwnedSemaphorePermit, T)> {
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("no connection was taken: {error}");
                tokio::time::sleep(PAUSE).await;
                return None;
            }
        };
        let place = Arc::clone(&self.places).try_acquire_owned();
        if place.is_err() {
            let most = self.most;
            tracing::warn!(
                "a connection was closed: there are {most} (service.limits.connections)"
            );
        }
        Some((place.ok()?, accepted))
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl Connection {
    fn new(stream: impl Duplex + 'static, peer: Peer, place: OwnedSemaphorePermit) -> Self {
        Self {
            stream: Gathered::new(Box::new(stream)),
            peer,
            greeting: Some(Greeting::within(HANDSHAKE, Instant::now())),
            _place: place,
        }
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut Gathered<Box<dyn Duplex>>> {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = self.as_mut().stream().poll_read(context, buffer);
        let Some(greeting) = &mut self.greeting else {
            return read;
        };
        if read.is_pending() {
            return Poll::Ready(Err(ready!(greeting.poll_overdue(context))));
        }
        if greeting.hear(buffer.filled().len() - before) {
            self.greeting = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}
