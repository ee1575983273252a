//! Who makes a call, in words, for the record.

use tonic::Extensions;
use tonic::transport::server::UdsConnectInfo;

/// Whoever is at the other end: `uid 1000` over the Unix socket, as the kernel says, else `loopback`.
#[must_use]
pub fn actor(extensions: &Extensions) -> String {
    let peer = extensions
        .get::<UdsConnectInfo>()
        .and_then(|info| info.peer_cred);
    match peer {
        Some(peer) => format!("uid {}", peer.uid()),
        None => "loopback".to_owned(),
    }
}
