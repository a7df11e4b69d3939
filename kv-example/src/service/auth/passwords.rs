//! Passwords: hashed with argon2id, away from the threads that serve, a few at a time.
//!
//! What a password hashes to is made by the node that takes the request, and is what the log holds; the password goes no further.
//!
//! A hash is work that anybody may ask for, so whoever floods a node with logins must not keep the others out. Only so many wait at a time, of which
//! one address may be a part, and one name; and root, who may have to end the flood, has places and a turn of its own.
//! Whoever can name root can fill these too, so there are others again for what root asks for who is in already.

mod bench;
mod places;

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::Status;

use crate::store::auth::ROOT;
use bench::Bench;
use places::Places;

/// How many hashes are made at a time, so that they take so many times what one does (19 MiB), and as many cores, at most.
const AT_A_TIME: usize = 2;
/// How many more for logins of root, and how many for what root asks for.
const AT_A_TIME_FOR_ROOT: usize = 1;
/// How many more may wait for their turn: a flood of logins is refused beyond that.
const MOST_WAITING: usize = 64;
/// How many of root's.
const MOST_WAITING_FOR_ROOT: usize = 16;
/// How many of those of others may be of one name.
const MOST_OF_NAME: usize = 16;
/// The longest password, in bytes.
const MAX_PASSWORD_BYTES: usize = 1024;
/// Who logs in, or changes a password.
#[derive(Clone, Debug)]
pub(in super::super) struct Asker {
    /// From where.
    pub(in super::super) from: Option<IpAddr>,
    /// As whom.
    pub(in super::super) name: String,
}

/// Where passwords are hashed.
#[derive(Clone, Debug)]
pub(in super::super) struct Passwords {
    root: Queue,
    others: Queue,
    /// Not for logins: for new passwords.
    new: Queue,
    bench: Arc<Bench>,
}

/// Those who wait, and those who are worked for.
#[derive(Clone, Debug)]
struct Queue {
    turn: Arc<Semaphore>,
    places: Places,
}

impl Queue {
    fn new(at_a_time: usize, waiting: usize, of_name: usize, of_address: impl Fn(usize) -> usize) -> Self {
        let most = at_a_time + waiting;
        Self { turn: Arc::new(Semaphore::new(at_a_time)), places: Places::new(most, of_address(most), of_name) }
    }
}

impl Passwords {
    /// `of_address` says how much one address may have of so many places.
    pub(in super::super) fn new(of_address: impl Fn(usize) -> usize) -> Self {
        let all_of_root = AT_A_TIME_FOR_ROOT + MOST_WAITING_FOR_ROOT;
        Self {
            root: Queue::new(AT_A_TIME_FOR_ROOT, MOST_WAITING_FOR_ROOT, all_of_root, &of_address),
            new: Queue::new(AT_A_TIME_FOR_ROOT, MOST_WAITING_FOR_ROOT, all_of_root, &of_address),
            others: Queue::new(AT_A_TIME, MOST_WAITING, MOST_OF_NAME, of_address),
            bench: Arc::default(),
        }
    }

    /// What a new password hashes to, with a salt of its own, in PHC's string format. Only who may change passwords is to get here.
    pub(in super::super) async fn hash(&self, asker: Asker, password: String) -> Result<String, Status> {
        check(&password)?;
        self.work(&self.new, asker, move |bench| bench.hash(password.as_bytes())).await?
    }

    /// Whether this is the password of the hash; there is none for a user that there is not, or that has none.
    pub(in super::super) async fn verify(
        &self,
        asker: Asker,
        hash: Option<String>,
        password: String,
    ) -> Result<bool, Status> {
        check(&password)?;
        self.run(asker, move |bench| bench.verify(hash.as_deref(), password.as_bytes())).await?
    }

