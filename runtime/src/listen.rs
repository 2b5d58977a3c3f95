//! Listening sockets, alike in both programs, and an accept that survives what can go wrong.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

const BACKLOG: i32 = 1024;
/// The pause after an accept that failed for want of file descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Opens a listening socket. It belongs to no runtime yet: [`adopt`] it on the one that accepts.
///
/// With `reuse_port` any process of the same user can listen on the port too, and two of them would
/// share its connections without a word, so only [`bind_many`] should need it.
///
/// # Errors
/// When the address is taken or not ours.
pub fn bind(addr: SocketAddr, reuse_port: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Opens `count` sockets on one port, one for each of the program's threads; the kernel spreads
/// connections over them. With port 0 the first takes a free port and the others follow.
///
/// # Errors
/// When the address is taken or not ours.
pub fn bind_many(addr: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let share = count > 1;
    let first = bind(addr, share)?;
    let addr = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..count {
        listeners.push(bind(addr, share)?);
    }
    Ok(listeners)
}

/// Hands a socket to the current runtime.
///
/// # Errors
/// When the runtime cannot watch the socket.
pub fn adopt(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    TcpListener::from_std(listener)
}

/// Lets nobody knock any more: the kernel passes over requests for a connection, whose senders ask again after a second and
/// then find the port closed, or somebody else behind it. Whoever shook hands before, or is about to, is still accepted.
/// Without this, a connection that comes between the last [`accept`] and the end of the socket is reset.
///
/// # Errors
/// When the kernel does not take the filter.
pub fn hush(listener: &TcpListener) -> io::Result<()> {
    // Classic BPF over the TCP header (RFC 9293 3.1): a SYN without an ACK is dropped, all else passes.
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(0x30, 0, 0, 13),
        SockFilter::new(0x54, 0, 0, 0x12),
        SockFilter::new(0x15, 0, 1, 0x02),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ])
}

/// The next connection, with `TCP_NODELAY` set. Errors of one connection are skipped; errors of the
/// system, such as a lack of file descriptors, are waited out. May be dropped and called again.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a new connection is gone already");
                    continue;
                }
                return (stream, peer);
            }
            Err(error) if is_of_one_connection(&error) => {
                tracing::debug!(%error, "a connection was lost before it was accepted");
            }
            Err(error) => {
                if !told {
                    tracing::warn!(%error, "cannot accept connections for now; is the limit of open files too low?");
                    told = true;
                }
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests connect to what they have started")]
mod tests {
    use super::*;

    const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[tokio::test]
    async fn several_listeners_share_one_port_the_system_chose() {
        let listeners = bind_many(LOCAL, 3).unwrap();
        let addrs: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        assert_ne!(addrs[0].port(), 0);
        assert!(addrs.iter().all(|addr| *addr == addrs[0]), "{addrs:?}");

        let (sender, mut receiver) = tokio::sync::mpsc::channel(8);
        for listener in listeners {
            let listener = adopt(listener).unwrap();
            let sender = sender.clone();
            crate::task::spawn("accept", async move {
                loop {
                    let (_, peer) = accept(&listener).await;
                    sender.send(peer).await.unwrap();
                }
            });
        }
        for _ in 0..8 {
            let stream = TcpStream::connect(addrs[0]).await.unwrap();
            assert_eq!(receiver.recv().await.unwrap(), stream.local_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn who_knocked_before_is_let_in_and_nobody_after() {
        let listener = adopt(bind(LOCAL, false).unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let before = TcpStream::connect(addr).await.unwrap();
        hush(&listener).unwrap();
        let after = crate::task::spawn("late", TcpStream::connect(addr));
        assert_eq!(accept(&listener).await.1, before.local_addr().unwrap());
        let other = tokio::time::timeout(Duration::from_millis(200), accept(&listener)).await;
        assert!(other.is_err() && !after.is_finished());
        drop(listener);
        // It asks again after a second, and nothing of it is lost.
        let refused = tokio::time::timeout(Duration::from_secs(10), after).await.unwrap().unwrap();
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    /// Runs itself again in a process that may open few files, since a limit is one a process.
    #[tokio::test]
    async fn accepting_survives_a_lack_of_file_descriptors() {
        if crate::process::max_fds().unwrap() > 64 {
            let command = "ulimit -n 48; exec \"$0\" --exact listen::tests::accepting_survives_a_lack_of_file_descriptors";
            let mut again = tokio::process::Command::new("sh");
            again.arg("-c").arg(command).arg(std::env::current_exe().unwrap());
            let output = again.output().await.unwrap();
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && told.contains("1 passed"), "{told}");
            return;
        }
        let listener = adopt(bind(LOCAL, false).unwrap()).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut ballast = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            ballast.push(file);
        }
        let waiting = tokio::time::timeout(BACK_OFF * 3, accept(&listener)).await;
        assert!(waiting.is_err(), "there was a descriptor left");
        drop(ballast);
        assert_eq!(accept(&listener).await.1, client.local_addr().unwrap());
    }

    #[test]
    fn a_port_that_is_not_shared_is_taken_once() {
        let first = bind(LOCAL, false).unwrap();
        let error = bind(first.local_addr().unwrap(), false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
