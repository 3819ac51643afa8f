//! A socket to PostgreSQL, below TLS.

use std::io;

use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use super::patient::Patient;

/// How incoming data are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// As data come, by the event loop.
    Eager,
    /// In large reads, on a thread that may block.
    Patient,
}

/// An open socket.
pub(super) type Transport = Either<Either<TcpStream, UnixStream>, Patient>;

pub(super) fn tcp(stream: TcpStream, reads: Reads) -> io::Result<Transport> {
    Ok(match reads {
        Reads::Eager => Either::Left(Either::Left(stream)),
        Reads::Patient => Either::Right(Patient::new(stream.into_std()?.into())),
    })
}

pub(super) fn unix(stream: UnixStream, reads: Reads) -> io::Result<Transport> {
    Ok(match reads {
        Reads::Eager => Either::Left(Either::Right(stream)),
        Reads::Patient => Either::Right(Patient::new(stream.into_std()?.into())),
    })
}
