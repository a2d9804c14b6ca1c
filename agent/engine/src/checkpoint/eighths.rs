//! FP8 tensors and the scales that belong to them (DeepSeek-V3, `README_WEIGHTS.md`): `NAME.weight` in `F8_E4M3` and
//! `NAME.weight_scale_inv` in F32, one for each block of 128 rows and columns, which weights are multiplied by.
//!
//! Invariants: a tensor is FP8 if and only if it has scales; none of its weights is a NaN, and none of its scales makes
//! one. E4M3 has no infinities.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;

use kernels::{Format, SCALED};

use super::CheckpointError;
use crate::gguf::Place;
use crate::safetensors::Entry;
use crate::weights::FileBytes;

type Entries = BTreeMap<String, (usize, Entry)>;

/// Ends the name of scales.
const SUFFIX: &str = "_scale_inv";
/// What weights are multiplied by; real ones lie between 1e-6 and 1e-2.
const SCALES: std::ops::RangeInclusive<f32> = 0.0..=1e9;

/// Scales that no tensor has asked for yet.
pub(super) struct Pairs {
    left: Entries,
    /// Whether the configuration announced FP8.
    announced: bool,
}

impl Pairs {
    /// Sets scales apart.
    pub(super) fn of(entries: Entries, announced: bool) -> (Self, Entries) {
        let (left, others) = entries.into_iter().partition(|(name, _)| name.ends_with(SUFFIX));
        (Self { left, announced }, others)
    }

    /// Tensor `name` is not part of the model, and so are its scales.
    pub(super) fn leave_out(&mut self, name: &str) {
        self.left.remove(&format!("{name}{SUFFIX}"));
    }

    /// Where the scales of tensor `name` are, if it has any. Reads it whole, as whoever has hashed it did.
    pub(super) fn scales(
        &mut self,
        name: &str,
        file: usize,
        entry: &Entry,
        files: &[FileBytes],
    ) -> Result<Option<Place>, CheckpointError> {
        if entry.format != Format::F8 {
            return Ok(None);
        }
        let wrong = |name: &str, problem: String| {
            Err(CheckpointError::Eighths { name: name.to_owned(), problem })
        };
        if !self.announced {
            let problem = "is F8_E4M3, but config.json has no quantization_config that says so";
            return wrong(name, problem.to_owned());
        }
        let [rows, columns] = entry.shape[..] else {
            return wrong(
                name,
                format!("is F8_E4M3 of shape {:?}, expected a matrix", entry.shape),
            );
        };
        if let Some(at) = first_nan(bytes(files, file, entry)) {
            return wrong(name, format!("is F8_E4M3, and its number {at} is a NaN"));
        }
        let scales = format!("{name}{SUFFIX}");
        let Some((file, entry)) = self.left.remove(&scales) else {
            return wrong(name, format!("is F8_E4M3, but there is no {scales:?}"));
        };
        let expected = [rows.div_ceil(SCALED), columns.div_ceil(SCALED)];
        if entry.format != Format::F32 || entry.shape != expected {
            let found = format!("is {:?} of shape {:?}", entry.format, entry.shape);
            return wrong(&scales, format!("{found}, expected F32 of shape {expected:?}"));
        }
        let numbers = bytes(files, file, &entry).as_chunks().0.iter();
        let mut numbers = numbers.map(|number| f32::from_le_bytes(*number));
        match numbers.find(|scale| !SCALES.contains(scale)) {
            Some(scale) => wrong(&scales, format!("has a scale of {scale}, expected {SCALES:?}")),
            None => Ok(Some(Place { file, extent: entry.extent })),
        }
    }

    /// Scales of what is not FP8 would have changed it.
    pub(super) fn end(self) -> Result<(), CheckpointError> {
        match self.left.into_keys().next() {
            Some(name) => {
                let problem = "belongs to no F8_E4M3 tensor".to_owned();
                Err(CheckpointError::Eighths { name, problem })
            }
            None => Ok(()),
        }
    }
}

/// Where the first NaN is. Whole runs are looked at, so that vectors do it as fast as memory brings them.
fn first_nan(numbers: &[u8]) -> Option<usize> {
    let is_nan = |bits: &u8| bits & 0x7f == 0x7f;
    let mut runs = numbers.chunks(4096);
    let run = runs.position(|run| run.iter().fold(false, |found, bits| found | is_nan(bits)))?;
    let before = run.saturating_mul(4096);
    let within = numbers.get(before..)?.iter().position(is_nan)?;
    before.checked_add(within)
}

/// An entry's bytes; it was parsed from that file, and lies in it.
fn bytes<'f>(files: &'f [FileBytes], file: usize, entry: &Entry) -> &'f [u8] {
    files.get(file).and_then(|file| file.get(entry.extent.clone())).unwrap_or_default()
}
