//! The example of a replicated counter stays short: it is the test of the API's taste.

#[test]
fn the_counter_fits_in_sixty_lines() {
    let lines = include_str!("../examples/counter.rs").lines().count();
    assert!(lines <= 60, "the counter has {lines} lines");
}
