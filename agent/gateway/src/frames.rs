//! `ipc` frames on tokio's sockets. Same format and limits, other reads and writes.

use ipc::FrameError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Writes one frame.
///
/// # Errors
/// As [`ipc::write_frame`].
pub async fn write<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    message: &T,
    bytes_max: usize,
) -> Result<(), FrameError> {
    to.write_all(&ipc::encode(message, bytes_max)?).await?;
    Ok(())
}

/// Reads one frame of at most `bytes_max` bytes. If the future is dropped, the stream is of no more use.
///
/// # Errors
/// As [`ipc::read_frame`].
pub async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    bytes_max: usize,
) -> Result<T, FrameError> {
    let mut header = [0; 4];
    let (first, rest) = header.split_at_mut(1);
    if from.read(first).await? == 0 {
        return Err(FrameError::Closed);
    }
    from.read_exact(rest).await?;
    let mut body = vec![0; ipc::decode(header, bytes_max)?];
    from.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn frames_are_those_of_ipc() {
        let mut bytes = Vec::new();
        write(&mut bytes, &"hello", 64).await.unwrap();
        assert_eq!(ipc::read_frame::<String>(&mut bytes.as_slice(), 64).unwrap(), "hello");
        assert_eq!(read::<String>(&mut bytes.as_slice(), 64).await.unwrap(), "hello");
        let cut = &mut &bytes[..6];
        assert!(matches!(read::<String>(cut, 64).await, Err(FrameError::Socket(_))));
        assert!(matches!(read::<String>(&mut &[][..], 64).await, Err(FrameError::Closed)));
        let lying = &mut &[0xff; 8][..];
        assert!(matches!(read::<String>(lying, 64).await, Err(FrameError::TooLong { .. })));
    }
}
