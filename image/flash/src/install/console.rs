//! Every console of the kernel at once: a screen with a keyboard, and the serial line of a server's controller. Nobody
//! knows at which of them the operator sits.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};

use super::words::Words;

/// Longest line that is read.
const TYPED_BYTES_MAX: usize = 4096;
/// Most consoles.
const CONSOLES_MAX: usize = 8;
/// Longest list of consoles.
const ACTIVE_BYTES_MAX: u64 = 4096;

/// Where messages go, and where an answer may come from.
#[derive(Debug)]
pub(super) struct Console {
    terminals: Vec<Terminal>,
}

#[derive(Debug)]
struct Terminal {
    file: File,
    typed: Vec<u8>,
}

impl Console {
    /// The consoles that `active` names (Documentation/ABI/testing/sysfs-tty), or else the kernel's own.
    pub(super) fn open(active: &Path) -> Self {
        let names = names(active).unwrap_or_default();
        let open = |name: &String| terminal(&Path::new("/dev").join(name)).ok();
        let mut terminals: Vec<Terminal> = names.iter().filter_map(open).collect();
        if terminals.is_empty() {
            terminals.extend(terminal(Path::new("/dev/console")).ok());
        }
        Self { terminals }
    }

    /// Says it everywhere, in both languages.
    pub(super) fn say(&mut self, words: &Words) {
        self.say_plain(&format!("installer: {}\ninstaller: {}\n", words.english, words.french));
    }

    /// Says it as it is.
    pub(super) fn say_plain(&mut self, text: &str) {
        for terminal in &mut self.terminals {
            // A console that is gone must not stop a disk from being finished.
            terminal.file.write_all(text.as_bytes()).ok();
        }
    }

    /// The next line that is typed at any of them, without spaces around it. Waits as long as it takes.
    pub(super) fn read_line(&mut self) -> anyhow::Result<String> {
        loop {
            // One read may have brought several lines.
            if let Some(line) = self.terminals.iter_mut().find_map(Terminal::line) {
                return Ok(line);
            }
            if self.terminals.is_empty() {
                bail!("no console to type at; make a stick that names the disk (--install-onto)");
            }
            let mut waiting: Vec<PollFd<'_>> = self
                .terminals
                .iter()
                .map(|terminal| PollFd::new(&terminal.file, PollFlags::IN))
                .collect();
            poll(&mut waiting, None).context("waiting for the consoles")?;
            let ready: Vec<bool> =
                waiting.iter().map(|waiting| !waiting.revents().is_empty()).collect();
            let mut ready = ready.into_iter();
            // Who hung up is no longer asked.
            self.terminals
                .retain_mut(|terminal| ready.next() != Some(true) || terminal.read().is_ok());
        }
    }
}

impl Terminal {
    /// Reads what is there.
    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 256];
        match self.file.read(&mut chunk)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                self.typed.extend_from_slice(&chunk[..length]);
                Ok(())
            }
        }
    }

    /// The next whole line; one that does not end is an empty one.
    fn line(&mut self) -> Option<String> {
        if let Some(end) = self.typed.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.typed.drain(..=end).collect();
            return Some(String::from_utf8_lossy(&line).trim().to_owned());
        }
        (self.typed.len() > TYPED_BYTES_MAX).then(|| {
            self.typed.clear();
            String::new()
        })
    }
}

fn names(active: &Path) -> io::Result<Vec<String>> {
    let mut text = String::new();
    File::open(active)?.take(ACTIVE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text.split_whitespace().take(CONSOLES_MAX).map(str::to_owned).collect())
}

fn terminal(path: &Path) -> io::Result<Terminal> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = rustix::fs::open(path, flags, Mode::empty())?.into();
    // Only opening must not wait, for a modem that is not there; a full line is written out.
    rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
    Ok(Terminal { file, typed: Vec::new() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::words;
    use super::*;

    /// Two consoles, and what stands before them.
    fn pair() -> (Console, [UnixStream; 2]) {
        let ((ours, theirs), (also, other)) =
            (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let terminal = |stream: UnixStream| Terminal {
            file: File::from(std::os::fd::OwnedFd::from(stream)),
            typed: Vec::new(),
        };
        (Console { terminals: vec![terminal(ours), terminal(also)] }, [theirs, other])
    }

    #[test]
    fn all_consoles_hear_and_any_may_answer() {
        let (mut console, [mut first, mut second]) = pair();
        console.say(&words::HELLO);
        for heard in [&mut first, &mut second] {
            let mut bytes = vec![0; 4096];
            let length = heard.read(&mut bytes).unwrap();
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            assert!(text.contains(&*words::HELLO.english) && text.contains(&*words::HELLO.french));
        }
        second.write_all(b"S64").unwrap();
        first.write_all(b"no").unwrap();
        second.write_all(b"GNE0R \r\nnext\n").unwrap();
        assert_eq!(console.read_line().unwrap(), "S64GNE0R");
        drop(first);
        assert_eq!(console.read_line().unwrap(), "next");
        drop(second);
        let error = console.read_line().unwrap_err().to_string();
        assert!(error.contains("no console to type at"), "{error}");
    }

    #[test]
    fn a_line_without_end_is_thrown_away() {
        let (mut console, [mut first, _second]) = pair();
        first.write_all(&[b'x'; TYPED_BYTES_MAX + 1]).unwrap();
        assert_eq!(console.read_line().unwrap(), "");
    }
}
