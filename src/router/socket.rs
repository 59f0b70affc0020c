//! What every socket of the router is set to, and how a connection is cut off.
//!
//! A peer that vanishes without a word is noticed within about [`USER_TIMEOUT`], whether there is something to send
//! (TCP user timeout) or not (keepalive).

use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 3;
/// Sent and not acknowledged for so long = gone.
const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a client has to read its last message before the connection is closed for good.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Sets up a fresh connection. What a platform does not know it does without.
pub fn set_up(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE);
    let _ = sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL);
    let _ = sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = sockopt::set_tcp_user_timeout(stream, u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX));
}

/// Cuts the connection off: the peer gets RST and nothing that was still on the way.
pub fn reset(stream: TcpStream) {
    let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
    drop(stream);
}

/// Sends a last message and closes. Closing while the peer still sends would destroy the message on its way, so what
/// comes is read and thrown away, for a moment.
pub async fn last_word(mut stream: TcpStream, message: &[u8]) {
    let saying = async {
        stream.write_all(message).await?;
        stream.shutdown().await?;
        let mut void = [0; 1024];
        while stream.read(&mut void).await? != 0 {}
        Ok::<(), std::io::Error>(())
    };
    let _ = timeout(LAST_WORD, saying).await;
}

/// Ends when the peer has closed; never if it has sent something instead.
pub async fn gone(stream: &TcpStream) {
    let mut byte = [0];
    match stream.peek(&mut byte).await {
        Ok(0) | Err(_) => (),
        Ok(_) => std::future::pending().await,
    }
}
