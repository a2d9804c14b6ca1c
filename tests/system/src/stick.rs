//! An exchange medium, as an auditor prepares and reads it on another computer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::tool;

/// What udev on the appliance looks for.
const LABEL: &str = "casemate-exchange";
/// Where the only partition begins; systemd-repart aligns to it.
const OFFSET: &str = "1M";
const LIMIT: Duration = Duration::from_secs(60);

/// The image of a stick; a machine that has it plugged in must be pulled first.
#[derive(Debug)]
pub struct Stick {
    image: PathBuf,
    scratch: PathBuf,
}

impl Stick {
    /// An empty one, with files of its own in `folder`.
    pub fn format(folder: &Path) -> anyhow::Result<Self> {
        let definitions = folder.join("repart.d");
        std::fs::create_dir_all(&definitions).with_context(|| folder.display().to_string())?;
        let partition = format!(
            "[Partition]\nType=linux-generic\nLabel={LABEL}\nFormat=vfat\nSizeMinBytes=16M\n\
             SizeMaxBytes=16M\n"
        );
        std::fs::write(definitions.join("10-exchange.conf"), partition)?;
        let stick = Self { image: folder.join("stick.img"), scratch: folder.to_owned() };
        let mut repart = tool::command("systemd-repart");
        repart.args(["--offline=yes", "--empty=create", "--size=20M", "--dry-run=no"]);
        repart.arg(format!("--definitions={}", definitions.display())).arg(&stick.image);
        stick.run(&mut repart)?;
        Ok(stick)
    }

    /// The image file.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Copies a file onto it.
    pub fn put(&self, file: &Path, name: &str) -> anyhow::Result<()> {
        self.run(self.mtool("mcopy").arg("-o").arg(file).arg(format!("::{name}")))
    }

    /// Reads a file of it.
    pub fn take(&self, name: &str) -> anyhow::Result<String> {
        let out = self.scratch.join(name);
        self.run(self.mtool("mcopy").args(["-n", &format!("::{name}")]).arg(&out))?;
        std::fs::read_to_string(&out).with_context(|| out.display().to_string())
    }

    fn mtool(&self, name: &str) -> std::process::Command {
        let mut command = tool::command(name);
        // A partition that is not of a DOS table is no error to mtools but a warning.
        command.env("MTOOLS_SKIP_CHECK", "1");
        command.arg("-i").arg(format!("{}@@{OFFSET}", self.image.display()));
        command
    }

    fn run(&self, command: &mut std::process::Command) -> anyhow::Result<()> {
        let ended = tool::run(command, &self.scratch, LIMIT)?;
        let name = command.get_program().display().to_string();
        ensure!(ended.code == Some(0), "{name}: {}", ended.said());
        Ok(())
    }
}
