//! Enforcing a profile, and seeing that it is enforced.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::process::{DumpableBehavior, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::profile::{Access, Arg, Profile};
use crate::self_test;

/// Landlock ABI that every profile needs: 6 (Linux 6.12) confines signals and abstract sockets.
pub const LANDLOCK_ABI_MIN: u32 = 6;

/// Proof that this process is confined, and what was seen refused. Not `Clone`: it is made once.
#[derive(Debug)]
pub struct Confined {
    process: &'static str,
    table_sha256: String,
    self_test: Vec<&'static str>,
}

impl Confined {
    /// Name of the profile.
    #[must_use]
    pub fn process(&self) -> &'static str {
        self.process
    }

    /// [`Profile::table_sha256`] of what is enforced.
    #[must_use]
    pub fn table_sha256(&self) -> &str {
        &self.table_sha256
    }

    /// What was tried and refused, in the order of trying.
    #[must_use]
    pub fn self_test(&self) -> &[&'static str] {
        &self.self_test
    }
}

/// Why a process is not confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Other threads would stay free.
    #[error("{found} threads run, expected 1: confine the process before it starts threads")]
    Threads {
        /// Threads found.
        found: usize,
    },
    /// A step failed.
    #[error("{profile}: cannot {step}: {cause}")]
    Step {
        /// The process.
        profile: &'static str,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel has no Landlock, or one that is too old, or a path of the profile is not there.
    #[error(
        "{profile}: Landlock does not enforce the profile: {reason}; its paths must exist, and ABI \
         {LANDLOCK_ABI_MIN} (Linux 6.12) is needed"
    )]
    Landlock {
        /// The process.
        profile: &'static str,
        /// What the library said.
        reason: String,
    },
    /// The filter does not compile or the kernel does not take it.
    #[error("{profile}: the seccomp filter was not installed: {reason}")]
    Seccomp {
        /// The process.
        profile: &'static str,
        /// What the library said.
        reason: String,
    },
    /// Something that must be refused was not.
    #[error("{profile}: self-test: {probe} gave {found}, expected {expected}")]
    SelfTest {
        /// The process.
        profile: &'static str,
        /// What was tried.
        probe: &'static str,
        /// What came of it.
        found: String,
        /// What should have.
        expected: &'static str,
    },
}

/// Confines this process, for good, and tests that it is.
///
/// # Errors
/// If any part of the profile is not enforced. The process may be confined in part by then and must end.
pub fn confine(profile: &Profile<'_>) -> Result<Confined, SandboxError> {
    require_one_thread(profile)?;
    self_test::deadly(profile)?;
    restrict(profile)?;
    self_test::sockets(profile)?;
    self_test::open(profile)?;
    Ok(Confined {
        process: profile.name,
        table_sha256: profile.table_sha256(),
        self_test: self_test::names(),
    })
}

/// Enforces the profile; the caller sees that it holds.
pub(crate) fn restrict(profile: &Profile<'_>) -> Result<(), SandboxError> {
    let step = |step, result: rustix::io::Result<()>| {
        result.map_err(|cause| SandboxError::Step {
            profile: profile.name,
            step,
            cause: cause.into(),
        })
    };
    for limit in profile.limits {
        let max = Rlimit { current: Some(limit.max), maximum: Some(limit.max) };
        step("set a resource limit", rustix::process::setrlimit(limit.resource, max))?;
    }
    step(
        "make memory unreadable to others",
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable),
    )?;
    step("set no_new_privs", rustix::thread::set_no_new_privs(true))?;
    step("clear ambient capabilities", rustix::thread::clear_ambient_capability_set())?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    step("drop capabilities", rustix::thread::set_capabilities(None, none))?;
    restrict_paths(profile)?;
    self_test::open_by_landlock(profile)?;
    install(profile)
}

fn require_one_thread(profile: &Profile<'_>) -> Result<(), SandboxError> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(|cause| SandboxError::Step {
        profile: profile.name,
        step: "count threads in /proc/self/task",
        cause,
    })?;
    match threads.count() {
        1 => Ok(()),
        found => Err(SandboxError::Threads { found }),
    }
}

