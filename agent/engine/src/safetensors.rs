//! safetensors (Hugging Face, "Format"): plain tensors of a model file.
//!
//! Invariants: the header's length is bounded; every byte after it belongs to exactly one tensor; no name is there twice;
//! all arithmetic on what the file says is checked.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use kernels::Format;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// Bytes of a header, as in Hugging Face's own reader.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Tensors of a file; a whole DeepSeek-V3 has 91,000 in 163 files.
const TENSORS_MAX: usize = 131_072;

/// A tensor's shape and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How numbers are stored.
    pub format: Format,
    /// Its dimensions, the elements of a row last.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub extent: Range<usize>,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// The file has no whole header.
    #[error(
        "the file has {file} bytes and claims a header of {header}, expected at most {HEADER_BYTES_MAX} and within the file"
    )]
    Header {
        /// Bytes of the file.
        file: usize,
        /// Bytes that the header claims.
        header: u64,
    },
    /// The header is not what it must be.
    #[error("the header is no description of tensors: {0}")]
    Json(#[from] serde_json::Error),
    /// A format that is not plain numbers.
    #[error("tensor {name:?} is {found}, supported are F32, F16, BF16 and F8_E4M3")]
    Format {
        /// The tensor.
        name: String,
        /// Its format.
        found: String,
    },
    /// A tensor's bytes are not where they can be.
    #[error(
        "tensor {name:?} has shape {shape:?} and bytes {begin} to {end} of {available}: {problem}"
    )]
    Extent {
        /// The tensor.
        name: String,
        /// Its dimensions.
        shape: Vec<u64>,
        /// Where it begins.
        begin: u64,
        /// Where it ends.
        end: u64,
        /// Bytes after the header.
        available: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Bytes at the end belong to no tensor.
    #[error("{left} bytes at the end belong to no tensor")]
    Left {
        /// How many.
        left: u64,
    },
}

/// What the header says of a tensor.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Claim {
    fn misplaced(&self, name: &str, available: usize) -> SafetensorsError {
        let (begin, end) = self.data_offsets;
        SafetensorsError::Extent {
            name: name.to_owned(),
            shape: self.shape.clone(),
            begin,
            end,
            available: available as u64,
            problem: "is not between the one before it and the end",
        }
    }
}

/// Parses a whole file.
///
/// # Errors
/// At the first thing that is not as it must be.
pub fn parse(file: &[u8]) -> Result<BTreeMap<String, Entry>, SafetensorsError> {
    parse_without(file, &[])
}

/// As [`parse`], without the tensors called `unused`, which may have any format.
///
/// # Errors
/// As [`parse`].
pub fn parse_without(
    file: &[u8],
    unused: &[&str],
) -> Result<BTreeMap<String, Entry>, SafetensorsError> {
    let (length, rest) = file.split_first_chunk().unwrap_or((&[0; 8], &[]));
    let header_bytes = u64::from_le_bytes(*length);
    let short = SafetensorsError::Header { file: file.len(), header: header_bytes };
    let header = usize::try_from(header_bytes).ok().filter(|_| header_bytes <= HEADER_BYTES_MAX);
    let Some((header, data)) = header.and_then(|bytes| rest.split_at_checked(bytes)) else {
        return Err(short);
    };
    let Claims(mut claims) = serde_json::from_slice(header)?;
    claims.sort_by_key(|(_, claim)| claim.data_offsets);
    let start = file.len().saturating_sub(data.len());
    let mut tensors = BTreeMap::new();
    let mut free_from = 0;
    for (name, claim) in claims {
        if unused.contains(&name.as_str()) {
            let (begin, end) = claim.data_offsets;
            if begin != free_from || end < begin || end > data.len() as u64 {
                return Err(claim.misplaced(&name, data.len()));
            }
            free_from = end;
            continue;
        }
        let entry = place(&name, &claim, free_from, start, data.len())?;
        free_from = claim.data_offsets.1;
        tensors.insert(name, entry);
    }
    match (data.len() as u64).saturating_sub(free_from) {
        0 => Ok(tensors),
        left => Err(SafetensorsError::Left { left }),
    }
}

