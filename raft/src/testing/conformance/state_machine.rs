//! What every [`StateMachine`] must do.
//!
//! Say how a new machine is made and what your commands look like ([`Backend`]), and expand
//! [`state_machine_conformance!`](crate::state_machine_conformance) in a test file:
//!
//! ```
//! use bytes::Bytes;
//! use raftkv::testing::conformance::state_machine::Backend;
//! use raftkv::testing::{Counter, Random};
//!
//! struct Sums;
//!
//! impl Backend for Sums {
//!     type Machine = Counter;
//!
//!     async fn create(&self) -> Counter {
//!         Counter::default()
//!     }
//!
//!     fn command(&self, random: &mut Random) -> Bytes {
//!         random.below(100).to_string().into()
//!     }
//! }
//!
//! raftkv::state_machine_conformance!(Sums);
//! # fn main() {}
//! ```
//!
//! Draw everything about a command from the [`Random`] that you get, and let commands meet: few keys, and some requests that your
//! machine refuses.
//!
//! # What is tested
//!
//! * Determinism: two machines that get the same commands give the same answers and equal images. What differs from node to node (a
//!   clock, a random number, the order of a `HashMap`) is found here.
//! * A batch is as good as its commands one by one.
//! * A snapshot with the commands after it is as good as all commands; restoring replaces everything; however the image is cut.
//! * A snapshot is a frozen view, while commands go on.
//! * Commands and images of nonsense do not panic.
//! * For durable machines, with [`Backend::reopen`]: [`StateMachine::applied`] tells what is reflected in the state, no more and no
//!   less, also when the process was cut off at any operation ([`Backend::arm`]). Those that keep records of sessions
//!   ([`StateMachine::apply_recorded`]) keep all of them, and no more.

#![expect(clippy::expect_used, clippy::panic, reason = "a suite of tests: it reports by panicking")]

mod records;

use std::panic::AssertUnwindSafe;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;

pub use self::records::records_of_sessions_are_kept_with_the_state;
use super::{Fault, not_tested};
use crate::testing::Random;
use crate::{Chunks, LogId, StateMachine};

/// How many commands a case applies.
const COMMANDS: usize = 400;

/// Makes machines and commands for the suite.
pub trait Backend: Send + Sync {
    /// The machine under test.
    type Machine: StateMachine;

    /// A machine in its first state, with durable state of its own if it has any.
    fn create(&self) -> impl Future<Output = Self::Machine> + Send;

    /// A command, decided by what is drawn from `random` alone.
    fn command(&self, random: &mut Random) -> Bytes;

    /// Whether your machine stops the node at this command by intention, such as one of a kind that only a newer version can have
    /// written. Everything else is to be answered.
    fn stops_at(&self, command: &Bytes) -> bool {
        let _ = command;
        false
    }

    /// For durable machines: opens the machine that was created last on what it left, by a crash if one was armed. It has been
    /// dropped. Ends whatever was armed. None for a machine in memory.
    fn reopen(&self) -> impl Future<Output = Option<Self::Machine>> + Send {
        async { None }
    }

    /// For durable machines: lets `after` further operations of the machine on its medium pass, and has the next one meet with
    /// `fault`. After a kill or a loss of power, all that follow fail as well. False if you offer no such seam.
    fn arm(&self, fault: Fault, after: u64) -> bool {
        let _ = (fault, after);
        false
    }
}

/// Makes a `#[test]` of each case of the [`StateMachine`](crate::StateMachine) suite. The argument is an expression that gives a
/// [`Backend`](crate::testing::conformance::state_machine::Backend).
#[macro_export]
macro_rules! state_machine_conformance {
    ($backend:expr) => {
        $crate::state_machine_conformance!(
            @cases $backend;
            the_same_commands_give_the_same_answers_and_images
            a_batch_is_as_good_as_its_commands_one_by_one
            a_snapshot_and_the_commands_after_it_are_as_good_as_all_commands
            a_snapshot_is_a_frozen_view
            restoring_replaces_everything
            an_image_may_be_cut_anywhere
            commands_of_nonsense_are_answered_and_do_not_panic
            images_of_nonsense_do_not_panic
            what_is_applied_is_told_rightly
            a_kill_at_any_point_keeps_state_and_applied_together
            a_loss_of_power_at_any_point_keeps_state_and_applied_together
            records_of_sessions_are_kept_with_the_state
        );
    };
    (@cases $backend:expr; $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::testing::conformance::run(
                    $crate::testing::conformance::state_machine::$case(&$backend)
                );
            }
        )*
    };
}

