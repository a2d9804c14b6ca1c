//! The inference engine as a process.

fn main() {}
