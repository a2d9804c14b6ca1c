use kernels::{Isa, Pool};

use super::*;
use crate::checkpoint::Texts;
use crate::cpu::Cpu;
use crate::model::{Row, forward};
use crate::synthetic::families::{EIGHTHS, plain, quantised};
use crate::synthetic::folder::folder;

const TOKENS: usize = 260;
/// Positions whose distributions are compared.
const POSITIONS: usize = 40;

fn checkpoint(case: &str) -> Checkpoint {
    let folder = folder(case, TOKENS);
    let config = serde_json::to_vec(&folder.config).unwrap();
    let tokenizer = serde_json::to_vec(&folder.tokenizer).unwrap();
    let texts = Texts {
        config: &config,
        tokenizer: &tokenizer,
        tokenizer_config: None,
        chat_template: None,
    };
    let files = folder.files.into_iter().map(|file| Arc::new(file) as FileBytes);
    Checkpoint::read(&texts, files.collect()).unwrap()
}

fn of_checkpoint(case: &str, kind: Kind) -> Vec<u8> {
    let mut file = Vec::new();
    let written = quantise_checkpoint(&checkpoint(case), kind, &mut file).unwrap();
    assert_eq!(written.bytes, file.len() as u64, "{case}");
    file
}

fn of_gguf(file: Vec<u8>, kind: Kind) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let file: FileBytes = Arc::new(file);
    quantise_gguf(&file, kind, &mut out).map_err(|error| error.to_string())?;
    Ok(out)
}

fn logits(gguf: &Gguf<'_>, files: Vec<FileBytes>) -> Vec<f32> {
    let shape = Shape::read(gguf).unwrap();
    let weights = Weights::find_in(gguf, &shape, files).unwrap();
    let pool = Pool::new(1).unwrap();
    let mut cpu = Cpu::new(Isa::detect(), pool, shape, weights, 8, 128);
    let token = |position: usize| u32::try_from((position * 37 + 11) % 128).unwrap();
    let rows: Vec<_> = (0..POSITIONS)
        .map(|position| Row { token: token(position), position, table: &[5, 0, 2], logits: true })
        .collect();
    rows.chunks(16).flat_map(|rows| forward(&mut cpu, rows).to_vec()).collect()
}

/// Mean over the positions of the divergence of Kullback and Leibler, from the distribution of `truth` to that of
/// `found`, in nats.
fn divergence(truth: &[f32], found: &[f32]) -> f64 {
    let logarithms = |logits: &[f32]| -> Vec<f64> {
        let largest = logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        logits.iter().map(|logit| f64::from(logit - largest) - sum.ln()).collect()
    };
    let of_position = |(truth, found): (&[f32], &[f32])| -> f64 {
        let (truth, found) = (logarithms(truth), logarithms(found));
        truth.iter().zip(&found).map(|(t, f)| t.exp() * (t - f)).sum()
    };
    let width = truth.len() / POSITIONS;
    truth.chunks(width).zip(found.chunks(width)).map(of_position).sum::<f64>() / POSITIONS as f64
}

#[test]
fn a_quantised_model_says_nearly_the_same() {
    for (case, eight_max, four_max) in [
        ("llama3", 0.001, 0.1),
        ("qwen2", 0.001, 0.1),
        ("phi3", 0.001, 0.1),
        ("mixtral", 0.01, 0.3),
        ("deepseek3", 0.01, 0.3),
        (EIGHTHS, 0.01, 0.3),
    ] {
        let source = checkpoint(case);
        let truth = logits(&source.view(), source.files());
        let said = [Kind::Q8_0, Kind::Q4_0].map(|kind| {
            let file = of_checkpoint(case, kind);
            assert_eq!(file, of_checkpoint(case, kind), "{case}: not the same file again");
            let gguf = Gguf::parse(&file).unwrap();
            let found = logits(&gguf, vec![Arc::new(file.clone())]);
            divergence(&truth, &found)
        });
        println!("{case}: divergence from the source: Q8_0 {:.2e}, Q4_0 {:.2e}", said[0], said[1]);
        assert!((0.0..eight_max).contains(&said[0]), "{case}: {said:?}");
        assert!((said[0]..four_max).contains(&said[1]), "{case}: {said:?}");
    }
}

