use super::*;
use crate::synthetic::{File, model, random};

fn error(file: &[u8]) -> String {
    Gguf::parse(file).unwrap_err().to_string()
}

#[test]
fn a_file_is_parsed() {
    let mut file = File::default();
    file.text("general.name", "tiny").u32("n", 7).f32("x", 0.5).texts("t", &["a", "b"]);
    file.tensor("w", Format::F32, &[2, 3], &[1; 24]).tensor("v", Format::F32, &[1], &[2; 4]);
    let bytes = file.build();
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!(gguf.text("general.name"), Ok("tiny"));
    assert_eq!((gguf.integer("n", 0, 7), gguf.float("x")), (Ok(7), Ok(0.5)));
    assert_eq!(gguf.texts("t").unwrap(), ["a", "b"]);
    let w = &gguf.tensors()["w"];
    assert_eq!((w.columns, w.rows, &bytes[w.extent.clone()]), (2, 3, [1; 24].as_slice()));
    assert_eq!(bytes[gguf.tensors()["v"].extent.clone()], [2; 4]);
}

#[test]
fn a_missing_or_wrong_value_is_named() {
    let mut file = File::default();
    file.text("a", "x").u32("n", 7);
    let bytes = file.build();
    let gguf = Gguf::parse(&bytes).unwrap();
    let text = gguf.integer("a", 1, 2).unwrap_err().to_string();
    assert!(text.contains("\"a\" is a text of 1 bytes") && text.contains("1 to 2"), "{text}");
    assert!(gguf.integer("n", 1, 6).unwrap_err().to_string().contains("is 7"));
    assert!(gguf.text("b").unwrap_err().to_string().contains("lacks \"b\""));
}

#[test]
fn lying_counts_and_lengths_are_refused() {
    let head = |tensors: u64, entries: u64| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        bytes
    };
    assert!(error(b"GGML").contains("expected \"GGUF\""));
    assert!(error(b"GGUF\x02\0\0\0").contains("version 3"));
    assert!(error(&head(u64::MAX, 0)).contains("tensors: 18446744073709551615"));
    assert!(error(&head(0, 5000)).contains("metadata entries: 5000, the maximum is 4096"));
    assert!(error(&head(0, 1)).contains("the file ends"));
    let mut long = head(0, 1);
    long.extend(u64::MAX.to_le_bytes());
    assert!(error(&long).contains("bytes of a string"));
    let mut short = head(0, 1);
    short.extend(1000_u64.to_le_bytes());
    short.extend(b"key");
    assert!(error(&short).contains("1000 more bytes were announced, 3 are left"));
    for (kind, count) in [(8_u32, u64::MAX), (0, 1 << 40), (9, 1), (13, 1)] {
        let mut array = head(0, 1);
        array.extend(1_u64.to_le_bytes());
        array.extend(b"k");
        array.extend(9_u32.to_le_bytes());
        array.extend(kind.to_le_bytes());
        array.extend(count.to_le_bytes());
        array.extend([0; 64]);
        let text = error(&array);
        assert!(text.contains("items of an array") || text.contains("type"), "{text}");
    }
}

#[test]
fn impossible_tensors_are_refused() {
    let build = |format, shape: &[u64], offset: Option<u64>, data: &[u8]| {
        let mut file = File::default();
        file.tensor("a", Format::F32, &[8], &[0; 32]);
        file.tensor("w", format, shape, data);
        if let Some(offset) = offset {
            file.move_last_tensor(offset);
        }
        error(&file.build())
    };
    assert!(build(Format::Q8_0, &[48], None, &[]).contains("not whole blocks"));
    assert!(build(Format::F32, &[0, 4], None, &[]).contains("a dimension is 0"));
    assert!(build(Format::F32, &[1 << 63, 1 << 63], None, &[]).contains("too large"));
    assert!(build(Format::F32, &[1 << 61, 4], None, &[]).contains("more bytes than"));
    assert!(build(Format::F32, &[1; 5], None, &[]).contains("dimensions of a tensor"));
    assert!(build(Format::F32, &[64], None, &[0; 8]).contains("outside the file"));
    assert!(build(Format::F32, &[8], Some(0), &[0; 32]).contains("overlaps"));
    assert!(build(Format::F32, &[8], Some(4), &[0; 32]).contains("not aligned"));
    assert!(build(Format::F32, &[8], Some(u64::MAX - 31), &[0; 32]).contains("outside"));
}

#[test]
fn duplicates_and_odd_alignments_are_refused() {
    let mut file = File::default();
    file.u32("n", 1).u32("n", 1);
    assert!(error(&file.build()).contains("\"n\" is there twice"));
    let mut file = File::default();
    file.tensor("w", Format::F32, &[8], &[0; 32]).tensor("w", Format::F32, &[8], &[0; 32]);
    assert!(error(&file.build()).contains("\"w\" is there twice"));
    for alignment in [0, 1, 48, 1 << 21, u32::MAX] {
        let mut file = File::default();
        file.u32("general.alignment", alignment);
        assert!(error(&file.build()).contains("general.alignment"), "{alignment}");
    }
}

/// Stands in for the fuzz target where there is no fuzzer: no mutation panics, and what is accepted keeps
/// the invariants.
#[test]
fn mutations_of_a_model_never_panic() {
    let file = model().build();
    let header = file.len().min(12_000);
    let mut random = random(1);
    for _ in 0..3000 {
        let mut file = file.clone();
        for _ in 0..=random(3) {
            let at = random(header);
            match random(3) {
                0 => file[at] ^= 1 << random(8),
                1 => file[at] = 0xff,
                _ => file.truncate(header + random(file.len() - header + 1)),
            }
            if file.len() <= header {
                break;
            }
        }
        if let Ok(gguf) = Gguf::parse(&file) {
            let mut extents: Vec<_> = gguf.tensors().values().map(|t| t.extent.clone()).collect();
            extents.sort_by_key(|e| e.start);
            assert!(extents.iter().all(|e| e.end <= file.len() && e.start < e.end));
            assert!(extents.windows(2).all(|w| w[0].end <= w[1].start));
        }
    }
    for end in 0..200 {
        assert!(Gguf::parse(&file[..end]).is_err());
    }
}
