//! `reseal apply`.

use anyhow::{Context as _, ensure};
use evidence::reseal::{
    Applied, Approved, ResealError, Step, USED_MAX, approve, obsolete, settled, succeeds,
};

use crate::accept::check;
use crate::options::{Apply, Options};
use crate::slots::Device;
use crate::{Machine, keep, quorum, say};

pub(crate) fn run(options: &Options, paths: &Apply) -> anyhow::Result<()> {
    let device = Device::open(paths)?;
    let mut applied = keep::applied(&options.applied)?;
    let order = pending(options, applied.as_ref())?;
    if order.is_none() && applied.is_none() && settled(device.image(), &device.slots()?) {
        return Ok(());
    }
    let machine = Machine::ask(&options.tcti)?;
    if succeeds(device.image(), machine.pcr7, &device.slots()?)? {
        device.enroll(machine.pcr7)?;
        say(
            "the key of the PCR policies was rotated: the state partition opens by the new one as well",
        );
    }
    for keyslot in obsolete(applied.as_ref(), device.image(), machine.pcr7, &device.slots()?)? {
        device.wipe(keyslot)?;
        say(&format!("key slot {keyslot} wiped: no boot that is still to come needs it"));
    }
    match order {
        Some(order) => add(options, &device, &machine, &order, &mut applied),
        None => Ok(()),
    }
}

/// The kept order, unless it was applied in an earlier boot.
fn pending(options: &Options, applied: Option<&Applied>) -> anyhow::Result<Option<Approved>> {
    let Some(signed) = keep::order(&options.accepted)? else { return Ok(None) };
    let order = approve(&quorum(options)?, &signed.signatures, &signed.order)?;
    let done = applied.is_some_and(|applied| applied.used.iter().any(|id| id == order.id()));
    Ok((!done).then_some(order))
}

fn add(
    options: &Options,
    device: &Device<'_>,
    machine: &Machine,
    order: &Approved,
    applied: &mut Option<Applied>,
) -> anyhow::Result<()> {
    check(order, machine, applied.as_ref())?;
    let mut used = applied.take().map(|applied| applied.used).unwrap_or_default();
    ensure!(used.len() < USED_MAX, ResealError::TooManyUsed);
    if let Step::Add { pcr7 } = order.step(&device.slots()?, device.key())? {
        device.enroll(pcr7)?;
    }
    let policy = device.key().policy(order.forecast());
    ensure!(device.slots()?.has(&policy), "the new key slot is not in the header");
    used.push(order.id().to_owned());
    let (present, forecast) = (hex::encode(order.present()), hex::encode(order.forecast()));
    keep::keep_applied(&options.applied, &Applied { present, forecast: forecast.clone(), used })
        .context("the key slot was added, and cannot be remembered")?;
    say(&format!(
        "order {} applied (signed by {}): the state partition opens with PCR 7 = {forecast} as well; make the change",
        order.id(),
        order.signers().join(", ")
    ));
    Ok(())
}