    /// Works for a login.
    async fn run<T: Send + 'static>(
        &self,
        asker: Asker,
        work: impl FnOnce(&Bench) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let queue = if asker.name == ROOT { &self.root } else { &self.others };
        self.work(queue, asker, work).await
    }

    /// Waits for a turn, then works on a thread that may take long. Whoever gives up while it works keeps the turn until it is done.
    async fn work<T: Send + 'static>(
        &self,
        queue: &Queue,
        asker: Asker,
        work: impl FnOnce(&Bench) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let place = queue.places.take(asker)?;
        let turn = Arc::clone(&queue.turn).acquire_owned().await.map_err(|_| unhashed("there is no turn"))?;
        let bench = Arc::clone(&self.bench);
        let done = tokio::task::spawn_blocking(move || {
            let _held = (place, turn);
            work(&bench)
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

/// Refuses what is too long to be looked at.
pub(in super::super) fn check(password: &str) -> Result<(), Status> {
    if password.len() <= MAX_PASSWORD_BYTES {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("etcdserver: a password has at most {MAX_PASSWORD_BYTES} bytes")))
}

fn unhashed(reason: impl std::fmt::Display) -> Status {
    Status::internal(format!("etcdserver: a password can't be hashed: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passwords() -> Passwords {
        Passwords::new(|all| all / 2)
    }

    fn asker(from: u8, name: &str) -> Asker {
        Asker { from: Some([127, 0, 0, from].into()), name: name.into() }
    }

    #[tokio::test]
    async fn a_password_opens_what_was_made_of_it_and_no_other() {
        let passwords = passwords();
        let ann = || asker(1, "ann");
        let hash = passwords.hash(ann(), "secret".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(!hash.contains("secret"));
        assert_ne!(passwords.hash(ann(), "secret".into()).await.unwrap(), hash, "each has its own salt");
        assert!(passwords.verify(ann(), Some(hash.clone()), "secret".into()).await.unwrap());
        for wrong in ["", "Secret", "secret "] {
            assert!(!passwords.verify(ann(), Some(hash.clone()), wrong.into()).await.unwrap(), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn nobody_and_no_password_are_opened_by_nothing() {
        let passwords = passwords();
        for hash in [None, Some(String::new())] {
            assert!(!passwords.verify(asker(1, "ann"), hash, String::new()).await.unwrap());
        }
    }

    #[tokio::test]
    async fn strange_hashes_and_long_passwords_are_refused() {
        let passwords = passwords();
        let ann = || asker(1, "ann");
        let salt = "c2FsdHNhbHRzYWx0";
        let huge = format!("$argon2id$v=19$m=4000000,t=1,p=1${salt}$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        let refused = passwords.verify(ann(), Some(huge), "x".into()).await.unwrap_err();
        assert!(refused.message().contains("4000000 KiB"), "{}", refused.message());
        assert!(passwords.verify(ann(), Some("nonsense".into()), "x".into()).await.is_err());
        let long = "x".repeat(MAX_PASSWORD_BYTES + 1);
        assert_eq!(passwords.hash(ann(), long.clone()).await.unwrap_err().code(), tonic::Code::InvalidArgument);
        assert_eq!(passwords.verify(ann(), None, long).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }

    /// However many ask at once, only so many are worked on, so many wait, and the others are told at once.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_flood_takes_no_more_memory_than_a_few() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let passwords = passwords();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let asked = (0..300u16).map(|n| {
            let (passwords, running, most) = (passwords.clone(), running.clone(), most.clone());
            tokio::spawn(async move {
                let work = move |_: &Bench| {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    running.fetch_sub(1, Ordering::SeqCst);
                };
                passwords.run(asker((n % 100) as u8, &n.to_string()), work).await
            })
        });
        let mut refused = 0;
        for outcome in asked.collect::<Vec<_>>() {
            refused += usize::from(outcome.await.unwrap().is_err());
        }
        assert_eq!(most.load(Ordering::SeqCst), AT_A_TIME);
        assert!((1..=300 - AT_A_TIME - MOST_WAITING).contains(&refused), "{refused}");
        // And then there is room again.
        passwords.run(asker(1, "ann"), |_| ()).await.unwrap();
    }

    /// Whoever knows no password can still keep root from logging in, but not from acting who is in.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn root_can_change_passwords_while_many_addresses_log_in_as_root() {
        let passwords = passwords();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let ended = Arc::new(std::sync::Mutex::new(ended));
        let mut logins = Vec::new();
        for n in 0..AT_A_TIME_FOR_ROOT + MOST_WAITING_FOR_ROOT {
            let (ended, passwords) = (ended.clone(), passwords.clone());
            let mut login = Box::pin(async move {
                passwords.run(asker(n as u8, "root"), move |_| _ = ended.lock().unwrap().recv()).await
            });
            assert!(futures_util::poll!(&mut login).is_pending());
            logins.push(tokio::spawn(login));
        }
        let full = passwords.run(asker(99, "root"), |_| ()).await.unwrap_err();
        assert_eq!(full.code(), tonic::Code::ResourceExhausted);
        let changed = tokio::time::timeout(
            std::time::Duration::from_secs(20),
            passwords.hash(asker(99, "root"), "another".into()),
        );
        changed.await.expect("it waits for the flood").unwrap();
        drop(end);
        for login in logins {
            login.await.unwrap().unwrap();
        }
    }

    /// Who comes as the one of this number.
    type Flood = fn(u16) -> Asker;

    /// Each kind of flood, which lasts until the others are through.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_floods_keeps_out_nobody_but_himself() {
        let floods: [(Flood, [Asker; 2]); 4] = [
            // From one address, as everybody, and as ann.
            (|n| asker(1, &n.to_string()), [asker(2, "ann"), asker(1, "root")]),
            (|_| asker(1, "ann"), [asker(1, "bob"), asker(2, "root")]),
            // As ann, from everywhere.
            (|n| asker((n % 200) as u8, "ann"), [asker(9, "bob"), asker(9, "root")]),
            // As root.
            (|_| asker(1, "root"), [asker(2, "root"), asker(1, "ann")]),
        ];
        for (n, (flood, others)) in floods.into_iter().enumerate() {
            let passwords = passwords();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let ended = Arc::new(std::sync::Mutex::new(ended));
            let mut waiting = Vec::new();
            let mut refused = 0;
            for n in 0..300 {
                let (ended, asker) = (ended.clone(), flood(n));
                let mut run = Box::pin({
                    let passwords = passwords.clone();
                    async move { passwords.run(asker, move |_| _ = ended.lock().unwrap().recv()).await }
                });
                // Those that have a place wait.
                match futures_util::poll!(&mut run) {
                    std::task::Poll::Ready(outcome) => {
                        let status = outcome.unwrap_err();
                        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
                        refused += 1;
                    }
                    std::task::Poll::Pending => waiting.push(tokio::spawn(run)),
                }
            }
            assert!(refused >= 300 - (AT_A_TIME + MOST_WAITING) / 2, "flood {n}: {refused}");
            // The first has its place among those who wait, and the second waits for nobody: it is of the other queue.
            let [first, second] = others;
            let mut first = Box::pin(passwords.run(first, |_| ()));
            let at_once = futures_util::poll!(&mut first);
            assert!(at_once.is_pending(), "flood {n}: {at_once:?}");
            passwords.run(second, |_| ()).await.unwrap();
            drop(end);
            first.await.unwrap();
            for one in waiting {
                one.await.unwrap().unwrap();
            }
        }
    }
}
