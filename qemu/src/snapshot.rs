//! Boot once, freeze, fork.
//!
//! The memory goes to a file by QEMU's own migration, the TPM's state within it (QEMU fetches it from swtpm), and the
//! disk and variable store become the frozen base of the forks' overlays. An internal qcow2 snapshot (`savevm`) would
//! be seen only in the file that holds it, so that each fork would need a copy of everything.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::machine::{Config, Machine, MachineError, create_overlay, file_error, make_folder};

/// Longest time that writing or reading the memory may take.
const MIGRATION_LIMIT: Duration = Duration::from_secs(120);
/// QEMU's default bandwidth is for a network between two hosts.
const BANDWIDTH_BYTES_PER_S: u64 = 1 << 36;

/// A frozen machine: it does not run, and nothing changes it any more.
#[derive(Clone, Debug)]
pub struct Snapshot {
    config: Config,
    console: String,
}

impl Machine {
    /// Freezes the machine where it stands and ends it; its state folder is the snapshot from now on.
    pub fn snapshot(mut self) -> Result<Snapshot, MachineError> {
        self.poll()?;
        let console = self.console().transcript.text().to_owned();
        let config = self.config().clone();
        let partial = config.state.join("vm.state.partial");
        let qmp = self.qmp();
        qmp.execute("stop", &json!({}))?;
        qmp.execute("migrate-set-parameters", &json!({ "max-bandwidth": BANDWIDTH_BYTES_PER_S }))?;
        qmp.execute("migrate", &json!({ "uri": file_uri(&partial)? }))?;
        qmp.wait_state(
            ("query-migrate", "status"),
            &["completed"],
            &["failed", "cancelled", "none"],
            MIGRATION_LIMIT,
        )?;
        self.quit()?;
        // Last, so that a folder with this file is a whole snapshot.
        let state = config.vm_state();
        fs::rename(&partial, &state).map_err(|cause| file_error(&state, cause))?;
        Ok(Snapshot { config, console })
    }
}

impl Snapshot {
    /// What the machine was made of.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The console up to the snapshot; a fork's console begins empty.
    #[must_use]
    pub fn console(&self) -> &str {
        &self.console
    }

    /// A machine that goes on from the snapshot in a `state` folder of its own, on a free port.
    pub fn fork(&self, state: &Path) -> Result<Machine, MachineError> {
        let (config, base) = self.overlay(state)?;
        let mut machine = Machine::launch(config, true)?;
        let qmp = machine.qmp();
        qmp.execute("migrate-incoming", &json!({ "uri": file_uri(&base.join("vm.state"))? }))?;
        qmp.wait_state(
            ("query-migrate", "status"),
            &["completed"],
            &["failed", "cancelled"],
            MIGRATION_LIMIT,
        )?;
        qmp.execute("cont", &json!({}))?;
        Ok(machine)
    }

    /// The snapshot's disk and variables in a machine that was never on and has a TPM of its own, as if the disk had
    /// been carried into another server. The disk is as after a power cut at the time of the snapshot.
    pub fn transplant(&self, state: &Path) -> Result<Config, MachineError> {
        Ok(self.overlay(state)?.0)
    }

    fn overlay(&self, state: &Path) -> Result<(Config, PathBuf), MachineError> {
        let mut config = self.config.clone();
        state.clone_into(&mut config.state);
        config.port = None;
        config.vendor = Some(self.config.vendor_folder());
        make_folder(state)?;
        if config.origin().exists() {
            let problem = "it holds a machine already".to_owned();
            return Err(MachineError::State { path: state.to_owned(), problem });
        }
        let base = fs::canonicalize(&self.config.state)
            .map_err(|cause| file_error(&self.config.state, cause))?;
        create_overlay(&base.join("disk.qcow2"), "qcow2", &config.disk())?;
        create_overlay(&base.join("vars.qcow2"), "qcow2", &config.vars())?;
        fs::copy(self.config.origin(), config.origin())
            .map_err(|cause| file_error(&config.origin(), cause))?;
        Ok((config, base))
    }
}

/// QEMU takes what follows `file:` up to `,offset=`.
fn file_uri(path: &Path) -> Result<String, MachineError> {
    match path.to_str() {
        Some(text) if !text.contains(",offset=") => Ok(format!("file:{text}")),
        _ => Err(MachineError::Invalid(format!("{}: not a path for a snapshot", path.display()))),
    }
}
