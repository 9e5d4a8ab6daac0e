//! Servers that tell their clients, and the test, which address they saw.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::node::Node;

/// How often a server looks whether it should stop.
const PULSE: Duration = Duration::from_millis(20);

/// A server on a thread of this process; its sockets are in the node's namespace. Dropping it stops it.
pub struct Server {
    seen: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// An HTTP server: see [`answer`].
    pub fn http(node: &Node, address: SocketAddr) -> Result<Self> {
        let listener = node.enter(|| TcpListener::bind(address))?;
        let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        Ok(Self::start(move |seen, stop| {
            while !stop.load(Ordering::Relaxed) {
                let Ok((stream, peer)) = listener.accept() else {
                    thread::sleep(PULSE);
                    continue;
                };
                record(&seen, peer);
                thread::spawn(move || {
                    let _gone = stream.set_nonblocking(false).and_then(|()| answer(stream, peer));
                });
            }
        }))
    }

    /// A UDP server that answers each datagram with the address it came from.
    pub fn udp(node: &Node, address: SocketAddr) -> Result<Self> {
        let socket = node.enter(|| UdpSocket::bind(address))?;
        let socket = socket.with_context(|| format!("cannot listen on {address}"))?;
        socket.set_read_timeout(Some(PULSE))?;
        Ok(Self::start(move |seen, stop| {
            let mut datagram = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = socket.recv_from(&mut datagram) {
                    record(&seen, peer);
                    let _lost = socket.send_to(peer.to_string().as_bytes(), peer);
                }
            }
        }))
    }

    /// Addresses of the clients so far, in order.
    pub fn seen(&self) -> Vec<SocketAddr> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn start(work: impl FnOnce(Arc<Mutex<Vec<SocketAddr>>>, Arc<AtomicBool>) + Send + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || work(seen, stop)
        });
        Self { seen, stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// Serves HTTP for ever and writes `ADDRESS PATH` a line to `log` for each request.
pub fn serve_http(listener: &TcpListener, log: impl io::Write + Send) -> Result<()> {
    let log = Mutex::new(log);
    thread::scope(|scope| {
        loop {
            let (stream, peer) = listener.accept().context("cannot accept")?;
            let log = &log;
            scope.spawn(move || {
                if let Ok(path) = answer(stream, peer) {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    let _full = writeln!(log, "{peer} {path}").and_then(|()| log.flush());
                }
            });
        }
    })
}

/// Answers one HTTP request and returns its path. `/N` gets N bytes, anything else the client's address as
/// the server sees it.
fn answer(stream: TcpStream, peer: SocketAddr) -> io::Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = request.split_whitespace().nth(1).unwrap_or("/").to_owned();
    let mut stream = reader.into_inner();
    let body = match path.trim_start_matches('/').parse::<usize>() {
        Ok(size) => (0..size).map(|at| b'a' + (at % 26) as u8).collect(),
        Err(_) => format!("{peer}\n").into_bytes(),
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)?;
    Ok(path)
}

fn record(seen: &Mutex<Vec<SocketAddr>>, peer: SocketAddr) {
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
}
