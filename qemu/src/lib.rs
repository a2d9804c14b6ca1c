//! An OVMF and swtpm machine, its console and its snapshots.
