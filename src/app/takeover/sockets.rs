//! What a line says of the socket that comes with it: `<kind> <keeper> <name>`.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context as _, bail};

use super::super::passed::{Keeper, Kind, PassedSocket};

/// A socket that came, and is of use.
pub(super) enum Offered {
    /// Somebody listens on it.
    Listening(PassedSocket),
    /// A conversation with a process that served before, with this number.
    Earlier(UnixStream, i32),
}

/// The line for a listening socket, as its receiver shall know it.
pub(in crate::app) fn line(kind: &str, keeper: Keeper, name: &str) -> String {
    let keeper = match keeper {
        Keeper::Manager | Keeper::PredecessorsManager => "manager".to_owned(),
        Keeper::Predecessor => "tidegate".to_owned(),
        Keeper::PredecessorAndFile(inode) => inode.to_string(),
    };
    format!("{kind} {keeper} {name}")
}

/// The line for a conversation with the process `pid`.
pub(super) fn earlier_line(pid: i32) -> String {
    format!("earlier {pid}")
}

/// The socket as its line has it.
pub(super) fn offered((line, socket): (String, OwnedFd)) -> anyhow::Result<Offered> {
    let unknown = || format!("it offers what this version doesn't know: {line:?}");
    let (kind, rest) = line.split_once(' ').with_context(unknown)?;
    if kind == "earlier" {
        return Ok(Offered::Earlier(UnixStream::from(socket), rest.parse().with_context(unknown)?));
    }
    let (keeper, name) = rest.split_once(' ').with_context(unknown)?;
    let socket = match kind {
        "tcp" => Kind::Tcp(TcpListener::from(socket)),
        "unix" => {
            let listener = UnixListener::from(socket);
            let address = listener.local_addr()?;
            let path =
                address.as_pathname().context("it offers a socket without a path")?.to_owned();
            Kind::Unix(listener, path)
        }
        _ => bail!(unknown()),
    };
    let keeper = match keeper {
        "manager" => Keeper::PredecessorsManager,
        "tidegate" => Keeper::Predecessor,
        inode => Keeper::PredecessorAndFile(inode.parse().with_context(unknown)?),
    };
    Ok(Offered::Listening(PassedSocket { name: name.to_owned(), socket, keeper }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(line: &str) -> anyhow::Result<Offered> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        offered((line.to_owned(), listener.into()))
    }

    #[test]
    fn a_socket_is_what_its_line_says() {
        let inode = "7:9".parse().unwrap();
        for keeper in
            [Keeper::PredecessorsManager, Keeper::Predecessor, Keeper::PredecessorAndFile(inode)]
        {
            let Ok(Offered::Listening(socket)) = back(&line("tcp", keeper, "redis")) else {
                panic!("{keeper:?}")
            };
            assert_eq!((socket.keeper, &*socket.name), (keeper, "redis"));
        }
        assert!(matches!(back(&earlier_line(42)), Ok(Offered::Earlier(_, 42))));
        for nonsense in ["", "tcp", "tcp redis", "udp tidegate redis", "tcp 7 redis", "earlier x"] {
            assert!(back(nonsense).is_err(), "{nonsense:?}");
        }
    }
}
