//! Metadata values as GGUF writes them.

use crate::gguf::Value;

const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;
const I64: u32 = 11;

/// `value`, its type first: of several types the one that llama.cpp's converter uses.
pub(super) fn encode(value: &Value<'_>) -> Vec<u8> {
    match value {
        Value::Integer(value) => integer(*value),
        Value::Float(value) => one(F32, &single(*value)),
        Value::Bool(value) => one(BOOL, &[u8::from(*value)]),
        Value::Text(value) => one(TEXT, &text(value)),
        Value::Integers(items) => {
            match items.iter().map(|item| i32::try_from(*item)).collect::<Result<Vec<_>, _>>() {
                Ok(narrow) => array(I32, &narrow, |item| item.to_le_bytes().to_vec()),
                Err(_) => array(I64, items, |item| item.to_le_bytes().to_vec()),
            }
        }
        Value::Floats(items) => array(F32, items, |item| single(*item).to_vec()),
        Value::Bools(items) => array(BOOL, items, |item| vec![u8::from(*item)]),
        Value::Texts(items) => array(TEXT, items, |item| text(item)),
    }
}

/// A text after its length, as keys and names are, too.
pub(super) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn one(kind: u32, value: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), value].concat()
}

fn integer(value: i128) -> Vec<u8> {
    if let Ok(value) = u32::try_from(value) {
        return one(U32, &value.to_le_bytes());
    }
    match i64::try_from(value) {
        Ok(value) => one(I64, &value.to_le_bytes()),
        // What was read has at most 64 bits.
        Err(_) => one(U64, &u64::try_from(value).unwrap_or(u64::MAX).to_le_bytes()),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "GGUF stores them as f32")]
fn single(float: f64) -> [u8; 4] {
    (float as f32).to_le_bytes()
}

fn array<T>(kind: u32, items: &[T], bytes: impl Fn(&T) -> Vec<u8>) -> Vec<u8> {
    let mut array = one(ARRAY, &kind.to_le_bytes());
    array.extend((items.len() as u64).to_le_bytes());
    array.extend(items.iter().flat_map(bytes));
    array
}
