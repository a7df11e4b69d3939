//! Passwords: hashed with argon2id, away from the threads that serve, a few at a time.
//!
//! What a password hashes to is made by the node that takes the request, and is what the log holds; the password goes no further.

use std::sync::{Arc, OnceLock};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;
use tonic::Status;

use super::super::refused::too_many_logins;

/// The memory that one hash takes, in KiB. This, [`PASSES`] and [`LANES`] are OWASP's first choice for a machine that has other work.
const MEMORY_KIB: u32 = 19 << 10;
/// How often that memory is gone through.
const PASSES: u32 = 2;
/// In how many lanes.
const LANES: u32 = 1;
/// How many hashes are made at a time, so that they take twice [`MEMORY_KIB`], and two cores, at most.
const AT_A_TIME: usize = 2;
/// How many more may wait for their turn: a flood of logins is refused beyond that.
const MOST_WAITING: usize = 64;
/// The longest password, in bytes.
const MAX_PASSWORD_BYTES: usize = 1024;
/// A hash that would take more than this is not of this program, nor of a later version that is sane.
const MOST_MEMORY_KIB: u32 = 256 << 10;

/// Where passwords are hashed.
#[derive(Clone, Debug)]
pub(in super::super) struct Passwords {
    turn: Arc<Semaphore>,
    room: Arc<Semaphore>,
    /// What nobody's password hashes to: with it an unknown user takes as long as a wrong password.
    nobodys: Arc<OnceLock<String>>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(AT_A_TIME)),
            room: Arc::new(Semaphore::new(AT_A_TIME + MOST_WAITING)),
            nobodys: Arc::default(),
        }
    }
}

impl Passwords {
    /// What a new password hashes to, with a salt of its own, in PHC's string format.
    pub(in super::super) async fn hash(&self, password: String) -> Result<String, Status> {
        check(&password)?;
        self.run(move |_| hash(password.as_bytes())).await?
    }

    /// Whether this is the password of the hash; there is none for a user that there is not, or that has none.
    pub(in super::super) async fn verify(&self, hash: Option<String>, password: String) -> Result<bool, Status> {
        check(&password)?;
        self.run(move |nobodys| match hash.filter(|hash| !hash.is_empty()) {
            Some(hash) => verify(&hash, password.as_bytes()),
            None => {
                if nobodys.get().is_none() {
                    _ = nobodys.set(self::hash(&random::<16>()?)?);
                }
                verify(nobodys.get().map_or("", |hash| hash), password.as_bytes()).map(|_| false)
            }
        })
        .await?
    }

    /// Waits for a turn, then works on a thread that may take long. Whoever gives up while it works keeps the turn until it is done.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&OnceLock<String>) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| too_many_logins())?;
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|_| unhashed("there is no turn"))?;
        let nobodys = Arc::clone(&self.nobodys);
        let done = tokio::task::spawn_blocking(move || {
            let _held = (room, turn);
            work(&nobodys)
        });
        done.await.map_err(unhashed)
    }
}

/// As many bytes as nobody can guess.
pub(in super::super) fn random<const N: usize>() -> Result<[u8; N], Status> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Status::internal(format!("etcdserver: the system gives no random numbers: {error}")))?;
    Ok(bytes)
}

fn check(password: &str) -> Result<(), Status> {
    if password.len() <= MAX_PASSWORD_BYTES {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("etcdserver: a password has at most {MAX_PASSWORD_BYTES} bytes")))
}

fn unhashed(reason: impl std::fmt::Display) -> Status {
    Status::internal(format!("etcdserver: a password can't be hashed: {reason}"))
}

fn hash(password: &[u8]) -> Result<String, Status> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(unhashed)?;
    let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = hasher.hash_password_with_salt(password, &random::<16>()?).map_err(unhashed)?;
    Ok(hash.to_string())
}

fn verify(hash: &str, password: &[u8]) -> Result<bool, Status> {
    let hash = PasswordHash::new(hash).map_err(unhashed)?;
    let params = Params::try_from(&hash).map_err(unhashed)?;
    if params.m_cost() > MOST_MEMORY_KIB {
        return Err(unhashed(format_args!("it would take {} KiB", params.m_cost())));
    }
    Ok(Argon2::default().verify_password(password, &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_opens_what_was_made_of_it_and_no_other() {
        let passwords = Passwords::default();
        let hash = passwords.hash("secret".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(!hash.contains("secret"));
        assert_ne!(passwords.hash("secret".into()).await.unwrap(), hash, "each has its own salt");
        assert!(passwords.verify(Some(hash.clone()), "secret".into()).await.unwrap());
        for wrong in ["", "Secret", "secret "] {
            assert!(!passwords.verify(Some(hash.clone()), wrong.into()).await.unwrap(), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn nobody_and_no_password_are_opened_by_nothing() {
        let passwords = Passwords::default();
        for hash in [None, Some(String::new())] {
            assert!(!passwords.verify(hash, String::new()).await.unwrap());
        }
    }

    #[tokio::test]
    async fn strange_hashes_and_long_passwords_are_refused() {
        let passwords = Passwords::default();
        let salt = "c2FsdHNhbHRzYWx0";
        let huge = format!("$argon2id$v=19$m=4000000,t=1,p=1${salt}$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        let refused = passwords.verify(Some(huge), "x".into()).await.unwrap_err();
        assert!(refused.message().contains("4000000 KiB"), "{}", refused.message());
        assert!(passwords.verify(Some("nonsense".into()), "x".into()).await.is_err());
        let long = "x".repeat(MAX_PASSWORD_BYTES + 1);
        assert_eq!(passwords.hash(long.clone()).await.unwrap_err().code(), tonic::Code::InvalidArgument);
        assert_eq!(passwords.verify(None, long).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }

    /// However many ask at once, only so many are worked on, so many wait, and the others are told at once.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_flood_takes_no_more_memory_than_a_few() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let passwords = Passwords::default();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let asked = (0..300).map(|_| {
            let (passwords, running, most) = (passwords.clone(), running.clone(), most.clone());
            tokio::spawn(async move {
                let work = move |_: &OnceLock<String>| {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    running.fetch_sub(1, Ordering::SeqCst);
                };
                passwords.run(work).await
            })
        });
        let mut refused = 0;
        for outcome in asked.collect::<Vec<_>>() {
            refused += usize::from(outcome.await.unwrap().is_err());
        }
        assert_eq!(most.load(Ordering::SeqCst), AT_A_TIME);
        assert!((1..=300 - AT_A_TIME - MOST_WAITING).contains(&refused), "{refused}");
        // And then there is room again.
        passwords.run(|_| ()).await.unwrap();
    }
}
