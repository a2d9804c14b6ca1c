use super::*;
use crate::gguf::Gguf;
use crate::model::{Row, forward};
use crate::synthetic::{self, families};
use kernels::Scalar;
use std::sync::Arc;

const CONTEXT: usize = 64;

/// One of [`families`], or the model with all formats.
fn file(case: &str) -> Vec<u8> {
    match case {
        "formats" => synthetic::model().build(),
        case => families::quantised(case).build(),
    }
}

fn cpu_of(case: &str, isa: Isa, threads: usize) -> Cpu {
    cpu_with(file(case), isa, threads)
}

fn cpu_with(bytes: Vec<u8>, isa: Isa, threads: usize) -> Cpu {
    let gguf = Gguf::parse(&bytes).unwrap();
    let shape = Shape::read(&gguf).unwrap();
    let weights = Weights::find(&gguf, &shape, Arc::new(bytes.clone())).unwrap();
    Cpu::new(isa, Pool::new(threads).unwrap(), shape, weights, 16, CONTEXT)
}

/// Logits after each token of `tokens`, computed `chunk` tokens at a time, in `table`.
fn run(cpu: &mut Cpu, tokens: &[u32], chunk: usize, table: &[u32]) -> Vec<u32> {
    let mut all = Vec::new();
    let rows: Vec<Row<'_>> = (0..)
        .zip(tokens)
        .map(|(position, &token)| Row { token, position, table, logits: true })
        .collect();
    for rows in rows.chunks(chunk) {
        all.extend(forward(cpu, rows).iter().map(|l| l.to_bits()));
    }
    all
}

#[test]
fn chunks_tables_threads_and_variants_change_no_bit() {
    let tokens: Vec<u32> = (0..40).map(|i| 40 + i * 7 % 90).collect();
    for case in families::CASES.into_iter().chain(["formats"]) {
        let truth = run(&mut cpu_of(case, Isa::Scalar(Scalar), 1), &tokens, 1, &[0, 1, 2]);
        assert!(truth.iter().all(|bits| f32::from_bits(*bits).is_finite()), "{case}");
        let mut other = cpu_of(case, Isa::detect(), 2);
        assert!(truth == run(&mut other, &tokens, 40, &[9, 3, 7]), "{case}");
        assert!(truth == run(&mut other, &tokens, 13, &[1, 15, 0]), "{case}");
        let mut bytes = file(case);
        crate::pack::pack(&mut bytes).unwrap();
        let mut packed = cpu_with(bytes, Isa::detect(), 2);
        assert!(truth == run(&mut packed, &tokens, 13, &[1, 15, 0]), "{case} packed");
    }
}

#[test]
fn a_row_does_not_see_the_others_of_its_batch() {
    for case in families::CASES.into_iter().chain(["formats"]) {
        let mut cpu = cpu_of(case, Isa::detect(), 2);
        let alone = run(&mut cpu, &[50, 60, 70], 3, &[4]);
        let (a, b) = ([4_u32], [5_u32]);
        let mut rows = Vec::new();
        for (position, token) in [50, 60, 70].into_iter().enumerate() {
            rows.push(Row { token, position, table: &a, logits: true });
            rows.push(Row { token: token + 1, position, table: &b, logits: false });
        }
        let beside: Vec<u32> = forward(&mut cpu, &rows).iter().map(|l| l.to_bits()).collect();
        assert!(alone == beside, "{case}");
    }
}

#[test]
fn zeroed_blocks_hold_nothing() {
    for case in ["formats", "deepseek3"] {
        let mut cpu = cpu_of(case, Isa::detect(), 1);
        let table = [7, 2];
        run(&mut cpu, &[50; 20], 20, &table);
        let written = |cpu: &Cpu| {
            cpu.work.cache.iter().any(|l| l.keys.iter().chain(&l.values).any(|byte| *byte != 0))
        };
        assert!(written(&cpu));
        table.iter().for_each(|block| cpu.zero(*block));
        assert!(!written(&cpu), "{case}");
    }
}

#[test]
fn a_window_forgets_and_no_window_does_not() {
    let tokens: Vec<u32> = (0..40).map(|i| 40 + i * 7 % 90).collect();
    let mut other = tokens.clone();
    other[0] += 1;
    let last = |case, tokens: &[u32]| {
        let mut cpu = cpu_of(case, Isa::detect(), 1);
        let logits = run(&mut cpu, tokens, 40, &[0, 1, 2]);
        logits[logits.len() - cpu.work.shape.vocabulary..].to_vec()
    };
    // Two layers of 7 or 9 tokens see at most 17 back.
    for case in ["mistral", "phi3"] {
        assert!(last(case, &tokens) == last(case, &other), "{case}");
    }
    for case in ["llama", "phi3-long", "deepseek3"] {
        assert!(last(case, &tokens) != last(case, &other), "{case}");
    }
}

#[test]
fn the_promised_memory_is_what_is_taken() {
    for case in families::CASES {
        let mut cpu = cpu_of(case, Isa::detect(), 1);
        // As many rows as fit, so that any buffer that is too small has grown.
        let tables = [[0, 1, 2], [3, 4, 5]];
        let rows: Vec<Row<'_>> = (0..STEP_TOKENS_MAX)
            .map(|i| Row { token: 50, position: i / 2, table: &tables[i % 2], logits: true })
            .collect();
        forward(&mut cpu, &rows);
        let promised = Cpu::memory(&cpu.work.shape, 16, CONTEXT);
        let cache: usize = cpu.work.cache.iter().map(|l| l.keys.len() + l.values.len()).sum();
        assert_eq!(cache, promised.cache_bytes, "{case}");
        let turns = cpu.work.turns.len() * 8;
        assert!(cpu.work.buffers.bytes() + turns <= promised.buffer_bytes, "{case} {promised:?}");
    }
}
