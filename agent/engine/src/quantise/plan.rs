//! Which tensors a quantised file has, and what each is made of.

use std::collections::BTreeMap;

use kernels::Format;

use super::entries::encode;
use super::{Kind, QuantiseError};
use crate::gguf::{Gguf, Tensor, Value};

/// Of rows in transformers' order, which this engine has a key of its own for.
const HALVES: &str = "llama.rope.halves";
/// Names of matrices that decide more than they weigh: which experts a token is sent to.
const ROUTER: &str = ".ffn_gate_inp.weight";

/// A file to be.
pub(super) struct Plan {
    /// Keys, and their values as GGUF has them, type first.
    pub(super) entries: BTreeMap<String, Vec<u8>>,
    pub(super) tensors: Vec<Planned>,
}

/// A tensor to be.
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) format: Format,
    /// As GGUF has it: elements of a row first.
    pub(super) shape: Vec<usize>,
    /// What it is made of, one after the other.
    pub(super) parts: Vec<Part>,
}

pub(super) struct Part {
    pub(super) tensor: Tensor,
    pub(super) order: Order,
}

/// The order of rows.
#[derive(Clone, Copy)]
pub(super) enum Order {
    Kept,
    /// Of each head's rows the first `rotated` are the first numbers of all pairs, then the second ones; GGUF has pair
    /// after pair (llama.cpp, `convert_hf_to_gguf.py`, `permute`).
    Pairs {
        head: usize,
        rotated: usize,
    },
}

impl Order {
    /// The source's row that becomes row `row`.
    pub(super) fn row(self, row: usize) -> usize {
        match self {
            Self::Pairs { head, rotated } if row % head < rotated => {
                let (first, within) = (row / head * head, row % head);
                first + within / 2 + within % 2 * (rotated / 2)
            }
            _ => row,
        }
    }
}

impl Planned {
    pub(super) fn row_bytes(&self) -> usize {
        // A format was chosen that has whole blocks.
        self.format.row_bytes(self.shape.first().copied().unwrap_or(0)).unwrap_or(0)
    }

    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.tensor.rows).sum::<usize>() * self.row_bytes()
    }
}

impl Plan {
    pub(super) fn new(
        gguf: &Gguf<'_>,
        entries: Vec<(&str, Vec<u8>)>,
        kind: Kind,
    ) -> Result<Self, QuantiseError> {
        let mut entries: BTreeMap<_, _> =
            entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        // The number of the kind of file (llama.h, `llama_ftype`), and the version of the blocks (ggml.h,
        // `GGML_QNT_VERSION`).
        let file_type = if kind == Kind::Q4_0 { 2 } else { 7 };
        for (key, number) in [("general.file_type", file_type), ("general.quantization_version", 2)]
        {
            entries.insert(key.to_owned(), encode(&Value::Integer(number)));
        }
        // The writer's own.
        entries.remove("general.alignment");
        entries.remove(HALVES);
        let mut tensors: BTreeMap<String, Planned> = BTreeMap::new();
        for (name, tensor) in gguf.tensors() {
            if tensor.format.block_elements() > 1 {
                let (name, format) = ((*name).to_owned(), tensor.format);
                return Err(QuantiseError::Already { name, format });
            }
            let name = expert(name).map_or_else(|| (*name).to_owned(), |(whole, _)| whole);
            if !tensors.contains_key(&name) {
                tensors.insert(name.clone(), planned(gguf, name, tensor, kind)?);
            }
        }
        Ok(Self { entries, tensors: tensors.into_values().collect() })
    }
}

/// The whole and the number, if `name` is that of one expert's part: `blk.1.ffn_up_exps.7.weight`.
fn expert(name: &str) -> Option<(String, usize)> {
    let (part, number) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    let number = number.parse().ok()?;
    part.ends_with("_exps").then(|| (format!("{part}.weight"), number))
}

fn planned(
    gguf: &Gguf<'_>,
    name: String,
    tensor: &Tensor,
    kind: Kind,
) -> Result<Planned, QuantiseError> {
    let order = order(gguf, &name, tensor.rows)?;
    let parts: Vec<Part> = match gguf.tensors().get(name.as_str()) {
        Some(tensor) => vec![Part { tensor: tensor.clone(), order }],
        None => {
            // The numbers of the parts of a tensor of this name are 0, 1, …, in whatever order they were found.
            let part = |i: usize| name.replace(".weight", &format!(".{i}.weight"));
            let found = (0..).map_while(|i| gguf.tensors().get(part(i).as_str()));
            found.map(|tensor| Part { tensor: tensor.clone(), order }).collect()
        }
    };
    let shape_of = |part: &Part| (part.tensor.columns, part.tensor.rows, part.tensor.format);
    let first = (tensor.columns, tensor.rows, tensor.format);
    if parts.is_empty() || parts.iter().any(|part| shape_of(part) != first) {
        return Err(QuantiseError::Parts { name });
    }
    let (columns, rows) = (tensor.columns, tensor.matrix_rows);
    let matrices = tensor.rows / rows * parts.len();
    let shape = match (rows, matrices) {
        (1, 1) => vec![columns],
        (_, 1) => vec![columns, rows],
        _ => vec![columns, rows, matrices],
    };
    let format = format_of(&name, tensor, kind);
    Ok(Planned { name, format, shape, parts })
}

fn format_of(name: &str, tensor: &Tensor, kind: Kind) -> Format {
    let kept = tensor.rows == 1 || name.ends_with(ROUTER);
    let format = match (kind, name) {
        (Kind::Q4_0, "token_embd.weight" | "output.weight") => Format::Q8_0,
        (Kind::Q4_0, _) => Format::Q4_0,
        (Kind::Q8_0, _) => Format::Q8_0,
    };
    match format.row_bytes(tensor.columns) {
        Some(_) if !kept => format,
        // As readers of GGUF expect vectors; and FP8 is no format of GGUF's.
        _ if kept || tensor.format == Format::F8 => Format::F32,
        _ => tensor.format,
    }
}

fn order(gguf: &Gguf<'_>, name: &str, rows: usize) -> Result<Order, QuantiseError> {
    let heads = match name.rsplit_once(".attn_").map(|(_, part)| part) {
        Some("q.weight") => "llama.attention.head_count",
        Some("k.weight") => "llama.attention.head_count_kv",
        _ => return Ok(Order::Kept),
    };
    if gguf.value(HALVES) != Some(&Value::Bool(true)) {
        return Ok(Order::Kept);
    }
    // The description was read before, so both divide.
    let number = |key: &str, max: usize| -> Result<usize, QuantiseError> {
        Ok(usize::try_from(gguf.integer(key, 1, max as u64)?).unwrap_or(max))
    };
    let heads = match gguf.value(heads) {
        Some(_) => number(heads, rows)?,
        None => number("llama.attention.head_count", rows)?,
    };
    let head = (rows / heads).max(1);
    Ok(Order::Pairs { head, rotated: number("llama.rope.dimension_count", head)? })
}
