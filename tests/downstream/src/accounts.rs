//! Accounts, between which money is moved: nobody's balance falls below zero, and no money comes or goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What each account has. All begin with [`Accounts::FIRST`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Accounts(BTreeMap<u8, u64>);

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    pub from: u8,
    pub to: u8,
    pub amount: u64,
}

impl Accounts {
    /// What an account begins with.
    pub const FIRST: u64 = 100;

    /// What an account has.
    pub fn balance(&self, account: u8) -> u64 {
        self.0.get(&account).copied().unwrap_or(Self::FIRST)
    }

    /// Whether the money was there, and was moved.
    pub fn transfer(&mut self, Transfer { from, to, amount }: Transfer) -> bool {
        let (rest, sum) = (self.balance(from).checked_sub(amount), self.balance(to).checked_add(amount));
        let (Some(rest), Some(sum), true) = (rest, sum, from != to) else { return false };
        self.0.extend([(from, rest), (to, sum)]);
        true
    }
}
