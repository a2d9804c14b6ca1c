//! Images with kernels of ours: the one that a release has, and the one for NVIDIA's driver.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use qemu::Machine;

use crate::bench::{BOOT_LIMIT, HEALTH_LIMIT, OwnKernel, PROMPT, Scene, wait_admitted, wait_ready};
use crate::runner::Skipped;

const NO_KERNEL: Skipped = Skipped("the cache has no such kernel; --long builds it");
/// A kernel that misbehaved says one of these.
const TROUBLE: &[&str] = &["BUG:", "WARNING:", "Oops", "Call Trace", "UBSAN", "KFENCE"];
/// System calls that would add to the running kernel, replace it, or go past its filters. The symbol of one that is not
/// built in is weak: a stand-in that returns ENOSYS (Linux, `COND_SYSCALL`).
const ABSENT: &[&str] = &[
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "kexec_file_load",
    "io_uring_setup",
    "userfaultfd",
    "swapon",
];
/// A `bool` of the kernel: are modules without a valid signature refused (kernel/module/signing.c)?
const SIGNED_ONLY: &str = "sig_enforce";
/// Where the kernel's own addresses begin, and the steps in which x86 moves it in memory at boot (`PHYSICAL_ALIGN`).
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
const MOVED_BY: u64 = 2 << 20;
/// `linux_banner` begins with `Linux version `; two words of it, as they lie in memory.
const BANNER: [u32; 2] = [u32::from_le_bytes(*b"Linu"), u32::from_le_bytes(*b"x ve")];
/// LOCKDOWN_CONFIDENTIALITY_MAX of Linux 6.12 (include/linux/security.h), the highest level; one more for each thing that
/// a later kernel locks.
const CONFIDENTIALITY: u32 = 30;

/// What NVIDIA's driver says where it was admitted, and no GPU is there.
const NO_GPU: &str = "NVRM: No NVIDIA GPU found";

/// The driver's module is loaded by a kernel that takes signed ones only, and finds no GPU; the evidence is established.
pub(super) fn loads_driver(scene: &Scene<'_>) -> anyhow::Result<()> {
    let own = scene.bench.inputs.gpu_nvidia.as_ref().ok_or(NO_KERNEL)?;
    let symbols = Symbols::read(own)?;
    let mut config = scene.bench.config(&scene.path("machine"));
    config.image.clone_from(&own.image);
    let mut machine = Machine::boot(config)?;
    let ak_name = wait_ready(&mut machine)?;
    ensure!(machine.console().transcript.text().contains(NO_GPU), "the driver did not start");
    check_locked_down(&symbols, &mut machine)?;
    let [signed_only, ..] = symbols.variable(&mut machine, SIGNED_ONLY)?.to_le_bytes();
    ensure!(signed_only == 1, "{SIGNED_ONLY} is {signed_only}: modules without a signature load");
    let limit = scene.within(HEALTH_LIMIT)?;
    scene.bench.pin_of(&own.image, &machine, &scene.path("auditor"), &ak_name, limit)?;
    check_console(&machine)
}

/// From power-on to evidence that an auditor establishes, by the reference values of this image, so of this kernel; the
/// state is made, opened again, and the engine answers within its confinement, which tests itself before each start.
pub(super) fn boots(scene: &Scene<'_>) -> anyhow::Result<()> {
    let own = scene.bench.inputs.own_kernel.as_ref().ok_or(NO_KERNEL)?;
    let symbols = Symbols::read(own)?;
    symbols.check_absent()?;
    let mut config = scene.bench.config(&scene.path("machine"));
    config.image.clone_from(&own.image);
    let mut machine = Machine::boot(config.clone())?;
    let ak_name = wait_ready(&mut machine)?;
    check_locked_down(&symbols, &mut machine)?;
    let folder = scene.path("auditor");
    let limit = scene.within(HEALTH_LIMIT)?;
    let pin = scene.bench.pin_of(&own.image, &machine, &folder, &ak_name, limit)?;
    check_console(&machine)?;
    machine.quit()?;

    scene.within(BOOT_LIMIT)?;
    config.bundles = scene.bench.inputs.bundles.good.iter().cloned().collect();
    let mut machine = Machine::boot(config)?;
    ensure!(wait_ready(&mut machine)? == ak_name, "another attestation key");
    let model = wait_admitted(&mut machine)?;
    let api = scene.api_of(&machine, &pin);
    api.wait_health(200, HEALTH_LIMIT)?;
    api.chat(&model, PROMPT, 4)?;
    check_console(&machine)
}

