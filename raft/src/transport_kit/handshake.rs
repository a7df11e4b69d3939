//! What a receiver asks of whoever connects.

use crate::message::Hello;
use crate::runtime::Inbox;
use crate::types::Peer;

/// Host names have at most 253 bytes. Whoever claims a longer address is refused.
pub const MAX_ADDRESS_BYTES: usize = 300;

/// The sender of a hello, if this receiver is whom it wants, and speaks the same version of the transport's protocol: [`Inbox::greet`] for
/// transports with versions of their own, which trust in nothing that they are told.
///
/// # Errors
/// Why it is refused: both sides should log it.
pub fn greet(inbox: &Inbox, version: u32, hello: Hello) -> Result<Peer, String> {
    if hello.version != version {
        return Err(format!(
            "this node speaks version {version} of the protocol, not {}: upgrade the older one",
            hello.version
        ));
    }
    // The transport's version stands for that of the messages.
    let hello = Hello { version: Hello::VERSION, ..hello };
    inbox.greet(&hello).map_err(|refusal| refusal.to_string())?;
    let Peer { id, address } = &hello.from;
    if id.0 == 0 || address.is_empty() || address.len() > MAX_ADDRESS_BYTES {
        return Err("the hello names no node, or no address that could be one".into());
    }
    Ok(hello.from)
}
