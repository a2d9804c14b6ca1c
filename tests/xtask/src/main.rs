//! Sets up and runs everything: cargo xtask demo, cargo xtask test.

fn main() {}
