//! What fuzzing needs: a decoder as a function of bytes, samples of what is valid, and a meter for memory.
//!
//! Each package keeps a list of its [`Target`]s. [`fuzz_tests!`](crate::fuzz_tests) runs them in bounded time with every test run,
//! and the package in `fuzz/` runs them for as long as you like.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::Random;
use crate::traits::{SnapshotId, SnapshotMeta};
use crate::types::{LogId, Membership, NodeId, Peer};

/// A decoder under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Gives the decoder these bytes, and checks what must hold of any. Panics when it does not.
    pub run: fn(&[u8]),
    /// Something that the decoder takes.
    pub sample: fn(&mut Random) -> Vec<u8>,
}

/// The targets of this package.
pub const TARGETS: &[Target] = &[
    Target { name: "membership", run: membership, sample: sample_membership },
    Target { name: "image", run: image, sample: sample_image },
    Target { name: "shelf", run: shelf, sample: sample_shelf },
];

/// What an image on a shelf begins with.
fn shelf(bytes: &[u8]) {
    within(bytes.len(), || crate::traits::fuzz_shelf(bytes));
}

fn sample_shelf(random: &mut Random) -> Vec<u8> {
    let membership = Membership::decode(&sample_membership(random)).unwrap_or_default();
    let (last, membership_at) = (LogId::new(random.any(), random.any()), LogId::new(1, random.below(99)));
    crate::traits::sample_shelf(&SnapshotMeta { id: SnapshotId(random.any()), last, membership, membership_at })
}

/// What an image of a state machine begins with.
fn image(bytes: &[u8]) {
    within(bytes.len(), || crate::runtime::image::fuzz(bytes));
}

fn sample_image(random: &mut Random) -> Vec<u8> {
    let machine: Vec<u8> = (0..random.below(40)).map(|_| random.any().to_le_bytes()[0]).collect();
    super::image_of(machine)
}

/// What an entry of kind `Config` holds.
fn membership(bytes: &[u8]) {
    if let Ok(membership) = within(bytes.len(), || Membership::decode(bytes)) {
        assert_eq!(membership.validate(), Ok(()), "what was decoded makes no sense");
        assert_eq!(Membership::decode(&membership.encode()), Ok(membership), "it changes when it is encoded");
    }
}

fn sample_membership(random: &mut Random) -> Vec<u8> {
    let peers =
        (0..random.between(1, 7)).map(|n| Peer::new(random.any() >> (8 * n), format!("host-{n}:{}", random.any())));
    let mut membership = Membership::new(peers.collect::<Vec<_>>());
    let mut others = |first: u64| {
        let count = random.below(4);
        (first..first + count).map(|id| (NodeId(id), Peer::new(id, format!("other-{id}")))).collect()
    };
    (membership.outgoing, membership.learners) = (others(1), others(3));
    membership.encode().to_vec()
}

/// Damages bytes as disks, networks and enemies do: flips, lengths that lie, cuts, pieces twice or in another order.
pub fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    let place = |random: &mut Random, len: usize| usize::try_from(random.below(len as u64 + 1)).unwrap_or(0);
    for _ in 0..random.between(1, 4) {
        let at = place(random, bytes.len());
        match random.below(7) {
            0 | 1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
            2 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.any().to_le_bytes()[0]),
            3 => {
                // A number that is far too large, in one of the forms that numbers have.
                let wide = random.pick(&[u64::MAX, u64::from(u32::MAX), 1 << 31, 1 << 62, (1 << 62) - 1]).unwrap_or(0);
                let width = usize::from(random.pick(&[4_u8, 8]).unwrap_or(4));
                bytes.iter_mut().skip(at).zip(wide.to_le_bytes()).take(width).for_each(|(byte, new)| *byte = new);
            }
            // The same in protobuf's form.
            4 => drop(bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f])),
            5 => bytes.truncate(at),
            _ => {
                let piece: Vec<u8> = bytes.iter().skip(at).take(place(random, 40)).copied().collect();
                let to = place(random, bytes.len());
                drop(bytes.splice(to..to, piece));
            }
        }
    }
}

