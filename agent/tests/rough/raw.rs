//! HTTP/2 and gRPC by hand, so that all of it can be wrong: RFC 9113.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What a client begins with.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long the service may take to answer, or to close what is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// Kinds of frames.
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
const GOAWAY: u8 = 7;

/// Flags of frames.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame, whether or not there are such.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Preface and settings.
pub(crate) fn greeting() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// What begins a call of a method.
pub(crate) fn headers(stream: u32, path: &str, token: &str) -> Vec<u8> {
    let authorization = format!("Bearer {token}");
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", &authorization),
    ];
    let mut block = vec![];
    for (name, value) in fields {
        // A literal without indexing, RFC 7541, section 6.2.2; none is as long as 127.
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// The beginning of a message that says that it is `declared` long.
pub(crate) fn message(declared: u32, bytes: &[u8]) -> Vec<u8> {
    [&[0], &declared.to_be_bytes()[..], bytes].concat()
}

/// A connection on which anything can be written.
pub(crate) struct Line(TcpStream);

impl Line {
    pub(crate) async fn open(at: SocketAddr) -> Self {
        Self(TcpStream::connect(at).await.unwrap())
    }

    /// Writes as much as the service takes: it may have closed the connection, and is right to.
    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        let said = tokio::time::timeout(PATIENCE, self.0.write_all(bytes));
        let _ = said.await.unwrap_or(Ok(()));
    }

    /// Says no more, and waits until the service has closed the connection. Whether it has.
    pub(crate) async fn hang_up(mut self) -> bool {
        let _ = self.0.shutdown().await;
        self.is_closed().await
    }

    /// Whether the service closes the connection.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let mut read = vec![];
        let ended = tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut read));
        ended.await.is_ok()
    }

    /// Whether a call is answered: with headers that end its stream, or a reset.
    pub(crate) async fn is_answered(&mut self, call: u32) -> bool {
        let answered = async {
            loop {
                let Some((kind, flags, stream)) = self.next_frame().await else {
                    return false;
                };
                let ends = match kind {
                    HEADERS => flags & END_STREAM != 0,
                    kind => kind == RST_STREAM,
                };
                if kind == GOAWAY || (ends && stream == call) {
                    return kind != GOAWAY;
                }
            }
        };
        let answered = tokio::time::timeout(PATIENCE, answered);
        answered.await.unwrap_or(false)
    }

    /// Kind, flags and stream of the next frame; `None` at the end.
    async fn next_frame(&mut self) -> Option<(u8, u8, u32)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((kind, flags, u32::from_be_bytes(stream)))
    }
}