fn restrict_paths(profile: &Profile<'_>) -> Result<(), SandboxError> {
    let fail = |reason: String| SandboxError::Landlock { profile: profile.name, reason };
    let restrict = || -> Result<_, Box<dyn std::error::Error>> {
        let abi = ABI::V6;
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .scope(Scope::from_all(abi))?
            .create()?;
        for rule in profile.paths {
            ruleset =
                ruleset.add_rule(PathBeneath::new(PathFd::new(rule.path)?, rights(rule.access)))?;
        }
        Ok(ruleset.restrict_self()?)
    };
    let status = restrict().map_err(|error| fail(error.to_string()))?;
    if status.ruleset != RulesetStatus::FullyEnforced || !status.no_new_privs {
        return Err(fail(format!("{:?}", status.ruleset)));
    }
    Ok(())
}

pub(crate) fn rights(access: Access) -> BitFlags<AccessFs> {
    match access {
        Access::Read => AccessFs::ReadFile | AccessFs::ReadDir,
        Access::ReadWrite => {
            AccessFs::ReadFile
                | AccessFs::ReadDir
                | AccessFs::WriteFile
                | AccessFs::Truncate
                | AccessFs::MakeReg
                | AccessFs::RemoveFile
        }
    }
}

/// Several filters, of which the kernel takes the strictest verdict: the first ones turn refusals into
/// error numbers, the last one kills at anything that no list names.
fn install(profile: &Profile<'_>) -> Result<(), SandboxError> {
    let fail = |reason: String| SandboxError::Seccomp { profile: profile.name, reason };
    let mut known: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in profile.allow {
        known.insert(rule.syscall, rules(rule.when).map_err(fail)?);
    }
    // What is refused passes the last filter too, for an earlier one to answer: to be killed is stricter.
    for rule in profile.refuse {
        let refused = rules(rule.when).map_err(fail)?;
        match known.get_mut(&rule.syscall) {
            // No rules: it passes whatever its arguments are.
            Some(passed) if passed.is_empty() => {}
            Some(passed) if !refused.is_empty() => passed.extend(refused),
            _ => drop(known.insert(rule.syscall, refused)),
        }
    }
    // A filter has one verdict, so each error number needs its own.
    let mut refused: BTreeMap<u32, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
    for rule in profile.refuse {
        let same_errno = refused.entry(rule.errno.unsigned_abs()).or_default();
        same_errno.insert(rule.syscall, rules(rule.when).map_err(fail)?);
    }
    for (errno, rules) in refused {
        apply(rules, SeccompAction::Allow, SeccompAction::Errno(errno)).map_err(fail)?;
    }
    apply(known, SeccompAction::KillProcess, SeccompAction::Allow).map_err(fail)
}

fn apply(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<(), String> {
    let text = |error: seccompiler::BackendError| error.to_string();
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(text)?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(text)?;
    let program = BpfProgram::try_from(filter).map_err(text)?;
    seccompiler::apply_filter(&program).map_err(|error| error.to_string())
}

/// No rule at all means "whatever the arguments are".
fn rules(when: &[Arg]) -> Result<Vec<SeccompRule>, String> {
    if when.is_empty() {
        return Ok(Vec::new());
    }
    let conditions: Result<Vec<_>, _> = when.iter().map(|arg| condition(*arg)).collect();
    let rule = SeccompRule::new(conditions.map_err(|error| error.to_string())?);
    Ok(vec![rule.map_err(|error| error.to_string())?])
}

fn condition(arg: Arg) -> Result<SeccompCondition, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    match arg {
        Arg::Is(i, value) => SeccompCondition::new(i, Dword, SeccompCmpOp::Eq, value.into()),
        Arg::IsNot(i, value) => SeccompCondition::new(i, Dword, SeccompCmpOp::Ne, value.into()),
        Arg::Lacks(i, bits) => SeccompCondition::new(i, Qword, SeccompCmpOp::MaskedEq(bits), 0),
        Arg::Has(i, bits) => SeccompCondition::new(i, Qword, SeccompCmpOp::MaskedEq(bits), bits),
    }
}
