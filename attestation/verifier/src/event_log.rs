//! `casemate-verify eventlog`: exit status 0 only for a log that was read whole. A bank that some event was not
//! measured into is named, and gives no values.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context as _;
use evidence::eventlog::{Event, EventLog, LOG_BYTES_MAX};
use serde::Serialize;

use crate::{EventLogArgs, Report, files};

/// What a log gives.
#[derive(Debug, Serialize)]
struct Replayed {
    /// Values of the PCRs that were extended, by bank and index.
    pcrs: BTreeMap<&'static str, BTreeMap<u8, String>>,
    /// Banks that the log announces and does not explain, and why not.
    incomplete: BTreeMap<String, String>,
    events: Vec<ShownEvent>,
}

#[derive(Debug, Serialize)]
struct ShownEvent {
    number: usize,
    pcr: u32,
    #[serde(rename = "type")]
    kind: String,
    digests: BTreeMap<&'static str, String>,
    /// Hex.
    data: String,
}

pub(crate) fn run(args: &EventLogArgs) -> anyhow::Result<Report> {
    let bytes_max = u64::try_from(LOG_BYTES_MAX)?;
    let bytes = files::read(&args.file, bytes_max)?;
    let log = EventLog::parse(&bytes)
        .with_context(|| format!("{} is not a whole event log", args.file.display()))?;
    let replayed = replay(&log);
    let text =
        if args.json { serde_json::to_string_pretty(&replayed)? + "\n" } else { lines(&replayed)? };
    Ok(Report { text, established: true })
}

fn replay(log: &EventLog<'_>) -> Replayed {
    let (mut pcrs, mut incomplete) = (BTreeMap::new(), BTreeMap::new());
    for &alg in log.algorithms() {
        match log.replay(alg) {
            Ok(bank) => {
                let values = bank.extended().map(|(index, value)| (index, value.to_string()));
                pcrs.insert(alg.name(), values.collect());
            }
            Err(error) => {
                incomplete.insert(alg.name().to_owned(), error.to_string());
            }
        }
    }
    for id in log.unknown_algorithms() {
        let reason = "this program does not know the algorithm".to_owned();
        incomplete.insert(format!("{id:#06x}"), reason);
    }
    let events = log.events().iter().enumerate().map(|(number, event)| show(number, event));
    Replayed { pcrs, incomplete, events: events.collect() }
}

fn show(number: usize, event: &Event<'_>) -> ShownEvent {
    let digests = event.digests.iter().map(|digest| (digest.alg().name(), digest.to_string()));
    ShownEvent {
        number,
        pcr: event.pcr,
        kind: event.kind.to_string(),
        digests: digests.collect(),
        data: hex::encode(event.data),
    }
}

fn lines(replayed: &Replayed) -> anyhow::Result<String> {
    let mut text = String::new();
    for event in &replayed.events {
        let (pcr, kind) = (event.pcr, &event.kind);
        writeln!(text, "event {:>4}  PCR {pcr:>2}  {kind}", event.number)?;
    }
    for (bank, values) in &replayed.pcrs {
        for (index, value) in values {
            writeln!(text, "{bank:<6}  PCR {index:>2}  {value}")?;
        }
    }
    for (bank, reason) in &replayed.incomplete {
        writeln!(text, "{bank:<6}  not replayed: {reason}")?;
    }
    Ok(text)
}
