//! How far it is, how fast, and how long yet: one line that is written over on a terminal, else a line now and then.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::copy::{Phase, Watch};

const EVERY_ON_TERMINAL: Duration = Duration::from_millis(200);
const EVERY_ELSEWHERE: Duration = Duration::from_secs(5);

/// Writes to standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    interrupted: Arc<AtomicBool>,
    is_terminal: bool,
    phase: Option<(Phase, Instant)>,
    shown: Option<Instant>,
    /// The line on the terminal is not finished.
    is_open: bool,
}

impl Progress {
    pub(crate) fn new(interrupted: Arc<AtomicBool>) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { interrupted, is_terminal, phase: None, shown: None, is_open: false }
    }
}

impl Watch for Progress {
    fn see(&mut self, phase: Phase, done: u64, total: u64) {
        let now = Instant::now();
        let begun = match self.phase {
            Some((current, begun)) if current == phase => begun,
            _ => {
                self.phase = Some((phase, now));
                self.shown = None;
                now
            }
        };
        let every = if self.is_terminal { EVERY_ON_TERMINAL } else { EVERY_ELSEWHERE };
        let is_due = self.shown.is_none_or(|shown| now.duration_since(shown) >= every);
        if is_due || done == total {
            self.shown = Some(now);
            let is_last = done == total;
            self.is_open = self.is_terminal && !is_last;
            show(&line(phase, done, total, now.duration_since(begun)), self.is_terminal, is_last);
        }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_open {
            writeln!(std::io::stderr()).ok();
        }
    }
}

/// Bytes as people read them, in powers of 1024.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: &[&str] = &["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10 / 1024;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

fn show(line: &str, is_terminal: bool, is_last: bool) {
    let mut stderr = std::io::stderr().lock();
    // Back to the start of the line, and away with what is longer than the new one.
    let (before, after) = match (is_terminal, is_last) {
        (true, false) => ("\r\x1b[K", ""),
        (true, true) => ("\r\x1b[K", "\n"),
        (false, _) => ("", "\n"),
    };
    // A closed terminal must not stop a disk from being finished.
    write!(stderr, "{before}{line}{after}").and_then(|()| stderr.flush()).ok();
}

fn line(phase: Phase, done: u64, total: u64, passed: Duration) -> String {
    let what = match phase {
        Phase::Check => "checking the image",
        Phase::Clear => "clearing the gaps",
        Phase::Write => "writing",
        Phase::ReadBack => "reading back",
    };
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let mut line = format!("{what:<19} {} of {}, {percent} %", size(done), size(total));
    let passed_ms = passed.as_millis();
    // The first piece has no rate: its time is not known.
    if passed_ms > 0 && done > 0 {
        let rate = u64::try_from(u128::from(done) * 1000 / passed_ms).unwrap_or(u64::MAX);
        line += &format!(", {}/s", size(rate));
        if done < total {
            let left_s = passed_ms * u128::from(total - done) / u128::from(done) / 1000;
            line += &format!(", {}:{:02} left", left_s / 60, left_s % 60);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_cut_not_rounded_up() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (1 << 40, "1.0 TiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_line_has_rate_and_rest() {
        let two = Duration::from_secs(2);
        assert_eq!(
            line(Phase::Write, 64 << 20, 256 << 20, two),
            "writing             64.0 MiB of 256.0 MiB, 25 %, 32.0 MiB/s, 0:06 left"
        );
        assert!(line(Phase::ReadBack, 5, 5, two).ends_with("100 %, 2 bytes/s"));
        assert!(line(Phase::Write, 5, 9, Duration::ZERO).ends_with("55 %"));
        assert!(line(Phase::Clear, 0, 0, two).ends_with("0 %"));
    }
}
