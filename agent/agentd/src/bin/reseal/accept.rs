//! `reseal accept`.

use anyhow::Context as _;
use evidence::reseal::{Applied, Approved, ORDER_BYTES_MAX, ORDER_FILE, approve};
use sandbox::{AGENTD, Access, PathRule, Profile};

use crate::options::{Accept, Options};
use crate::{Machine, keep, quorum, say, signed};

pub(crate) fn run(options: &Options, paths: &Accept) -> anyhow::Result<()> {
    let quorum = quorum(options)?;
    let machine = Machine::ask(&options.tcti)?;
    let applied = keep::applied(&options.applied)?;
    confine(options, paths)?;
    let signed = signed::read(&paths.medium, ORDER_FILE, ORDER_BYTES_MAX)?;
    let order = approve(&quorum, &signed.signatures, &signed.order)?;
    check(&order, &machine, applied.as_ref())?;
    keep::keep_order(&options.accepted, &signed)?;
    say(&format!(
        "order {} accepted (signed by {}): restart once, so that the state partition is sealed to PCR 7 = {} as well",
        order.id(),
        order.signers().join(", "),
        hex::encode(order.forecast())
    ));
    Ok(())
}

/// The order is for this machine in its present state, and was not used.
pub(crate) fn check(
    order: &Approved,
    machine: &Machine,
    applied: Option<&Applied>,
) -> anyhow::Result<()> {
    let used = applied.map(|applied| applied.used.as_slice()).unwrap_or_default();
    Ok(order.check(&machine.ak_name, machine.pcr7, used.iter().map(String::as_str))?)
}

/// What is left before a byte of the medium is read: the medium, and the folder of the accepted order.
fn confine(options: &Options, paths: &Accept) -> anyhow::Result<()> {
    let rules = [
        PathRule { path: &paths.medium, access: Access::Read, why: "the order is read" },
        PathRule {
            path: &options.accepted,
            access: Access::ReadWrite,
            why: "the order is kept for the next boot",
        },
    ];
    let profile = Profile { name: "reseal", paths: &rules, ..AGENTD };
    sandbox::confine(&profile).map(drop).context("cannot confine")
}
