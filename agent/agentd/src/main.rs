//! Measures, verifies bundles, hands out weights, keeps the ledger.

fn main() {}
