//! Tests of the checker itself.

mod known;
