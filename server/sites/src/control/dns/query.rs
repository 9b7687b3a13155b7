//! One request to the name server and its response: over TCP, and over UDP where TCP fails.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::failed::Failed;

const TCP_TIMEOUT: Duration = Duration::from_secs(3);
/// Datagrams are lost: each is sent again once.
const UDP_TIMEOUT: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// Maximum datagram size without EDNS (RFC 1035, 4.2.1).
const MOST_DATAGRAM: usize = 512;

/// Sends a message. It may arrive twice without harm: an update states the final records, not a difference. If a
/// delayed update reverts a newer one, the next check detects it.
pub(super) async fn query(server: SocketAddr, message: &[u8]) -> Result<Vec<u8>, Failed> {
    let tcp = match timeout(TCP_TIMEOUT, by_tcp(server, message)).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("nothing within {} s", TCP_TIMEOUT.as_secs()),
    };
    if message.len() > MOST_DATAGRAM {
        return Err(Failed::Silent(format!("{server} over TCP: {tcp}; for UDP the message is too long")));
    }
    let mut udp = "no answer".to_owned();
    for within in UDP_TIMEOUT {
        match timeout(within, by_udp(server, message)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => udp = error.to_string(),
            Err(_) => {}
        }
    }
    Err(Failed::Silent(format!("{server} over TCP: {tcp}; over UDP: {udp}")))
}

async fn by_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

async fn by_udp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind::<SocketAddr>(any).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut answer).await?;
        // An answer with another id belongs to another request; the right one may follow.
        if answer[..length].get(..2) == message.get(..2) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}
