use std::fs;

use evidence::ledger::sign_note;

use super::*;

const ORIGIN: &str = "casemate-ledger/test";
const BOOT: &str = "00112233445566778899aabbccddeeff";

/// Stands for the TPM: a signature is the word.
fn sign(checkpoint: &Checkpoint) -> String {
    sign_note(&checkpoint.body(), ORIGIN, [0; 4], b"signed")
}

fn reopen(folder: &Path) -> Result<Ledger, StoreError> {
    Unjudged::read(folder, BOOT)?
        .judge(ORIGIN, |note| Checkpoint::parse(note, |_, signature| signature == b"signed"))
}

fn refuse(ledger: &mut Ledger, reason: &str) -> u64 {
    let event = Event::BundleRefused { reason: reason.to_owned() };
    ledger.append("2026-11-24T00:00:00Z".to_owned(), event).unwrap()
}

fn checkpoint(ledger: &mut Ledger) {
    let head = ledger.head(ORIGIN);
    ledger.keep_checkpoint(&sign(&head), head.size).unwrap();
}

/// Three records, the first two of them under a checkpoint.
fn filled() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = reopen(folder.path()).unwrap();
    checkpoint(&mut ledger);
    refuse(&mut ledger, "first");
    refuse(&mut ledger, "second");
    checkpoint(&mut ledger);
    refuse(&mut ledger, "third");
    folder
}

/// Edits the records' file as text.
fn edit(folder: &Path, change: impl FnOnce(String) -> String) {
    let path = folder.join("records");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, change(text)).unwrap();
}

#[test]
fn records_survive_a_restart_with_their_proofs() {
    let folder = filled();
    let mut ledger = reopen(folder.path()).unwrap();
    assert_eq!((ledger.size(), ledger.cut(), ledger.has_unsigned()), (3, 0, true));
    assert_eq!(refuse(&mut ledger, "fourth"), 3);
    let head = ledger.head(ORIGIN);
    for proven in ledger.proven().unwrap() {
        let proof: Vec<_> = proven
            .proof
            .iter()
            .map(|hash| <[u8; 32]>::try_from(hex::decode(hash).unwrap()).unwrap())
            .collect();
        head.open(proven.index, &proven.record, &proof).unwrap();
    }
}

#[test]
fn a_torn_last_record_is_cut_and_the_ledger_goes_on() {
    let folder = filled();
    edit(folder.path(), |text| text[..text.len() - 5].to_owned());
    let mut ledger = reopen(folder.path()).unwrap();
    assert_eq!(ledger.size(), 2);
    assert!(ledger.cut() > 0);
    assert_eq!(refuse(&mut ledger, "again"), 2);
    assert_eq!((reopen(folder.path()).unwrap().size(), ledger.size()), (3, 3));
}

#[test]
fn a_ledger_shorter_than_its_checkpoint_was_cut() {
    let folder = filled();
    edit(folder.path(), |text| text.lines().take(1).map(|line| format!("{line}\n")).collect());
    let error = reopen(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Cut { found: 1, signed: 2 }), "{error}");
}

#[test]
fn a_torn_record_that_was_signed_counts_as_cut() {
    let folder = filled();
    edit(folder.path(), |text| text.lines().take(2).collect::<Vec<_>>().join("\n"));
    let error = reopen(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Cut { found: 1, signed: 2 }), "{error}");
    let left = fs::read_to_string(folder.path().join("records")).unwrap();
    assert!(left.contains("second"), "a refused ledger stays as it was found");
}

#[test]
fn an_edited_record_gives_another_root() {
    let folder = filled();
    edit(folder.path(), |text| text.replace("first", "worst"));
    let error = reopen(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Root { signed: 2 }), "{error}");
}

#[test]
fn reordered_and_foreign_lines_are_refused() {
    let folder = filled();
    edit(folder.path(), |text| text.lines().rev().map(|line| format!("{line}\n")).collect());
    assert!(matches!(reopen(folder.path()), Err(StoreError::Edited { line: 1, .. })));
    let folder = filled();
    edit(folder.path(), |text| text + "{}\n");
    assert!(matches!(reopen(folder.path()), Err(StoreError::Edited { line: 4, .. })));
}

#[test]
fn an_endless_line_is_refused_without_reading_it_all() {
    let folder = filled();
    edit(folder.path(), |text| text + &"x".repeat(1 << 20));
    assert!(matches!(reopen(folder.path()), Err(StoreError::Disk { .. })));
}

#[test]
fn a_removed_or_foreign_checkpoint_is_refused() {
    let folder = filled();
    fs::remove_file(folder.path().join("checkpoint")).unwrap();
    let error = reopen(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::NoCheckpoint { found: 3 }), "{error}");

    let folder = filled();
    let path = folder.path().join("checkpoint");
    let forged = fs::read_to_string(&path).unwrap().replace("\n2\n", "\n1\n");
    fs::write(&path, &forged).unwrap();
    assert!(matches!(reopen(folder.path()), Err(StoreError::Root { signed: 1 })));

    let body = Checkpoint { origin: ORIGIN.to_owned(), size: 2, root: [0; 32] }.body();
    fs::write(&path, sign_note(&body, ORIGIN, [0; 4], b"forged")).unwrap();
    assert!(matches!(reopen(folder.path()), Err(StoreError::Checkpoint { .. })));
}

#[test]
fn only_the_newest_records_are_kept_in_memory() {
    let mut recent = VecDeque::new();
    for index in 0..RECENT_MAX + 2 {
        remember(&mut recent, index.to_string());
    }
    assert_eq!(recent.len() as u64, RECENT_MAX);
    assert_eq!(recent.front().map(String::as_str), Some("2"));
}
