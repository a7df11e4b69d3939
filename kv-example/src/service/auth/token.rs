//! Tokens: what a client gets for its password, and shows with each request.
//!
//! A token says whose it is and how long it holds, and is signed with a key that is a part of the replicated state (HMAC-SHA-256). So any node of the
//! cluster can tell whether it is good, also one that was started since, and nobody has to keep a list. It is void when its user has another
//! password, or is gone; when authentication was off since, for then the key is another; and when it has expired by the clock of the node that is asked, or is
//! so far from it that no clock that is about right can have made it. How long it was to hold it says itself, so that nodes which are told different times
//! (`--auth-token-ttl`) take each other's.
//!
//! A session's proof is made in the same way: it shows that a session was opened by this user, so that nobody can ask for another's answers.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tonic::metadata::MetadataMap;

/// The metadata keys by which etcd's clients send a token.
const KEYS: [&str; 2] = ["token", "authorization"];
/// The first byte of what is signed: of which kind it is, and in which format.
const TOKEN: u8 = 3;
const SESSION: u8 = 2;
const MAC_BYTES: usize = 32;
/// The kind, and four numbers.
const HEAD_BYTES: usize = 33;
/// A token with the longest name there can be is shorter.
const MAX_TEXT: usize = 2048;
/// How much of a proof is sent.
const PROOF_BYTES: usize = 16;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Claims {
    pub(in super::super) user: String,
    /// The revision at which the user got the password by which the token was had.
    pub(in super::super) since: u64,
    /// The revision of the users and roles when it was made: a node that knows of none so new is behind.
    pub(in super::super) revision: u64,
    /// Until when it holds, in milliseconds since 1970.
    pub(in super::super) expires_ms: u64,
    /// For how long it was made, in milliseconds.
    pub(in super::super) ttl_ms: u64,
}

/// A token as it came: whether it is good is to be asked.
#[derive(Clone, Debug)]
pub(in super::super) struct Token {
    /// What it says, if it is good.
    pub(in super::super) claims: Claims,
    signed: Vec<u8>,
    mac: [u8; MAC_BYTES],
}

fn mac(key: &[u8], signed: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    mac.update(signed);
    Some(mac)
}

