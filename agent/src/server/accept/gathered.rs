//! Writes that are gathered until they are flushed: what h2 writes piece by piece goes out in one system call.
//!
//! h2 sends a message of 256 bytes or more beside its buffer where a connection takes several slices at once, and flushes
//! it before what follows; where it takes one, that begins at 1024 bytes. An answer of one disk lies between: its last
//! frame, the trailers, would be a system call and a wake-up of its own. So nothing is said to take several slices, and
//! the pieces are put together here.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are held back at most: a frame of HTTP/2 as large as one may be (RFC 9113, section 4.2) and what stands
/// before it.
const MOST_BYTES: usize = 32 << 10;

/// A stream whose writes are held back until they are flushed, or are many.
#[derive(Debug)]
pub(super) struct Gathered<S> {
    stream: S,
    /// Empty, and without memory, between answers: most connections are idle.
    held: Vec<u8>,
    /// How much of that is sent.
    sent: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Gathered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            held: Vec::new(),
            sent: 0,
        }
    }

    fn stream(&mut self) -> Pin<&mut S> {
        Pin::new(&mut self.stream)
    }

    /// Sends what is held back.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.held.len() {
            let rest = &self.held[self.sent..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        self.held = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.held.len() + bytes.len() > MOST_BYTES {
            ready!(self.poll_send(context))?;
        }
        if bytes.len() > MOST_BYTES {
            return self.stream().poll_write(context, bytes);
        }
        self.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        self.stream().poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Keeps each write as it comes.
    #[derive(Debug, Default)]
    struct Calls(Vec<Vec<u8>>);

    impl AsyncRead for Calls {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Calls {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.push(bytes.to_vec());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn pieces_go_out_in_one_call_when_they_are_flushed_and_leave_no_memory() {
        let mut gathered = Gathered::new(Calls::default());
        for piece in ["head", "message", "trailers"] {
            gathered.write_all(piece.as_bytes()).await.unwrap();
        }
        assert!(gathered.stream.0.is_empty());
        gathered.flush().await.unwrap();
        assert_eq!(gathered.stream.0, [b"headmessagetrailers"]);
        assert_eq!(gathered.held.capacity(), 0);
        gathered.flush().await.unwrap();
        assert_eq!(gathered.stream.0.len(), 1);
    }

    #[tokio::test]
    async fn no_more_is_held_back_than_a_frame_and_what_is_longer_is_not_copied() {
        let mut gathered = Gathered::new(Calls::default());
        let sizes = [MOST_BYTES, 1, MOST_BYTES + 1, 2];
        for size in sizes {
            gathered.write_all(&vec![0; size]).await.unwrap();
            assert!(gathered.held.len() <= MOST_BYTES);
        }
        gathered.shutdown().await.unwrap();
        let sent = gathered.stream.0.iter().map(Vec::len);
        assert_eq!(sent.collect::<Vec<_>>(), sizes);
    }

    #[tokio::test]
    async fn a_stream_that_takes_nothing_more_is_an_error() {
        let (near, far) = tokio::io::duplex(4);
        drop(far);
        let mut gathered = Gathered::new(near);
        gathered.write_all(b"answer").await.unwrap();
        let error = gathered.flush().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    proptest! {
        /// Through a pipe that takes a few bytes at a time, with flushes anywhere.
        #[test]
        fn every_byte_arrives_in_its_order(
            writes in prop::collection::vec((0..3 * MOST_BYTES / 2, any::<bool>()), 0..8),
            pipe in 1..5000usize,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let bytes: Vec<u8> = (0..writes.iter().map(|(size, _)| size).sum::<usize>())
                .map(|i| (i % 251) as u8)
                .collect();
            let (near, mut far) = tokio::io::duplex(pipe);
            let arrived = runtime.block_on(async {
                let write = async {
                    let (mut gathered, mut rest) = (Gathered::new(near), &bytes[..]);
                    for (size, is_flushed) in &writes {
                        let (piece, after) = rest.split_at(*size);
                        gathered.write_all(piece).await.unwrap();
                        rest = after;
                        if *is_flushed {
                            gathered.flush().await.unwrap();
                        }
                    }
                    gathered.shutdown().await.unwrap();
                };
                let mut arrived = Vec::new();
                let read = far.read_to_end(&mut arrived);
                let ((), read) = tokio::join!(write, read);
                read.unwrap();
                arrived
            });
            prop_assert!(arrived == bytes);
        }
    }
}
