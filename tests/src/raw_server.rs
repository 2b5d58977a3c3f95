//! A server that does with each connection exactly what a test says, byte by byte: the faults that an HTTP library would
//! not let one commit.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use waffles_runtime::task;

/// A running server. It ends, with all its connections, when it is dropped.
#[derive(Debug)]
pub struct RawServer {
    addr: SocketAddr,
    requests: Arc<AtomicUsize>,
    stop: CancellationToken,
}

/// One connection of it.
#[derive(Debug)]
pub struct RawConnection {
    pub socket: TcpStream,
    /// Counted from 1.
    pub number: usize,
    requests: Arc<AtomicUsize>,
    buffer: Vec<u8>,
}

impl RawServer {
    /// Starts one on a free port.
    pub async fn start<F, Fut>(serve: F) -> Self
    where
        F: Fn(RawConnection) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there are free ports");
        let addr = listener.local_addr().expect("it is bound");
        let requests = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let server = Self { addr, requests: Arc::clone(&requests), stop: stop.clone() };
        task::spawn("raw server", async move {
            let mut number = 0;
            while let Some(Ok((socket, _))) = stop.run_until_cancelled(listener.accept()).await {
                number += 1;
                let requests = Arc::clone(&requests);
                let served = serve(RawConnection { socket, number, requests, buffer: Vec::new() });
                let stop = stop.clone();
                task::spawn("raw connection", async move {
                    stop.run_until_cancelled(served).await;
                });
            }
        });
        server
    }

    /// Its MCP endpoint.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.addr)
    }

    /// How many whole requests have arrived.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl RawConnection {
    /// The next head, and the body of as many bytes as it announces; none at the end of the connection.
    pub async fn request(&mut self) -> Option<(String, Vec<u8>)> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length:"))
                    .and_then(|value| value.trim().parse::<usize>().ok())
                    .unwrap_or(0);
                if self.buffer.len() >= end + 4 + length {
                    let rest = self.buffer.split_off(end + 4 + length);
                    let body = self.buffer.split_off(end + 4);
                    self.buffer = rest;
                    self.requests.fetch_add(1, Ordering::SeqCst);
                    return Some((head, body));
                }
            }
            if self.socket.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// Waits for the first bytes only.
    pub async fn touched(&mut self) -> bool {
        self.socket.read_buf(&mut self.buffer).await.is_ok_and(|read| read > 0)
    }

    /// Writes bytes.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.socket.write_all(bytes.as_ref()).await.is_ok()
    }

    /// Writes a whole answer with a JSON body.
    pub async fn json(&mut self, body: &str) -> bool {
        let length = body.len();
        self.write(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
        .await
    }

    /// Breaks the connection with a reset instead of an end.
    pub fn reset(self) {
        let socket = socket2::SockRef::from(&self.socket);
        drop(socket.set_linger(Some(std::time::Duration::ZERO)));
    }

    /// Waits until the other side has closed.
    pub async fn closed(&mut self) {
        let mut scrap = [0; 4096];
        while self.socket.read(&mut scrap).await.is_ok_and(|read| read > 0) {}
    }
}
