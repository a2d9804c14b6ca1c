//! casemate-verify: evidence in, verdict out, on any laptop.

fn main() {}