/// Commands with their places: terms grow, and what is no command leaves gaps, as in a real log.
fn commands<B: Backend>(backend: &B, seed: u64, count: usize) -> Vec<(LogId, Bytes)> {
    let mut random = Random::new(seed);
    let mut at = LogId::new(1, 1);
    let mut commands = Vec::with_capacity(count);
    for _ in 0..count {
        if random.percent(5) {
            at = LogId { term: at.term.next(), index: at.index.next() };
        }
        commands.push((at, backend.command(&mut random)));
        at.index = at.index.next();
    }
    commands
}

async fn apply(machine: &mut impl StateMachine, commands: &[(LogId, Bytes)]) -> Vec<Bytes> {
    let mut answers = Vec::with_capacity(commands.len());
    for (at, command) in commands {
        answers.push(machine.apply(*at, command.clone()).await.expect("an answer"));
    }
    answers
}

async fn collect(mut chunks: Box<dyn Chunks>) -> Bytes {
    let mut image = BytesMut::new();
    while let Some(chunk) = chunks.next().await.expect("a chunk") {
        assert!(!chunk.is_empty(), "a chunk of an image is empty");
        image.extend_from_slice(&chunk);
    }
    image.freeze()
}

async fn image(machine: &impl StateMachine) -> Bytes {
    collect(machine.snapshot().await.expect("a snapshot")).await
}

/// An image in pieces of up to `max` bytes.
fn chunks(image: &Bytes, max: usize) -> Box<dyn Chunks> {
    let pieces: Vec<Bytes> = image.chunks(max).map(Bytes::copy_from_slice).collect();
    Box::new(pieces.into_iter())
}

async fn restore(machine: &mut impl StateMachine, image: &Bytes) {
    machine.restore(chunks(image, 1000)).await.expect("a restored machine");
}

/// Whether two images are the same, without printing them.
fn assert_same(one: &Bytes, two: &Bytes, what: &str) {
    let differs = one.iter().zip(two).position(|(x, y)| x != y).unwrap_or(one.len().min(two.len()));
    assert!(one == two, "{what}: images of {} and {} bytes differ at byte {differs}", one.len(), two.len());
}

/// Two machines that get the same commands are the same at every moment.
pub async fn the_same_commands_give_the_same_answers_and_images<B: Backend>(backend: &B) {
    let (mut one, mut two) = (backend.create().await, backend.create().await);
    assert_same(&image(&one).await, &image(&two).await, "before the first command");
    for (n, part) in commands(backend, 1, COMMANDS).chunks(50).enumerate() {
        let (answers, others) = (apply(&mut one, part).await, apply(&mut two, part).await);
        assert_eq!(answers, others, "the answers to the commands from {} on differ", part[0].0);
        assert_same(&image(&one).await, &image(&two).await, &format!("after part {n}"));
    }
}

/// Whatever the batches are.
pub async fn a_batch_is_as_good_as_its_commands_one_by_one<B: Backend>(backend: &B) {
    let commands = commands(backend, 2, COMMANDS);
    let mut single = backend.create().await;
    let expected = apply(&mut single, &commands).await;
    for size in [1, 2, 7, 100, COMMANDS] {
        let mut machine = backend.create().await;
        let mut answers = Vec::new();
        for batch in commands.chunks(size) {
            let some = machine.apply_batch(batch.to_vec()).await.expect("answers");
            assert_eq!(some.len(), batch.len(), "each command has an answer");
            answers.extend(some);
        }
        assert_eq!(answers, expected, "in batches of {size}");
        assert_same(&image(&machine).await, &image(&single).await, "batches and single commands");
    }
    assert!(single.apply_batch(Vec::new()).await.expect("no answers").is_empty());
}

/// A node that got an image goes on as one that applied everything itself.
pub async fn a_snapshot_and_the_commands_after_it_are_as_good_as_all_commands<B: Backend>(backend: &B) {
    let commands = commands(backend, 3, COMMANDS);
    let mut whole = backend.create().await;
    let expected = apply(&mut whole, &commands).await;
    let expected_image = image(&whole).await;
    for cut in [0, 1, COMMANDS / 3, COMMANDS - 1, COMMANDS] {
        let mut source = backend.create().await;
        apply(&mut source, &commands[..cut]).await;
        let taken = image(&source).await;
        let mut machine = backend.create().await;
        restore(&mut machine, &taken).await;
        assert_same(&image(&machine).await, &taken, "an image, and that of the machine restored from it");
        assert_eq!(apply(&mut machine, &commands[cut..]).await, expected[cut..], "after an image of {cut} commands");
        assert_same(
            &image(&machine).await,
            &expected_image,
            &format!("after an image of {cut} commands, and all others"),
        );
    }
}

