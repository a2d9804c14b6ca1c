use std::collections::BTreeMap;

use super::*;
use crate::gguf::Tensor;
use crate::synthetic::{File, families};

fn find(case: &str, change: impl FnOnce(&mut File) -> &mut File) -> Result<Weights, String> {
    let mut file = families::golden(case);
    change(&mut file);
    let bytes = file.build();
    let gguf = Gguf::parse(&bytes).unwrap();
    let shape = Shape::read(&gguf).unwrap();
    Weights::find(&gguf, &shape, Arc::new(bytes.clone())).map_err(|error| error.to_string())
}

fn refusal(case: &str, change: impl FnOnce(&mut File) -> &mut File) -> String {
    find(case, change).unwrap_err()
}

#[test]
fn fused_and_stacked_tensors_are_taken_apart_where_they_lie() {
    let weights = find("phi3", |f| f).unwrap();
    let AttentionWeights::Grouped(grouped) = &weights.layers[0].attention else { panic!() };
    let [q, k, v] = [&grouped.query, &grouped.key, &grouped.value];
    assert_eq!((q.rows(), k.rows(), v.rows()), (64, 32, 32));
    assert_eq!((q.extent.end, k.extent.end), (k.extent.start, v.extent.start));
    let weights = find("deepseek3", |f| f).unwrap();
    let FeedForward::Experts(experts) = &weights.layers[1].feed_forward else { panic!() };
    assert_eq!(experts.experts.len(), 8);
    let (first, second) = (&experts.experts[0].down, &experts.experts[1].down);
    assert_eq!((first.rows(), first.extent.end), (64, second.extent.start));
}

#[test]
fn a_missing_or_misshapen_tensor_is_named_with_what_was_expected() {
    let error = refusal("qwen2", |f| f.remove_tensor("blk.1.attn_k.bias"));
    assert_eq!(error, "the file lacks tensor \"blk.1.attn_k.bias\"");
    let error = refusal("llama", |f| f.rename_tensor("blk.0.ffn_up.weight", "blk.0.ffn_gate_up"));
    assert_eq!(error, "the file lacks tensor \"blk.0.ffn_up.weight\"");
    let error = refusal("phi3", |f| f.replace_u32("phi3.attention.head_count_kv", 4));
    assert!(error.contains("\"blk.0.attn_qkv.weight\" has 128 rows of 64, expected 192 of 64"));
    let error = refusal("mixtral", |f| f.replace_u32("llama.expert_count", 7));
    assert!(error.contains("ffn_gate_exps.weight\" has 768 rows of 64, expected 672"), "{error}");
    let error = refusal("deepseek2", |f| {
        f.rename_tensor("blk.0.attn_k_b.weight", "blk.0.attn_kv_b.weight")
    });
    assert_eq!(error, "the file lacks tensor \"blk.0.attn_k_b.weight\"");
    let error = refusal("deepseek2-lite", |f| {
        f.tensor("blk.1.exp_probs_b.bias", Format::F32, &[8], &[0; 32])
    });
    assert!(error.contains("\"blk.1.exp_probs_b.bias\" belongs to no model"), "{error}");
    let error = refusal("qwen2", |f| {
        f.remove_tensor("blk.0.attn_q.bias");
        f.tensor("blk.0.attn_q.bias", Format::Q8_0, &[64], &[0; 68])
    });
    assert!(error.contains("\"blk.0.attn_q.bias\" is Q8_0, expected F32"), "{error}");
}

#[test]
fn factors_are_chosen_by_the_context_and_checked() {
    let weights = find("phi3-long", |f| f).unwrap();
    let first = |context| weights.rope_factors(context).unwrap()[0];
    assert!(first(16) == first(1) && first(17) == first(4096) && first(16) != first(17));
    let error = refusal("phi3-long", |f| f.remove("phi3.rope.scaling.original_context_length"));
    assert!(error.contains("original_context_length"), "{error}");
    let error = refusal("phi3-long", |f| f.remove_tensor("rope_factors_short.weight"));
    assert!(error.contains("rope_factors_short.weight"), "{error}");
    for odd in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = refusal("llama3", |f| {
            let factors: Vec<u8> = [odd; 8].iter().flat_map(|v| v.to_le_bytes()).collect();
            f.remove_tensor("rope_freqs.weight");
            f.tensor("rope_freqs.weight", Format::F32, &[8], &factors)
        });
        assert!(error.contains("\"rope_freqs.weight\" has a factor of"), "{error}");
    }
}

#[test]
fn parts_of_a_scaled_matrix_have_its_rows_scales() {
    let (rows, columns) = (300, 130);
    let codes: Vec<u8> = (0..127).cycle().take(rows * columns).collect();
    let scales: Vec<u8> = (1..=6_u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let place = Place { file: 1, extent: 0..scales.len() };
    let tensor = Tensor {
        file: 0,
        format: Format::F8,
        packed: false,
        columns,
        rows,
        matrix_rows: rows,
        type_at: 0,
        extent: 0..codes.len(),
        scales: Some(place),
    };
    let files: Vec<FileBytes> = vec![Arc::new(codes), Arc::new(scales)];
    let gguf = Gguf::of_parts(BTreeMap::new(), BTreeMap::from([("x", tensor)]));
    let row = |stored: &Stored, row: usize| {
        let files = files.clone();
        let (embedding, output) = (stored.clone(), stored.clone());
        let (layers, output_norm, factors) = (Vec::new(), Vec::new(), RopeFactors::None);
        let weights = Weights { files, embedding, layers, output_norm, output, factors };
        let mut out = vec![0.0; columns];
        weights.matrix(stored).decode_row(row, &mut out);
        out
    };
    let whole = Finder::new(&gguf, &files).matrix("x", rows, columns).unwrap();
    let parts = Finder::new(&gguf, &files).parts("x", [100, 150, 50], columns).unwrap();
    let mut first = 0;
    for part in parts {
        for i in [0, part.rows - 1] {
            assert_eq!(row(&part, i), row(&whole, first + i), "row {i} from {first}");
        }
        first += part.rows;
    }
}