/// A global allocator that knows how much each thread has allocated. Without it, [`within`] checks nothing.
///
/// ```
/// #[global_allocator]
/// static METER: raftkv::testing::fuzzing::Meter = raftkv::testing::fuzzing::Meter;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter;

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
    static TIMES: Cell<u64> = const { Cell::new(0) };
}

impl Meter {
    /// How often this thread has asked for memory, or for more of it in place of what it had. Zero unless this is the global allocator.
    #[must_use]
    pub fn allocations() -> u64 {
        TIMES.get()
    }
}

fn asked(bytes: i64) {
    let _ = TIMES.try_with(|times| times.set(times.get() + 1));
    count(bytes);
}

fn count(bytes: i64) {
    // A thread that is ending has no counters any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        PEAK.try_with(|peak| peak.set(peak.get().max(live.get())))
    });
}

#[expect(unsafe_code, reason = "an allocator is; it passes everything on to the system's")]
// SAFETY: each call goes to the system's allocator unchanged, and counting neither allocates nor panics.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        asked(layout.size() as i64);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        asked(layout.size() as i64);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        asked(size as i64 - layout.size() as i64);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

/// What decoding may take, whatever the bytes are: buffers for reading ahead.
const FLOOR: i64 = 4 << 20;
/// And for each of them: the smallest thing on the wire takes two bytes, and becomes a struct in a list that grows by doubling.
const EACH: i64 = 600;

/// Decodes something of `len` bytes, and asserts that the memory it takes is in proportion to that.
///
/// # Panics
/// It takes far more: a length field was believed.
pub fn within<T>(len: usize, decode: impl FnOnce() -> T) -> T {
    let before = LIVE.get();
    PEAK.set(before);
    let decoded = decode();
    let took = PEAK.get() - before;
    assert!(took <= FLOOR + EACH * len as i64, "{len} bytes took {took} bytes of memory to decode");
    decoded
}

/// Tests of fuzz targets, in bounded time: one `#[test]` for each name in the list, with random bytes, samples, and damaged samples.
/// `PROPTEST_CASES` makes them longer. The crate that uses it needs `proptest`.
#[doc(hidden)]
#[macro_export]
macro_rules! fuzz_tests {
    ($targets:expr; $($name:ident)*) => {
        #[global_allocator]
        static METER: $crate::testing::fuzzing::Meter = $crate::testing::fuzzing::Meter;

        #[test]
        fn no_target_is_missing() {
            let all: Vec<&str> = $targets.iter().map(|target| target.name).collect();
            assert_eq!(all, [$(stringify!($name)),*]);
        }

        #[test]
        fn memory_is_metered() {
            let too_much = || $crate::testing::fuzzing::within(20, || drop(Vec::<u8>::with_capacity(64 << 20)));
            assert!(::std::panic::catch_unwind(too_much).is_err());
        }

        $(
            #[test]
            fn $name() {
                use ::proptest::prelude::*;
                let target = $targets.iter().find(|target| target.name == stringify!($name)).unwrap();
                let damaged = any::<(u64, u64)>().prop_map(|(seed, damage)| {
                    let mut bytes = (target.sample)(&mut $crate::testing::Random::new(seed));
                    let mut random = $crate::testing::Random::new(damage);
                    if random.percent(85) {
                        $crate::testing::fuzzing::damage(&mut random, &mut bytes);
                    }
                    bytes
                });
                let random = ::proptest::collection::vec(any::<u8>(), 0..300);
                let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
                let mut runner = ::proptest::test_runner::TestRunner::new(config);
                let outcome = runner.run(&prop_oneof![1 => random, 3 => damaged], |bytes| {
                    (target.run)(&bytes);
                    Ok(())
                });
                if let Err(failure) = outcome {
                    panic!("{failure}");
                }
            }
        )*
    };
}
