//! Reading and writing frames, with and without descriptors.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::FDS_MAX;

/// Bytes of the length field.
const HEADER_BYTES: usize = 4;

/// Why a frame was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer closed the connection between two frames.
    #[error("the peer closed the connection")]
    Closed,
    /// The socket failed, or the peer left in the middle of a frame.
    #[error("the socket failed: {0}")]
    Socket(#[from] io::Error),
    /// The frame is longer than the reader or the format allows.
    #[error("a frame of {found} bytes is above the maximum of {max}")]
    TooLong {
        /// Length found.
        found: usize,
        /// Length allowed.
        max: usize,
    },
    /// The bytes are not the message that was expected.
    #[error("a frame does not hold the expected message: {0}")]
    Malformed(#[from] serde_json::Error),
    /// More descriptors than a frame may carry, or fewer than it announced.
    #[error("a frame came with {found} descriptors, expected {expected}")]
    Descriptors {
        /// Descriptors found.
        found: usize,
        /// Descriptors expected.
        expected: usize,
    },
}

/// Encodes `message` as one frame, header included.
///
/// # Errors
/// If it does not serialize, or is longer than `bytes_max`.
pub fn encode<T: Serialize>(message: &T, bytes_max: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut frame, message)?;
    let found = frame.len() - HEADER_BYTES;
    let too_long = || FrameError::TooLong { found, max: bytes_max };
    let length = u32::try_from(found).map_err(|_| too_long())?;
    if found > bytes_max {
        return Err(too_long());
    }
    frame[..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Checks a frame's header; returns the length of its body in bytes.
///
/// # Errors
/// If the body would be longer than `bytes_max`.
pub fn decode(header: [u8; HEADER_BYTES], bytes_max: usize) -> Result<usize, FrameError> {
    let found = u32::from_le_bytes(header) as usize;
    if found > bytes_max { Err(FrameError::TooLong { found, max: bytes_max }) } else { Ok(found) }
}

/// Writes one frame.
///
/// # Errors
/// As [`encode`], and whatever the socket says.
pub fn write_frame<T: Serialize>(
    to: &mut impl Write,
    message: &T,
    bytes_max: usize,
) -> Result<(), FrameError> {
    to.write_all(&encode(message, bytes_max)?)?;
    Ok(())
}

/// Reads one frame of at most `bytes_max` bytes.
///
/// # Errors
/// [`FrameError::Closed`] at a clean end between frames; otherwise what went wrong.
pub fn read_frame<T: DeserializeOwned>(
    from: &mut impl Read,
    bytes_max: usize,
) -> Result<T, FrameError> {
    let mut header = [0; HEADER_BYTES];
    match from.read(&mut header[..1])? {
        0 => return Err(FrameError::Closed),
        _ => from.read_exact(&mut header[1..])?,
    }
    read_body(from, header, bytes_max)
}

fn read_body<T: DeserializeOwned>(
    from: &mut impl Read,
    header: [u8; HEADER_BYTES],
    bytes_max: usize,
) -> Result<T, FrameError> {
    let mut body = vec![0; decode(header, bytes_max)?];
    from.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Writes one frame; `fds` travel with its first byte (unix(7), `SCM_RIGHTS`).
///
/// # Errors
/// As [`write_frame`]; also if there are more than [`FDS_MAX`] descriptors.
pub fn send_with_fds<T: Serialize>(
    to: &mut UnixStream,
    message: &T,
    bytes_max: usize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    if fds.len() > FDS_MAX {
        return Err(FrameError::Descriptors { found: fds.len(), expected: FDS_MAX });
    }
    let frame = encode(message, bytes_max)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(FrameError::Descriptors { found: fds.len(), expected: FDS_MAX });
    }
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(to.as_fd(), &[IoSlice::new(&frame)], &mut control, SendFlags::NOSIGNAL)
    })
    .map_err(io::Error::from)?;
    to.write_all(&frame[sent..])?;
    Ok(())
}

/// Reads one frame and the descriptors that came with it, at most [`FDS_MAX`].
///
/// # Errors
/// As [`read_frame`].
pub fn recv_with_fds<T: DeserializeOwned>(
    from: &mut UnixStream,
    bytes_max: usize,
) -> Result<(T, Vec<OwnedFd>), FrameError> {
    let mut header = [0; HEADER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(
            from.as_fd(),
            &mut [IoSliceMut::new(&mut header)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .map_err(io::Error::from)?;
    if received.bytes == 0 {
        return Err(FrameError::Closed);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    from.read_exact(&mut header[received.bytes..])?;
    Ok((read_body(from, header, bytes_max)?, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_round_trips_with_its_descriptors() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send_with_fds(&mut a, &"hello", 64, &[file.as_fd(), file.as_fd()]).unwrap();
        let (text, fds): (String, _) = recv_with_fds(&mut b, 64).unwrap();
        assert_eq!((text.as_str(), fds.len()), ("hello", 2));
    }

    #[test]
    fn a_lying_length_allocates_nothing() {
        let mut bytes: &[u8] = &[0xff, 0xff, 0xff, 0xff, b'1'];
        let error = read_frame::<u8>(&mut bytes, 64).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { found: 0xffff_ffff, max: 64 }), "{error}");
    }

    #[test]
    fn a_message_over_the_maximum_is_not_sent() {
        let error = encode(&"x".repeat(100), 64).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { found: 102, max: 64 }), "{error}");
    }

    #[test]
    fn the_end_between_frames_is_told_from_the_end_within() {
        let mut nothing: &[u8] = &[];
        assert!(matches!(read_frame::<u8>(&mut nothing, 64), Err(FrameError::Closed)));
        let mut half: &[u8] = &[4, 0, 0, 0, b'1'];
        assert!(matches!(read_frame::<u8>(&mut half, 64), Err(FrameError::Socket(_))));
    }

    #[test]
    fn a_frame_of_another_type_is_malformed() {
        let frame = encode(&"text", 64).unwrap();
        assert!(matches!(
            read_frame::<u64>(&mut frame.as_slice(), 64),
            Err(FrameError::Malformed(_))
        ));
    }
}
