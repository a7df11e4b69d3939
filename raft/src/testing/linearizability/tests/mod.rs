//! Tests of the checker itself.

mod generate;
mod known;
mod random;
mod reference;
