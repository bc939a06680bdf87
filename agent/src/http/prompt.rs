//! A stream that says at once that its peer has left: then a request that waited in it is dropped and not carried out.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// After what was sent it looks for the end, which tokio tells a moment later: when the request is under way already.
pub struct PromptStream<S> {
    stream: S,
    has_ended: bool,
}

impl<S> PromptStream<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, has_ended: false }
    }
}

impl<S: AsyncRead + AsFd + Unpin> AsyncRead for PromptStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.has_ended {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            let next = SockRef::from(&self.stream).peek(&mut [MaybeUninit::uninit()]);
            self.has_ended = next.is_ok_and(|count| count == 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PromptStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    use super::*;

    #[tokio::test]
    async fn the_end_is_seen_with_what_was_sent_before_it() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut near = PromptStream::new(near);
        let mut read = [0; 64];
        far.write_all(b"first").await.unwrap();
        assert_eq!(near.read(&mut read).await.unwrap(), 5);
        assert!(!near.has_ended);
        far.write_all(b"last").await.unwrap();
        drop(far);
        assert_eq!(near.read(&mut read[..2]).await.unwrap(), 2);
        assert!(!near.has_ended, "there is more");
        assert_eq!(near.read(&mut read).await.unwrap(), 2);
        assert!(near.has_ended);
        assert_eq!(near.read(&mut read).await.unwrap(), 0);
    }
}
