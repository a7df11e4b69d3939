//! Known bugs that can be compiled in, to see whether the tests would find them.
//!
//! A place in production code that asks `mutant!("name")` holds the bug of that name; the answer is a constant `false`
//! unless the code is compiled with `RUSTFLAGS='--cfg mutants'`. Then [`choose`] switches one of them on, for the whole process.
//! [`MUTANTS`] says what is wrong with each. The command `sim --mutants` lists how many seeds find it.

#[cfg(mutants)]
use std::sync::atomic::{AtomicUsize, Ordering};

/// A known bug.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// Its name, in the code and on the command line.
    pub name: &'static str,
    /// What is wrong.
    pub wrong: &'static str,
    /// Where.
    pub file: &'static str,
    /// Which depth of the simulator finds it: `consensus` or `node`.
    pub depth: &'static str,
}

/// All of them.
pub const MUTANTS: &[Mutant] = &[Mutant {
    name: "vote-before-durable",
    wrong: "A vote is told before it is on disk.",
    file: "raft/src/consensus/election.rs",
    depth: "consensus",
}];

/// Whether the code was compiled with its mutants.
pub const COMPILED_IN: bool = cfg!(mutants);

/// The mutant that is switched on: its place in the table, and one; 0 while there is none.
#[cfg(mutants)]
static CHOSEN: AtomicUsize = AtomicUsize::new(0);

/// Switches one mutant on and all others off; or all off.
///
/// # Errors
/// There is no such mutant, or none is compiled in.
pub fn choose(name: Option<&str>) -> Result<(), String> {
    let Some(name) = name else {
        #[cfg(mutants)]
        CHOSEN.store(0, Ordering::SeqCst);
        return Ok(());
    };
    let place = MUTANTS.iter().position(|mutant| mutant.name == name);
    let Some(place) = place else {
        let names: Vec<_> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        return Err(format!("there is no mutant {name:?}; there are {}", names.join(", ")));
    };
    if !COMPILED_IN {
        return Err(
            "the mutants are not compiled in: build with RUSTFLAGS='--cfg mutants' and a target directory of its own"
                .into(),
        );
    }
    #[cfg(mutants)]
    CHOSEN.store(place + 1, Ordering::SeqCst);
    let _ = place;
    Ok(())
}

/// The place of a mutant in the table. For [`mutant!`](crate::mutant!), at compile time: a name that is not there does not compile.
#[must_use]
pub const fn place_of(name: &str) -> usize {
    let mut place = 0;
    while place < MUTANTS.len() {
        if same(MUTANTS[place].name.as_bytes(), name.as_bytes()) {
            return place;
        }
        place += 1;
    }
    #[expect(clippy::panic, reason = "evaluated by the compiler alone")]
    {
        panic!("this mutant is not in the table")
    }
}

const fn same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// Whether the mutant at this place in the table is switched on.
#[cfg(mutants)]
#[inline]
#[must_use]
pub fn is_on(place: usize) -> bool {
    CHOSEN.load(Ordering::Relaxed) == place + 1
}

/// Whether the mutant at this place in the table is switched on: none is compiled in.
#[cfg(not(mutants))]
#[inline(always)]
#[must_use]
pub const fn is_on(_place: usize) -> bool {
    false
}

/// Whether this known bug is switched on. `false`, a constant, unless compiled with `--cfg mutants`.
#[doc(hidden)]
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        $crate::mutants::is_on(const { $crate::mutants::place_of($name) })
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_has_a_name_of_its_own_and_a_place_in_the_code() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (n, mutant) in MUTANTS.iter().enumerate() {
            assert_eq!(place_of(mutant.name), n, "{} is there twice", mutant.name);
            let code = std::fs::read_to_string(root.join(mutant.file)).unwrap();
            assert!(
                code.contains(&format!("mutant!(\"{}\")", mutant.name)),
                "{} is not in {}",
                mutant.name,
                mutant.file
            );
            assert!(["consensus", "node"].contains(&mutant.depth) && mutant.wrong.ends_with('.'), "{mutant:?}");
        }
    }

    #[test]
    fn no_mutant_is_on_by_itself() {
        assert!(!mutant!("vote-before-durable"));
        assert!(choose(Some("no-such-mutant")).unwrap_err().contains("vote-before-durable"));
        assert_eq!(choose(None), Ok(()));
    }
}
