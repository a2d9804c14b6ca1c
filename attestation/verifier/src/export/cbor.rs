//! CBOR, written only: core deterministic encoding, RFC 8949, section 4.2.1.
//! Invariant: equal values give equal bytes; lengths are definite, numbers as short as they can be, keys of a map
//! in the order of their bytes, each once.

/// A data item of those kinds that CoRIM needs.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Unsigned(u64),
    Bytes(Vec<u8>),
    Text(String),
    Array(Vec<Item>),
    Map(Vec<(Item, Item)>),
    Tag(u64, Box<Item>),
}

const UNSIGNED: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;

impl Item {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// A map whose keys are numbers, as CDDL's `&(name: number)`.
    pub(super) fn struct_of(fields: impl IntoIterator<Item = (u64, Self)>) -> Self {
        Self::Map(fields.into_iter().map(|(key, value)| (Self::Unsigned(key), value)).collect())
    }

    pub(super) fn tagged(tag: u64, item: Self) -> Self {
        Self::Tag(tag, Box::new(item))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        bytes
    }

    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Unsigned(number) => head(to, UNSIGNED, *number),
            Self::Bytes(bytes) => {
                head(to, BYTES, bytes.len() as u64);
                to.extend(bytes);
            }
            Self::Text(text) => {
                head(to, TEXT, text.len() as u64);
                to.extend(text.as_bytes());
            }
            Self::Array(items) => {
                head(to, ARRAY, items.len() as u64);
                items.iter().for_each(|item| item.write(to));
            }
            Self::Map(entries) => {
                let mut entries: Vec<_> =
                    entries.iter().map(|(key, value)| (key.encode(), value.encode())).collect();
                entries.sort();
                entries.dedup_by(|later, earlier| later.0 == earlier.0);
                head(to, MAP, entries.len() as u64);
                entries.iter().for_each(|(key, value)| {
                    to.extend(key);
                    to.extend(value);
                });
            }
            Self::Tag(tag, item) => {
                head(to, TAG, *tag);
                item.write(to);
            }
        }
    }
}

/// Major type and argument, RFC 8949, section 3.
fn head(to: &mut Vec<u8>, major: u8, argument: u64) {
    let major = major << 5;
    if let Ok(byte) = u8::try_from(argument) {
        match byte {
            0..=23 => to.push(major | byte),
            _ => to.extend([major | 24, byte]),
        }
    } else if let Ok(short) = u16::try_from(argument) {
        to.push(major | 25);
        to.extend(short.to_be_bytes());
    } else if let Ok(long) = u32::try_from(argument) {
        to.push(major | 26);
        to.extend(long.to_be_bytes());
    } else {
        to.push(major | 27);
        to.extend(argument.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_encoded_as_the_rfc_shows() {
        // RFC 8949, appendix A.
        for (item, expected) in [
            (Item::Unsigned(0), "00"),
            (Item::Unsigned(23), "17"),
            (Item::Unsigned(24), "1818"),
            (Item::Unsigned(1000), "1903e8"),
            (Item::Unsigned(1_000_000), "1a000f4240"),
            (Item::Unsigned(u64::MAX), "1bffffffffffffffff"),
            (Item::Bytes(vec![1, 2, 3, 4]), "4401020304"),
            (Item::text("ü"), "62c3bc"),
            (Item::Array(vec![Item::Unsigned(1), Item::Array(vec![])]), "820180"),
            (Item::tagged(32, Item::text("a")), "d8206161"),
        ] {
            assert_eq!(hex::encode(item.encode()), expected);
        }
    }

    #[test]
    fn keys_are_in_the_order_of_their_bytes_and_once() {
        let entry = |key| (key, Item::Unsigned(0));
        let keys = [Item::text("b"), Item::Unsigned(100), Item::text("aa"), Item::Unsigned(10)];
        let map = Item::Map(keys.clone().into_iter().map(entry).collect());
        assert_eq!(hex::encode(map.encode()), "a40a001864006162006261610 0".replace(' ', ""));
        let twice = Item::Map(keys.clone().into_iter().chain(keys).map(entry).collect());
        assert_eq!(twice.encode(), map.encode());
    }
}