/// The image is that of the moment when it was taken, however late it is read, and whatever is applied or restored meanwhile.
pub async fn a_snapshot_is_a_frozen_view<B: Backend>(backend: &B) {
    let commands = commands(backend, 4, COMMANDS);
    let mut machine = backend.create().await;
    apply(&mut machine, &commands[..COMMANDS / 2]).await;
    let expected = image(&machine).await;
    let (mut slow, late) =
        (machine.snapshot().await.expect("a snapshot"), machine.snapshot().await.expect("a snapshot"));
    let mut bytes = BytesMut::new();
    for command in &commands[COMMANDS / 2..] {
        apply(&mut machine, std::slice::from_ref(command)).await;
        bytes.extend(slow.next().await.expect("a chunk"));
    }
    let after = image(&machine).await;
    bytes.extend(collect(slow).await);
    assert_same(&bytes.freeze(), &expected, "an image that is read while commands are applied");
    let first = image(&backend.create().await).await;
    restore(&mut machine, &first).await;
    assert_same(&collect(late).await, &expected, "an image that is read late");
    restore(&mut machine, &after).await;
    assert_same(&image(&machine).await, &after, "restored to what it was");
}

/// Nothing of the state before is left.
pub async fn restoring_replaces_everything<B: Backend>(backend: &B) {
    let (ours, theirs) = (commands(backend, 5, COMMANDS), commands(backend, 6, COMMANDS));
    let mut source = backend.create().await;
    let empty = image(&source).await;
    apply(&mut source, &theirs[..COMMANDS / 2]).await;
    let mut machine = backend.create().await;
    for taken in [image(&source).await, empty] {
        apply(&mut machine, &ours).await;
        restore(&mut machine, &taken).await;
        assert_same(&image(&machine).await, &taken, "a machine with another past");
    }
    let mut fresh = backend.create().await;
    assert_eq!(apply(&mut machine, &ours).await, apply(&mut fresh, &ours).await, "restored to the first state");
}

/// Chunks come from a network or a file, which cut where they like.
pub async fn an_image_may_be_cut_anywhere<B: Backend>(backend: &B) {
    let mut source = backend.create().await;
    apply(&mut source, &commands(backend, 7, COMMANDS)).await;
    let taken = image(&source).await;
    for max in [1, 3, 17, 4096, usize::MAX] {
        let mut machine = backend.create().await;
        machine.restore(chunks(&taken, max)).await.expect("a restored machine");
        assert_same(&image(&machine).await, &taken, &format!("cut into chunks of {max} bytes"));
    }
}

/// Random bytes, or those of something valid with some of them changed, cut off or repeated.
fn nonsense(random: &mut Random, valid: &Bytes) -> Bytes {
    let mut bytes = valid.to_vec();
    let place = |random: &mut Random, len: usize| usize::try_from(random.below(len as u64 + 1)).unwrap_or(0);
    match random.below(5) {
        0 => bytes = (0..random.below(64)).map(|_| random.any().to_le_bytes()[0]).collect(),
        1 => bytes.truncate(place(random, valid.len())),
        2 => bytes.extend_from_slice(&valid[place(random, valid.len())..]),
        _ if bytes.is_empty() => bytes.push(random.any().to_le_bytes()[0]),
        _ => {
            for _ in 0..random.between(1, 4) {
                let at = place(random, bytes.len() - 1);
                bytes[at] = random.any().to_le_bytes()[0];
            }
        }
    }
    bytes.into()
}

/// What a client sends is applied by every node: one that panicked, or was refused as fatal, would end them all. Nodes agree on
/// what nonsense means as well.
pub async fn commands_of_nonsense_are_answered_and_do_not_panic<B: Backend>(backend: &B) {
    let mut random = Random::new(8);
    let (mut one, mut two) = (backend.create().await, backend.create().await);
    for (at, command) in commands(backend, 9, COMMANDS * 4) {
        let command = if random.percent(80) { nonsense(&mut random, &command) } else { command };
        let outcome = AssertUnwindSafe(one.apply(at, command.clone())).catch_unwind().await;
        let answer = match outcome {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) if backend.stops_at(&command) => {
                assert!(
                    two.apply(at, command.clone()).await.is_err(),
                    "one machine stops at {command:?}, another does not"
                );
                continue;
            }
            Ok(Err(fatal)) => panic!("a command stops every node: {command:?} gave {fatal}"),
            Err(_) => panic!("a command makes every node panic: {command:?}"),
        };
        assert_eq!(
            two.apply(at, command.clone()).await.expect("an answer"),
            answer,
            "the answers to {command:?} differ"
        );
    }
    assert_same(&image(&one).await, &image(&two).await, "after commands of nonsense");
}