/// Which fails if rows are in another order, or experts and heads in other places.
#[test]
fn a_folder_and_the_gguf_file_of_the_same_weights_become_the_same_tensors() {
    for case in ["llama3", "mistral", "mixtral", "qwen2", "phi3", "deepseek2", "deepseek3"] {
        for kind in [Kind::Q8_0, Kind::Q4_0] {
            let of_folder = of_checkpoint(case, kind);
            let of_file = of_gguf(plain(case, TOKENS).build(), kind).unwrap();
            let (folder, file) = (Gguf::parse(&of_folder).unwrap(), Gguf::parse(&of_file).unwrap());
            let names = |gguf: &Gguf<'_>| gguf.tensors().keys().map(|k| (*k).to_owned()).collect();
            let (found, truth): (Vec<String>, Vec<String>) = (names(&folder), names(&file));
            assert_eq!(found, truth, "{case}");
            for (name, truth) in file.tensors() {
                let found = &folder.tensors()[name];
                assert_eq!(
                    (found.format, found.rows, found.matrix_rows, found.columns),
                    (truth.format, truth.rows, truth.matrix_rows, truth.columns),
                    "{case}: {name}"
                );
                let (found, truth) =
                    (&of_folder[found.extent.clone()], &of_file[truth.extent.clone()]);
                // The factors of Llama 3 are computed here, and by the file's maker.
                assert!(found == truth || *name == "rope_freqs.weight", "{case}: {name}");
            }
        }
    }
}

#[test]
fn what_a_file_has_besides_matrices_is_kept() {
    let source = plain("mixtral", TOKENS).build();
    let file = of_gguf(source.clone(), Kind::Q4_0).unwrap();
    let (before, after) = (Gguf::parse(&source).unwrap(), Gguf::parse(&file).unwrap());
    for key in before.keys() {
        assert_eq!(before.value(key), after.value(key), "{key}");
    }
    assert_eq!(after.integer("general.file_type", 0, 9).unwrap(), 2);
    let format = |name: &str| after.tensors()[name].format;
    assert_eq!(format("token_embd.weight"), Format::Q8_0);
    assert_eq!(format("blk.0.attn_v.weight"), Format::Q4_0);
    assert_eq!(format("blk.0.ffn_gate_inp.weight"), Format::F32);
    assert_eq!(format("blk.0.attn_norm.weight"), Format::F32);
    assert_eq!(after.tensors()["blk.0.ffn_up_exps.weight"].matrix_rows, 96);
}

#[test]
fn what_cannot_be_rounded_well_is_refused() {
    let error = of_gguf(quantised("llama").build(), Kind::Q4_0).unwrap_err();
    assert!(error.contains("is Q8_0 already"), "{error}");
    assert!(of_gguf(b"GGUF".to_vec(), Kind::Q8_0).unwrap_err().contains("expected \"GGUF\""));
    for bad in [f32::NAN, f32::INFINITY, -1e6] {
        let mut source = plain("llama", TOKENS).build();
        let at = Gguf::parse(&source).unwrap().tensors()["blk.1.ffn_up.weight"].extent.start;
        source[at + 64 * 4 * 3..][..4].copy_from_slice(&bad.to_le_bytes());
        let error = of_gguf(source, Kind::Q8_0).unwrap_err();
        assert!(
            error.contains("\"blk.1.ffn_up.weight\" has") && error.contains("row 3"),
            "{error}"
        );
    }
    let error =
        of_gguf(plain("llama", TOKENS).remove_tensor("blk.1.ffn_up.weight").build(), Kind::Q8_0);
    assert!(error.unwrap_err().contains("lacks tensor"));
}
