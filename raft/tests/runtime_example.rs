//! The example of a replicated counter stays short: it is the test of the API's taste.

#[test]
fn the_counter_fits_in_sixty_lines() {
    let lines = include_str!("../examples/counter.rs").lines().count();
    assert!(lines <= 60, "the counter has {lines} lines");
}

#[test]
fn the_readme_shows_the_counter_as_it_is() {
    let readme = include_str!("../../README.md");
    assert!(readme.contains(include_str!("../examples/counter.rs").trim_end()), "copy the example into README.md");
}
