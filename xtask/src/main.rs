//! Polaris command line.
fn main() {}