impl Claims {
    /// The token that says this.
    pub(in super::super) fn sign(&self, key: &[u8]) -> Option<String> {
        let numbers = [self.since, self.revision, self.expires_ms, self.ttl_ms].map(u64::to_be_bytes).concat();
        let mut bytes = [&[TOKEN], &numbers[..], self.user.as_bytes()].concat();
        let mac = mac(key, &bytes)?.finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl Token {
    /// Reads a token; none where it can't be one.
    pub(in super::super) fn read(text: &str) -> Option<Self> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let mut signed = URL_SAFE_NO_PAD.decode(text).ok()?;
        let mac = *signed.last_chunk()?;
        signed.truncate(signed.len() - MAC_BYTES);
        let (head, user) = signed.split_at_checked(HEAD_BYTES)?;
        let (kind, numbers) = head.split_first()?;
        if *kind != TOKEN {
            return None;
        }
        let (numbers, _) = numbers.as_chunks();
        let [since, revision, expires_ms, ttl_ms] = *numbers else { return None };
        let [since, revision, expires_ms, ttl_ms] = [since, revision, expires_ms, ttl_ms].map(u64::from_be_bytes);
        let user = String::from_utf8(user.to_vec()).ok()?;
        let claims = Claims { user, since, revision, expires_ms, ttl_ms };
        Some(Self { claims, signed, mac })
    }

    /// Whether it was signed with this key, and holds still. A node whose clock is ahead makes tokens that hold the longer: one that would hold for more
    /// than twice as long as it was made for is refused, as one is that was made by a clock so far behind.
    pub(in super::super) fn is_good(&self, key: &[u8], now_ms: u64) -> bool {
        let latest_ms = now_ms.saturating_add(self.claims.ttl_ms.saturating_mul(2));
        // In constant time, as far as the signature is concerned.
        now_ms < self.claims.expires_ms
            && self.claims.expires_ms <= latest_ms
            && mac(key, &self.signed).is_some_and(|mac| mac.verify_slice(&self.mac).is_ok())
    }
}

/// What shows that this user has opened this session.
pub(in super::super) fn proof(key: &[u8], session: u64, user: &str) -> Option<String> {
    use std::fmt::Write;
    let mac = session_mac(key, session, user)?.finalize().into_bytes();
    let mut text = String::new();
    for byte in mac.iter().take(PROOF_BYTES) {
        write!(text, "{byte:02x}").ok()?;
    }
    Some(text)
}

/// Whether it does.
pub(in super::super) fn is_proof(text: &str, key: &[u8], session: u64, user: &str) -> bool {
    let digits = text.as_bytes();
    let value = |digit: u8| char::from(digit).to_digit(16).filter(|_| !digit.is_ascii_uppercase());
    let bytes: Option<Vec<u8>> = digits
        .chunks(2)
        .map(|pair| match pair {
            // At most 255.
            [high, low] => Some((value(*high)? << 4 | value(*low)?) as u8),
            _ => None,
        })
        .collect();
    let Some(bytes) = bytes.filter(|bytes| bytes.len() == PROOF_BYTES) else { return false };
    session_mac(key, session, user).is_some_and(|mac| mac.verify_truncated_left(&bytes).is_ok())
}

fn session_mac(key: &[u8], session: u64, user: &str) -> Option<Hmac<Sha256>> {
    mac(key, &[&[SESSION], &session.to_be_bytes()[..], user.as_bytes()].concat())
}

/// The token of a request, if it has one.
pub(in super::super) fn of(metadata: &MetadataMap) -> Option<&str> {
    // What is no text is no token of ours.
    KEYS.iter().find_map(|key| metadata.get(*key)).map(|value| value.to_str().unwrap_or(""))
}

/// Gives a request that is passed on the token of the one that came.
pub(in super::super) fn pass_on<T>(from: &MetadataMap, mut request: tonic::Request<T>) -> tonic::Request<T> {
    for key in KEYS {
        if let Some(token) = from.get(key) {
            request.metadata_mut().insert(key, token.clone());
        }
    }
    request
}

/// For fuzzing: what is read as a token is one, and is read again from what it says.
#[cfg(feature = "testing")]
pub(crate) fn read_again(text: &str, key: &[u8]) {
    if let Some(token) = Token::read(text) {
        let again = token.claims.sign(key).and_then(|text| Token::read(&text));
        _ = (is_proof(text, key, 1, &token.claims.user), token.is_good(key, u64::MAX));
        assert!(again.is_some_and(|again| again.claims == token.claims), "a token changes on its way");
        assert!(!token.is_good(key, 0) || token.claims.sign(key).as_deref() == Some(text), "two texts for one token");
    }
}

/// For fuzzing: a token with these numbers.
#[cfg(feature = "testing")]
pub(crate) fn sample(user: &str, [since, revision, expires_ms, ttl_ms]: [u64; 4], key: &[u8]) -> String {
    Claims { user: user.into(), since, revision, expires_ms, ttl_ms }.sign(key).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn claims() -> Claims {
        Claims { user: "ann/ä".into(), since: 3, revision: u64::MAX, expires_ms: 1000, ttl_ms: 1000 }
    }

    #[test]
    fn a_token_holds_until_it_expires_and_with_its_key() {
        let token = Token::read(&claims().sign(&KEY).unwrap()).unwrap();
        assert_eq!(token.claims, claims());
        assert!(token.is_good(&KEY, 999) && !token.is_good(&KEY, 1000) && !token.is_good(&[8; 32], 0));
    }

    #[test]
    fn a_token_of_a_clock_that_is_far_ahead_is_none() {
        let now = 1_900_000_000_000;
        let is_good = |expires_ms, ttl_ms, now_ms| {
            let text = Claims { expires_ms, ttl_ms, ..claims() }.sign(&KEY).unwrap();
            Token::read(&text).unwrap().is_good(&KEY, now_ms)
        };
        // Made here, by a clock that is ahead by as much as one may be behind, and by others.
        assert!(is_good(now + 1000, 1000, now) && is_good(now + 2000, 1000, now));
        assert!(!is_good(now + 2001, 1000, now) && !is_good(u64::MAX, 1000, now));
        assert!(is_good(now + 2001, 1001, now), "it was made for longer");
        assert!(is_good(u64::MAX, u64::MAX, now) && !is_good(now + 1, 1000, u64::MAX));
    }

    #[test]
    fn a_token_that_was_changed_is_none() {
        let text = claims().sign(&KEY).unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let token = Token::read(&URL_SAFE_NO_PAD.encode(changed));
            assert!(token.is_none_or(|token| !token.is_good(&KEY, 0)), "bit {bit}");
        }
        for len in 0..text.len() {
            assert!(Token::read(&text[..len]).is_none_or(|token| !token.is_good(&KEY, 0)), "cut at {len}");
        }
        let long = Claims { user: "u".repeat(1024), ..claims() }.sign(&KEY).unwrap();
        assert!(Token::read(&long).is_some() && Token::read(&"A".repeat(4000)).is_none());
    }

    #[test]
    fn a_proof_is_of_one_session_one_user_and_one_key() {
        let proof = proof(&KEY, 9, "ann").unwrap();
        assert_eq!(proof.len(), 2 * PROOF_BYTES);
        assert!(is_proof(&proof, &KEY, 9, "ann"));
        assert!(
            !is_proof(&proof, &KEY, 8, "ann")
                && !is_proof(&proof, &KEY, 9, "bob")
                && !is_proof(&proof, &[8; 32], 9, "ann")
        );
        let odd = &proof[1..];
        for wrong in ["", "00", odd, &proof.to_uppercase(), &format!("{proof}00"), &"ä".repeat(PROOF_BYTES)] {
            assert!(!is_proof(wrong, &KEY, 9, "ann"), "{wrong}");
        }
        // A token is no proof, and a proof no token.
        assert!(Token::read(&proof).is_none());
    }
}
