//! HPACK, the header compression of HTTP/2 (RFC 7541): a complete decoder, and the one representation that needs no
//! state to write.
//!
//! Written here because the published crates for it are unmaintained, and the one inside `h2` is private.

mod huffman;
mod table;

use table::Table;

/// The dynamic table that an encoder may use until the decoder's side has announced another size (RFC 9113, 6.5.2).
const DEFAULT_TABLE_SIZE: usize = 4096;
/// What an entry costs above its octets (RFC 7541, 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// One header field. Octets, because HPACK knows no text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// Never to be put into a compression table, here or by anyone who passes it on (RFC 7541, 7.1.3).
    pub(crate) sensitive: bool,
}

impl Field {
    /// Size as header list and dynamic table count it.
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_OVERHEAD
    }

    /// Appends the field as a literal without indexing and without Huffman code (RFC 7541, 6.2.2 and 6.2.3): every
    /// decoder reads it alike, whatever came before.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(if self.sensitive { 0x10 } else { 0x00 });
        for octets in [&self.name, &self.value] {
            encode_length(octets.len(), out);
            out.extend_from_slice(octets);
        }
    }
}

/// Appends the length of a string that is not Huffman coded (RFC 7541, 5.1 with a prefix of 7 bits).
fn encode_length(length: usize, out: &mut Vec<u8>) {
    const PREFIX: usize = 0x7f;
    let low = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
    let Some(mut rest) = length.checked_sub(PREFIX) else {
        out.push(low(length));
        return;
    };
    out.push(low(PREFIX));
    while rest >= 0x80 {
        out.push(low(rest & 0x7f | 0x80));
        rest >>= 7;
    }
    out.push(low(rest));
}

/// Why a header block is not HPACK. After any of these the connection's table is unknown and the connection over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("header block ends in the middle of a field")]
    Truncated,
    #[error("integer is longer than any header block")]
    IntegerTooLarge,
    #[error("index {0} is in neither table")]
    UnknownIndex(usize),
    #[error("string is no Huffman code")]
    Huffman,
    #[error("dynamic table size {0} is above the announced limit, or is changed after the first field")]
    TableSize(usize),
    #[error("decoded header list is larger than {0} octets")]
    ListTooLarge(usize),
}

/// The decoder of one direction of one connection.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: Table,
    list_limit: usize,
}

impl Decoder {
    /// A decoder that refuses header lists of more than `list_limit` octets, counted as RFC 9113, 6.5.2 does.
    pub(crate) fn new(list_limit: usize) -> Self {
        Self { table: Table::new(DEFAULT_TABLE_SIZE), list_limit }
    }

    /// Decodes one complete header block.
    pub(crate) fn decode(&mut self, block: &[u8]) -> Result<Vec<Field>, Error> {
        let mut input = Input(block);
        let mut fields = Vec::new();
        let mut size = 0;
        while let Some(&kind) = input.0.first() {
            let field = if kind & 0x80 != 0 {
                let index = input.integer(7)?;
                self.table.field(index)?
            } else if kind & 0x40 != 0 {
                let field = self.literal(&mut input, 6)?;
                self.table.insert(field.clone());
                field
            } else if kind & 0x20 != 0 {
                let limit = input.integer(5)?;
                if limit > DEFAULT_TABLE_SIZE || !fields.is_empty() {
                    return Err(Error::TableSize(limit));
                }
                self.table.resize(limit);
                continue;
            } else {
                let mut field = self.literal(&mut input, 4)?;
                field.sensitive = kind & 0x10 != 0;
                field
            };
            size += field.size();
            if size > self.list_limit {
                return Err(Error::ListTooLarge(self.list_limit));
            }
            fields.push(field);
        }
        Ok(fields)
    }

    /// A literal field whose name is an index of `prefix` bits, or a string when that index is zero.
    fn literal(&self, input: &mut Input<'_>, prefix: u32) -> Result<Field, Error> {
        let name = match input.integer(prefix)? {
            0 => input.string(self.list_limit)?,
            index => self.table.field(index)?.name,
        };
        let value = input.string(self.list_limit)?;
        Ok(Field { name, value, sensitive: false })
    }
}

/// What is left of a header block.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn octet(&mut self) -> Result<u8, Error> {
        let (&first, rest) = self.0.split_first().ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(first)
    }

    /// An integer in the low `prefix` bits of the next octet and the octets that continue it (RFC 7541, 5.1).
    fn integer(&mut self, prefix: u32) -> Result<usize, Error> {
        /// No length or index that makes sense needs more than 28 bits above its prefix.
        const LAST_SHIFT: u32 = 21;
        let mask = (1usize << prefix) - 1;
        let mut value = usize::from(self.octet()?) & mask;
        if value < mask {
            return Ok(value);
        }
        for shift in (0..=LAST_SHIFT).step_by(7) {
            let octet = self.octet()?;
            value += usize::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::IntegerTooLarge)
    }

    /// A string literal (RFC 7541, 5.2) of at most `limit` decoded octets.
    fn string(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        let huffman = self.0.first().is_some_and(|octet| octet & 0x80 != 0);
        let length = self.integer(7)?;
        let (raw, rest) = self.0.split_at_checked(length).ok_or(Error::Truncated)?;
        self.0 = rest;
        if huffman {
            huffman::decode(raw, limit)
        } else if raw.len() > limit {
            Err(Error::ListTooLarge(limit))
        } else {
            Ok(raw.to_vec())
        }
    }
}

#[cfg(test)]
mod tests;
