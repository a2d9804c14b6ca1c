//! `logits MODEL FROM TOKEN…`: the logits after each token from number FROM on, on standard output, as 32-bit
//! little-endian floats, for a comparison with another engine.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;

use engine::cpu::Cpu;
use engine::gguf::Gguf;
use engine::limits::{BLOCK_TOKENS, STEP_TOKENS_MAX};
use engine::load::served_context;
use engine::model::{Row, Shape, forward};
use engine::pack::pack;
use engine::weights::Weights;
use kernels::{Isa, Pool};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(from)) = (args.next(), args.next()) else {
        return Err("usage: logits MODEL FROM TOKEN…".into());
    };
    let from: usize = from.parse()?;
    let tokens: Vec<u32> = args.map(|token| token.parse()).collect::<Result<_, _>>()?;
    let mut bytes = std::fs::read(&model).map_err(|error| format!("{model}: {error}"))?;
    pack(&mut bytes)?;
    let gguf = Gguf::parse(&bytes)?;
    let shape = Shape::read(&gguf)?;
    let context = served_context(&shape)?;
    if tokens.len() > context || tokens.iter().any(|t| *t as usize >= shape.vocabulary) {
        return Err("the tokens are not a sequence of this model".into());
    }
    let weights = Weights::find(&gguf, &shape, Arc::new(bytes.clone()))?;
    let blocks = u32::try_from(tokens.len().div_ceil(BLOCK_TOKENS))?;
    let table: Vec<u32> = (0..blocks).collect();
    let mut cpu = Cpu::new(Isa::detect(), Pool::new(1)?, shape, weights, blocks, context);
    let row = |(position, token): (usize, &u32)| Row {
        token: *token,
        position,
        table: &table,
        logits: position >= from,
    };
    let rows: Vec<Row<'_>> = tokens.iter().enumerate().map(row).collect();
    let mut out = std::io::stdout().lock();
    for step in rows.chunks(STEP_TOKENS_MAX) {
        let logits = forward(&mut cpu, step);
        out.write_all(&logits.iter().flat_map(|logit| logit.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    Ok(())
}
