//! As much of HTTP/1.1 as a GET of a short body needs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// The longest body that is read, in bytes.
const BODY_MAX: usize = 1 << 20;

/// A connection that requests are sent over.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects; `timeout` holds for this and for each later answer.
    pub(crate) fn open(address: SocketAddr, timeout: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout).context("connect")?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The connection's own address.
    pub(crate) fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.get_ref().local_addr()?)
    }

    /// The address that getpeername shows.
    pub(crate) fn peer(&self) -> Result<SocketAddr> {
        Ok(self.stream.get_ref().peer_addr()?)
    }

    /// Gets `/` and returns the body without spaces around it.
    pub(crate) fn get(&mut self) -> Result<String> {
        let request = b"GET / HTTP/1.1\r\nHost: probe\r\n\r\n";
        self.stream.get_mut().write_all(request).context("send")?;
        let status = self.line().context("answer")?;
        ensure!(status.starts_with("HTTP/1.1 200"), "status line is {status:?}");
        let mut length = 0;
        loop {
            let header = self.line().context("header")?.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().context("content-length")?;
            }
        }
        ensure!(length <= BODY_MAX, "body has {length} bytes");
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).context("body")?;
        Ok(String::from_utf8_lossy(&body).trim().to_owned())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let length = self.stream.read_line(&mut line)?;
        ensure!(length > 0, "connection closed by the peer");
        Ok(line.trim_end().to_owned())
    }
}
