//! The hashes themselves, and the memory that they are made in.

use std::sync::{Mutex, OnceLock, PoisonError};

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use tonic::Status;

use super::{random, unhashed};

/// The memory that one hash takes, in KiB. This, [`PASSES`] and [`LANES`] are OWASP's first choice for a machine that has other work.
const MEMORY_KIB: u32 = 19 << 10;
/// How often that memory is gone through.
const PASSES: u32 = 2;
/// In how many lanes.
const LANES: u32 = 1;
/// A hash that would take more than this is not of this program, nor of a later version that is sane.
const MOST_MEMORY_KIB: u32 = 256 << 10;
/// How many bytes a hash has.
const HASH_BYTES: usize = Params::DEFAULT_OUTPUT_LEN;

/// Where hashes are made.
///
/// What a hash was made in is kept for the next one. Given back, most of it would stay with the thread that has used it, as allocators have it: a flood
/// of logins, each on another thread, took half a GiB.
#[derive(Debug, Default)]
pub(super) struct Bench {
    /// As many as hashes were made at the same time.
    memory: Mutex<Vec<Vec<Block>>>,
    /// What nobody's password hashes to: with it an unknown user takes as long as a wrong password.
    nobodys: OnceLock<String>,
}

impl Bench {
    /// What a password hashes to with a new salt, in PHC's string format.
    pub(super) fn hash(&self, password: &[u8]) -> Result<String, Status> {
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(unhashed)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let salt = Salt::new(&random::<16>()?).map_err(unhashed)?;
        let mut out = [0; HASH_BYTES];
        self.fill(&argon2, password, &salt, &mut out)?;
        let hash = PasswordHash {
            algorithm: Algorithm::Argon2id.ident(),
            version: Some(Version::V0x13.into()),
            params: ParamsString::try_from(argon2.params()).map_err(unhashed)?,
            salt: Some(salt),
            hash: Some(Output::new(&out).map_err(unhashed)?),
        };
        Ok(hash.to_string())
    }

    /// Whether this is the password of a hash; of none it is not, and that takes as long.
    pub(super) fn verify(&self, hash: Option<&str>, password: &[u8]) -> Result<bool, Status> {
        if let Some(hash) = hash.filter(|hash| !hash.is_empty()) {
            return self.is_password_of(hash, password);
        }
        if self.nobodys.get().is_none() {
            _ = self.nobodys.set(self.hash(&random::<16>()?)?);
        }
        self.is_password_of(self.nobodys.get().map_or("", |hash| hash), password).map(|_| false)
    }

    fn is_password_of(&self, hash: &str, password: &[u8]) -> Result<bool, Status> {
        let hash = PasswordHash::new(hash).map_err(unhashed)?;
        let params = Params::try_from(&hash).map_err(unhashed)?;
        if params.m_cost() > MOST_MEMORY_KIB {
            return Err(unhashed(format_args!("it would take {} KiB", params.m_cost())));
        }
        let algorithm = Algorithm::try_from(hash.algorithm.as_str()).map_err(unhashed)?;
        let version = hash.version.map_or(Ok(Version::default()), Version::try_from).map_err(unhashed)?;
        let (Some(salt), Some(wanted)) = (&hash.salt, &hash.hash) else { return Err(unhashed("it is none")) };
        let mut out = [0; Output::MAX_LENGTH];
        let out = out.get_mut(..wanted.as_ref().len()).ok_or_else(|| unhashed("it is too long"))?;
        self.fill(&Argon2::new(algorithm, version, params), password, salt, out)?;
        // In constant time.
        Ok(Output::new(out).map_err(unhashed)? == *wanted)
    }

    fn fill(&self, argon2: &Argon2<'_>, password: &[u8], salt: &[u8], out: &mut [u8]) -> Result<(), Status> {
        let blocks = argon2.params().block_count();
        let kept = || self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept().pop();
        let mut memory = before.unwrap_or_default();
        if memory.len() < blocks {
            memory = vec![Block::new(); blocks];
        }
        let filled = argon2.hash_password_into_with_memory(password, salt, out, &mut memory[..blocks]);
        // One that takes more than those of this program is rare.
        if memory.len() <= MEMORY_KIB as usize {
            kept().push(memory);
        }
        filled.map_err(unhashed)
    }
}

#[cfg(test)]
mod tests {
    use argon2::{PasswordHasher, PasswordVerifier};

    use super::*;

    /// What the library makes is the same, whatever memory it is made in.
    #[test]
    fn hashes_are_the_librarys_own() {
        let bench = Bench::default();
        for (memory, lanes) in [(64, 1), (MEMORY_KIB, 1), (200, 2), (64, 1)] {
            let params = Params::new(memory, 1, lanes, None).unwrap();
            let made = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
            let made = made.hash_password_with_salt(b"secret", b"salt of its own").unwrap().to_string();
            assert!(bench.verify(Some(&made), b"secret").unwrap(), "{made}");
            assert!(!bench.verify(Some(&made), b"secreT").unwrap(), "{made}");
        }
        let ours = PasswordHash::new(&bench.hash(b"secret").unwrap()).unwrap();
        Argon2::default().verify_password(b"secret", &ours).unwrap();
        assert!(Argon2::default().verify_password(b"secreT", &ours).is_err());
        assert_eq!(bench.memory.lock().unwrap().len(), 1, "one at a time, so one is kept");
    }
}