fn place(
    name: &str,
    claim: &Claim,
    free_from: u64,
    start: usize,
    available: usize,
) -> Result<Entry, SafetensorsError> {
    let format = match claim.dtype.as_str() {
        "F32" => Format::F32,
        "F16" => Format::F16,
        "BF16" => Format::Bf16,
        "F8_E4M3" => Format::F8,
        other => {
            let (name, found) = (name.to_owned(), other.to_owned());
            return Err(SafetensorsError::Format { name, found });
        }
    };
    let (begin, end) = claim.data_offsets;
    let fail = |problem| SafetensorsError::Extent {
        name: name.to_owned(),
        shape: claim.shape.clone(),
        begin,
        end,
        available: available as u64,
        problem,
    };
    if begin != free_from {
        return Err(fail("does not begin where the one before it ends"));
    }
    let shape = claim.shape.iter().map(|size| usize::try_from(*size).ok().filter(|s| *s > 0));
    let shape: Option<Vec<usize>> = shape.collect();
    let shape = shape.filter(|shape| (1..=4).contains(&shape.len()));
    let shape = shape.ok_or_else(|| fail("not 1 to 4 dimensions above 0"))?;
    let bytes = shape.iter().try_fold(format.block_bytes(), |all, size| all.checked_mul(*size));
    if bytes.map(|bytes| bytes as u64) != end.checked_sub(begin) {
        return Err(fail("not as many bytes as the shape needs"));
    }
    let absolute = |at: u64| usize::try_from(at).ok().filter(|at| *at <= available);
    let extent = absolute(begin).zip(absolute(end));
    let extent = extent.and_then(|(b, e)| Some(start.checked_add(b)?..start.checked_add(e)?));
    Ok(Entry { format, shape, extent: extent.ok_or_else(|| fail("outside the file"))? })
}

/// The header's tensors; a map that took the last of two of the same name would hide the first.
struct Claims(Vec<(String, Claim)>);

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Claims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
                use serde::de::Error;
                let mut seen = std::collections::BTreeSet::new();
                let mut claims = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format_args!("{name:?} is there twice")));
                    }
                    if seen.len() > TENSORS_MAX {
                        return Err(A::Error::custom(format_args!(
                            "more than {TENSORS_MAX} tensors"
                        )));
                    }
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>()?;
                    } else {
                        claims.push((name, map.next_value()?));
                    }
                }
                Ok(Claims(claims))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests may panic")]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 1);
        bytes
    }

    fn error(header: &str, data: usize) -> String {
        parse(&file(header, data)).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_parsed() {
        let header = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},
            "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let tensors = parse(&file(header, 20)).unwrap();
        let start = header.len() + 8;
        assert_eq!(tensors["a"].extent, start..start + 8);
        let b = Entry { format: Format::Bf16, shape: vec![2, 3], extent: start + 8..start + 20 };
        assert_eq!(tensors["b"], b);
        assert!(parse(&file("{}", 0)).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_covered_once_and_whole_is_refused() {
        let one = |from: u64, to: u64| {
            format!(r#"{{"a":{{"dtype":"F16","shape":[4],"data_offsets":[{from},{to}]}}}}"#)
        };
        assert!(error(&one(0, 8), 9).contains("1 bytes at the end"));
        assert!(error(&one(2, 10), 10).contains("does not begin where"));
        assert!(error(&one(0, 6), 6).contains("as the shape needs"));
        assert!(error(&one(0, 8), 7).contains("outside the file"));
        assert!(error(&one(8, 0), 8).contains("does not begin"));
        let two = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},
            "b":{"dtype":"F16","shape":[2],"data_offsets":[2,6]}}"#;
        assert!(error(two, 6).contains("\"b\""));
        let twice = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},
            "a":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}}"#;
        assert!(error(twice, 8).contains("\"a\" is there twice"));
    }

    #[test]
    fn what_is_not_used_may_have_any_format_but_not_any_place() {
        let file = |end: u64, rest: usize| {
            let header = format!(
                r#"{{"a":{{"dtype":"I64","shape":[1],"data_offsets":[0,{end}]}},
                "b":{{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}}}"#
            );
            super::tests::file(&header, rest)
        };
        assert_eq!(parse_without(&file(8, 12), &["a"]).unwrap().len(), 1);
        assert!(parse(&file(8, 12)).unwrap_err().to_string().contains("is I64"));
        for end in [7, 9, u64::MAX] {
            assert!(parse_without(&file(end, 12), &["a"]).is_err(), "{end}");
        }
    }

    #[test]
    fn lying_headers_and_other_formats_are_refused() {
        assert!(parse(b"").unwrap_err().to_string().contains("no description"));
        assert!(
            parse(&[0xff; 16]).unwrap_err().to_string().contains("header of 18446744073709551615")
        );
        assert!(parse(&file("{}", 0)[..9]).unwrap_err().to_string().contains("header of 2"));
        assert!(
            error(r#"{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}"#, 2).contains("is I8")
        );
        let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
        assert!(error(huge, 0).contains("as the shape needs"));
        assert!(
            error(r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#, 0)
                .contains("above 0")
        );
        assert!(
            error(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#, 4)
                .contains("unknown field")
        );
    }
}
