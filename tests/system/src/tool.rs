//! Programs that do a scenario's work, within its time.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

const POLL: Duration = Duration::from_millis(20);

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Everything that it said, for messages.
    pub(crate) fn said(&self) -> String {
        format!("exit code {:?}\n{}{}", self.code, self.stdout, self.stderr)
    }
}

/// Runs a program to its end, or kills it when its time is up. Output goes through files in `scratch`, so that a
/// program that writes much does not stop.
pub(crate) fn run(command: &mut Command, scratch: &Path, limit: Duration) -> anyhow::Result<Ended> {
    let name = command.get_program().to_string_lossy().into_owned();
    let [out, err] = ["stdout", "stderr"].map(|stream| scratch.join(format!("{stream}.txt")));
    let file = |path: &Path| File::create(path).with_context(|| path.display().to_string());
    command.stdout(file(&out)?).stderr(file(&err)?);
    let mut child = Guard(command.spawn().with_context(|| format!("cannot start {name}"))?);
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.0.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            bail!("{name} ran longer than {} s", limit.as_secs());
        }
        std::thread::sleep(POLL);
    };
    let read = |path: &Path| -> anyhow::Result<String> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Ended { code: status.code(), stdout: read(&out)?, stderr: read(&err)? })
}

/// A child that is dead once this is dropped.
#[derive(Debug)]
pub(crate) struct Guard(pub(crate) Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // A child that ended already cannot be killed, which is as good.
        let killed: io::Result<()> = self.0.kill();
        if let Err(error) = killed.and_then(|()| self.0.wait().map(drop)) {
            eprintln!("child {}: {error}", self.0.id());
        }
    }
}

/// A program without input.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_exit_code_are_kept_and_time_is_bounded() {
        let dir = std::env::temp_dir().join(format!("casemate-tool-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut shell = command("sh");
        let ended =
            run(shell.args(["-c", "echo a; echo b >&2; exit 3"]), &dir, Duration::from_secs(9))
                .unwrap();
        assert_eq!((ended.code, &*ended.stdout, &*ended.stderr), (Some(3), "a\n", "b\n"));
        let late = run(command("sleep").arg("60"), &dir, Duration::from_millis(50)).unwrap_err();
        assert!(late.to_string().contains("longer than"), "{late}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
