//! Who may have how much of what there is only so much of: connections, requests, bytes.
//!
//! A limit on all alone protects the node, and not those who use it: whoever takes everything first leaves nothing to the others. So there
//! are two limits: what all may have together, and what one address may.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Something that is shared among all who come. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shares(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: usize,
    limit_of_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    /// By address; none has an entry that has nothing.
    by: BTreeMap<IpAddr, usize>,
}

/// What somebody has of it. Dropped, it is given back.
#[derive(Debug)]
pub struct Share {
    of: Shares,
    holder: Option<IpAddr>,
    amount: usize,
}

/// There is no more, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// All together have this much, and the address may have more.
    All(usize),
    /// This address has this much, whatever the others have.
    Address(IpAddr, usize),
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(limit) => write!(f, "all {limit} are taken"),
            Self::Address(address, limit) => write!(f, "{address} has {limit} of them, as much as one address may"),
        }
    }
}

impl Shares {
    /// So much for all together, and so much of it for one address.
    #[must_use]
    pub fn new(limit: usize, limit_of_address: usize) -> Self {
        Self(Arc::new(Shared { limit, limit_of_address, taken: Mutex::default() }))
    }

    /// A share of this size for somebody; who has no address counts among all alone.
    ///
    /// # Errors
    /// There is not so much left. Nothing was taken.
    pub fn take(&self, holder: Option<IpAddr>, amount: usize) -> Result<Share, Exhausted> {
        let mut share = Share { of: self.clone(), holder: holder.map(holder_of), amount: 0 };
        share.grow(amount)?;
        Ok(share)
    }

    /// How much is taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.taken().in_all
    }
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Takes so much more.
    ///
    /// # Errors
    /// There is not so much left. The share is as it was.
    pub fn grow(&mut self, amount: usize) -> Result<(), Exhausted> {
        if amount == 0 {
            return Ok(());
        }
        let shared = &self.of.0;
        let mut taken = shared.taken();
        let more = |has: usize, limit: usize| has.checked_add(amount).filter(|has| *has <= limit);
        // First what the holder may have: where both are exhausted, room that another makes is of no use to it.
        let of_holder = self.holder.map(|holder| {
            let (has, limit) = (taken.by.get(&holder).copied().unwrap_or_default(), shared.limit_of_address);
            more(has, limit).map(|has| (holder, has)).ok_or(Exhausted::Address(holder, limit))
        });
        let of_holder = of_holder.transpose()?;
        taken.in_all = more(taken.in_all, shared.limit).ok_or(Exhausted::All(shared.limit))?;
        taken.by.extend(of_holder);
        self.amount += amount;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.of.0.taken();
        taken.in_all -= self.amount;
        let Some(holder) = self.holder else { return };
        if let Some(of_holder) = taken.by.get_mut(&holder) {
            *of_holder -= self.amount;
            if *of_holder == 0 {
                taken.by.remove(&holder);
            }
        }
    }
}

/// To whom an address belongs: whoever has one of IPv6 has the 64 bits behind it as well.
fn holder_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn nobody_has_more_than_an_address_may_nor_all_more_than_there_is() {
        let shares = Shares::new(10, 6);
        let mut first = shares.take(address("10.0.0.1"), 4).unwrap();
        assert_eq!(shares.take(address("10.0.0.1"), 3).unwrap_err(), Exhausted::Address([10, 0, 0, 1].into(), 6));
        let second = shares.take(address("10.0.0.2"), 3).unwrap();
        assert_eq!(first.grow(3), Err(Exhausted::Address([10, 0, 0, 1].into(), 6)));
        first.grow(2).unwrap();
        assert_eq!(shares.take(None, 2).unwrap_err(), Exhausted::All(10));
        assert_eq!(shares.take(address("10.0.0.2"), 2).unwrap_err(), Exhausted::All(10));
        assert_eq!(first.grow(2), Err(Exhausted::Address([10, 0, 0, 1].into(), 6)), "of both limits its own is told");
        let third = shares.take(None, 1).unwrap();
        assert_eq!(shares.taken(), 10);
        drop(second);
        shares.take(None, 3).unwrap();
        drop((first, third));
        assert_eq!(shares.taken(), 0);
        assert!(shares.0.taken().by.is_empty(), "who has nothing is forgotten");
    }

    #[test]
    fn an_address_is_the_same_however_it_is_written_and_a_network_of_ipv6_is_one() {
        let shares = Shares::new(10, 1);
        let _four = shares.take(address("10.0.0.1"), 1).unwrap();
        assert!(shares.take(address("::ffff:10.0.0.1"), 1).is_err());
        let _six = shares.take(address("2001:db8::1"), 1).unwrap();
        assert!(shares.take(address("2001:db8::ffff:1"), 1).is_err());
        shares.take(address("2001:db8:0:1::1"), 1).unwrap();
    }

    #[test]
    fn amounts_that_no_number_can_hold_are_too_much() {
        let shares = Shares::new(usize::MAX, usize::MAX);
        let _one = shares.take(address("10.0.0.1"), 1).unwrap();
        let _rest = shares.take(address("10.0.0.1"), usize::MAX - 1).unwrap();
        assert!(shares.take(address("10.0.0.1"), usize::MAX).is_err());
    }
}