/// Images are checked on their way, but a machine that panicked over one would leave nobody to tell.
pub async fn images_of_nonsense_do_not_panic<B: Backend>(backend: &B) {
    let mut random = Random::new(10);
    let mut source = backend.create().await;
    apply(&mut source, &commands(backend, 11, 30)).await;
    let taken = image(&source).await;
    let mut machine = backend.create().await;
    for _ in 0..COMMANDS {
        let image = nonsense(&mut random, &taken);
        let outcome = AssertUnwindSafe(machine.restore(chunks(&image, 500))).catch_unwind().await;
        // It may be valid by chance; what it holds then is nobody's business.
        assert!(outcome.is_ok(), "an image makes the node panic: {image:?}");
    }
    // A good one mends whatever the others left.
    restore(&mut machine, &taken).await;
    assert_same(&image(&machine).await, &taken, "after images of nonsense");
}

/// A durable machine that is opened again is where it says it is. A machine in memory says zero, before and after.
pub async fn what_is_applied_is_told_rightly<B: Backend>(backend: &B) {
    let commands = commands(backend, 12, COMMANDS);
    let mut twin = backend.create().await;
    let mut machine = backend.create().await;
    assert_eq!(machine.applied().await.expect("applied"), LogId::ZERO, "a machine in its first state");
    for part in commands.chunks(COMMANDS / 8) {
        machine.apply_batch(part.to_vec()).await.expect("answers");
        apply(&mut twin, part).await;
        drop(machine);
        let Some(reopened) = backend.reopen().await else {
            return not_tested("reopening; right for a machine in memory");
        };
        let applied = reopened.applied().await.expect("applied");
        assert_eq!(Some(applied), part.last().map(|(at, _)| *at), "after reopening");
        assert_same(&image(&reopened).await, &image(&twin).await, "a reopened machine, and one that went on");
        machine = reopened;
    }
}

async fn at_any_point<B: Backend>(backend: &B, fault: Fault) {
    const TOTAL: usize = 150;
    let commands = commands(backend, 13, TOTAL);
    let mut twin = backend.create().await;
    // The machine after each number of commands.
    let mut expected = vec![image(&twin).await];
    for command in &commands {
        apply(&mut twin, std::slice::from_ref(command)).await;
        expected.push(image(&twin).await);
    }
    let mut random = Random::new(14);
    let mut machine = backend.create().await;
    let (mut done, mut reached) = (0, 0);
    while done < TOTAL {
        if !backend.arm(fault, random.below(12)) {
            return not_tested(&format!("{fault:?}; right for a machine in memory"));
        }
        let upto = (done + usize::try_from(random.between(1, 5)).unwrap_or(1)).min(TOTAL);
        let outcome = machine.apply_batch(commands[done..upto].to_vec()).await;
        reached += u64::from(outcome.is_err());
        drop(machine);
        machine = backend.reopen().await.unwrap_or_else(|| panic!("a machine that offers {fault:?} can be reopened"));
        let applied = machine.applied().await.expect("applied");
        let now = commands.partition_point(|(at, _)| *at <= applied);
        assert!(now == 0 || commands[now - 1].0 == applied, "{applied} is told, which is no command's place");
        // It may fall behind, as commands come again; that is safe as long as the state falls behind with it.
        assert!(now <= upto, "{applied} is told, which was never applied");
        assert_same(&image(&machine).await, &expected[now], &format!("the state, and what {applied} says of it"));
        done = now;
    }
    assert!(reached > 0, "no fault reached the machine: does `arm` count its operations?");
}

/// State and applied id are one: at whatever operation the process is killed, no command is missing and none is applied twice.
pub async fn a_kill_at_any_point_keeps_state_and_applied_together<B: Backend>(backend: &B) {
    at_any_point(backend, Fault::Kill).await;
}

/// The same when power is lost.
pub async fn a_loss_of_power_at_any_point_keeps_state_and_applied_together<B: Backend>(backend: &B) {
    at_any_point(backend, Fault::PowerLoss).await;
}