fn check_console(machine: &Machine) -> anyhow::Result<()> {
    let console = machine.console().transcript.text();
    for word in TROUBLE {
        ensure!(!console.contains(word), "{word:?} on the console:\n{console}");
    }
    Ok(())
}

/// The kernel's System.map: kind and address by name.
struct Symbols(BTreeMap<String, (char, u64)>);

impl Symbols {
    fn read(own: &OwnKernel) -> anyhow::Result<Self> {
        let boot = own.kernel.join("boot");
        let is_map = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("System.map-");
        let mut maps = std::fs::read_dir(&boot)
            .with_context(|| boot.display().to_string())?
            .collect::<Result<Vec<_>, _>>()?;
        maps.retain(|entry| is_map(&entry.file_name()));
        let [map] = maps.as_slice() else { anyhow::bail!("{} maps in {boot:?}", maps.len()) };
        Self::parse(&std::fs::read_to_string(map.path())?)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let symbol = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let kind = words.next()?.chars().next()?;
            Some((words.next()?.to_owned(), (kind, address)))
        };
        let parse = |line| symbol(line).with_context(|| format!("System.map: {line:?}"));
        Ok(Self(text.lines().map(parse).collect::<anyhow::Result<_>>()?))
    }

    fn find(&self, name: &str) -> anyhow::Result<(char, u64)> {
        self.0.get(name).copied().with_context(|| format!("System.map has no {name}"))
    }

    fn check_absent(&self) -> anyhow::Result<()> {
        // One that is there, so that another spelling of the symbols is noticed.
        ensure!(self.find("__x64_sys_read")?.0 == 'T', "read(2) is not built in");
        for name in ABSENT {
            let (kind, _) = self.find(&format!("__x64_sys_{name}"))?;
            ensure!(kind == 'W', "{name}(2) is built in");
        }
        Ok(())
    }

    /// A variable's first word, looked up in the guest's memory, since nothing in the appliance would show it.
    fn variable(&self, machine: &mut Machine, name: &str) -> anyhow::Result<u32> {
        let ((_, banner), (_, variable)) = (self.find("linux_banner")?, self.find(name)?);
        let at = banner.checked_sub(KERNEL_MAP).context("linux_banner is no kernel address")?;
        let memory_bytes = u64::from(machine.config().memory_mib) << 20;
        let mut place = at % MOVED_BY;
        while words(machine, place)? != BANNER {
            place += MOVED_BY;
            ensure!(place < memory_bytes, "no kernel is found in {memory_bytes} bytes of memory");
        }
        let [word, _] = words(machine, place.wrapping_add(variable.wrapping_sub(banner)))?;
        Ok(word)
    }
}

fn check_locked_down(symbols: &Symbols, machine: &mut Machine) -> anyhow::Result<()> {
    let level = symbols.variable(machine, "kernel_locked_down")?;
    ensure!(level == CONFIDENTIALITY, "kernel_locked_down is {level}, not {CONFIDENTIALITY}");
    Ok(())
}

/// Two words of the guest's physical memory.
fn words(machine: &mut Machine, address: u64) -> anyhow::Result<[u32; 2]> {
    let reply = machine.qmp().human(&format!("xp /2wx {address:#x}"))?;
    // `0000000001a00000: 0x756e694c 0x65762078`
    let parse = || {
        let (_, words) = reply.split_once(':')?;
        let mut words = words.split_whitespace();
        let mut word = || u32::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        Some([word()?, word()?])
    };
    parse().with_context(|| format!("xp at {address:#x}: {reply:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_call_that_is_built_in_is_named() {
        let map = |kind: &str| {
            let absent = ABSENT.iter().map(|name| format!("ff W __x64_sys_{name}\n"));
            let text: String = absent.collect();
            let text =
                text.replace("W __x64_sys_kexec_load", &format!("{kind} __x64_sys_kexec_load"));
            Symbols::parse(&format!("ffffffff81000000 T __x64_sys_read\n{text}")).unwrap()
        };
        map("W").check_absent().unwrap();
        let error = map("T").check_absent().unwrap_err().to_string();
        assert!(error.contains("kexec_load(2)"), "{error}");
        Symbols::parse("ffffffff81000000 T sys_read\n").unwrap().check_absent().unwrap_err();
        assert!(Symbols::parse("ffffffff81000000 T\n").is_err());
    }
}
