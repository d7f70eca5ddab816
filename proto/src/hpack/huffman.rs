//! The fixed Huffman code of HPACK (RFC 7541, appendix B).

use std::sync::LazyLock;

use super::Error;

/// Code length in bits of each octet, and of the end-of-string symbol behind them. The code is canonical (codes of one
/// length are consecutive, in the order of their symbols), so the lengths say it all.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The codes of one length.
struct Level {
    first: u32,
    symbols: Vec<u16>,
}

/// Levels by code length, from one bit on.
static LEVELS: LazyLock<Vec<Level>> = LazyLock::new(|| {
    let longest = LENGTHS.iter().copied().max().unwrap_or(0);
    let mut next = 0;
    (1..=longest)
        .map(|length| {
            let symbols: Vec<u16> =
                (0..).zip(LENGTHS).filter(|(_, of)| *of == length).map(|(symbol, _)| symbol).collect();
            let first = next << 1;
            next = first + (0..).zip(&symbols).map(|(n, _): (u32, _)| n + 1).last().unwrap_or(0);
            Level { first, symbols }
        })
        .collect()
});

/// Decodes a string, into at most `limit` octets.
pub(super) fn decode(input: &[u8], limit: usize) -> Result<Vec<u8>, Error> {
    let mut output = Vec::new();
    let (mut code, mut length) = (0u32, 0usize);
    for bit in input.iter().flat_map(|octet| (0..8).rev().map(move |n| octet >> n & 1)) {
        code = code << 1 | u32::from(bit);
        let level = LEVELS.get(length).ok_or(Error::Huffman)?;
        length += 1;
        let symbol =
            code.checked_sub(level.first).and_then(|offset| level.symbols.get(usize::try_from(offset).ok()?));
        if let Some(&symbol) = symbol {
            // The end-of-string symbol is no octet, and never sent whole (5.2).
            let octet = u8::try_from(symbol).map_err(|_| Error::Huffman)?;
            if output.len() >= limit {
                return Err(Error::ListTooLarge(limit));
            }
            output.push(octet);
            (code, length) = (0, 0);
        }
    }
    // What is left over are fewer than eight bits of the end-of-string symbol, which is all ones (5.2).
    let padding = (1u32 << length.min(31)) - 1;
    if length < 8 && code == padding { Ok(output) } else { Err(Error::Huffman) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_fill_the_code_space() {
        let last = LEVELS.last().unwrap();
        assert_eq!(LEVELS.len(), 30);
        assert_eq!(last.first as usize + last.symbols.len(), 1 << 30);
        assert_eq!(last.symbols.last(), Some(&256));
    }

    #[test]
    fn known_strings() {
        // RFC 7541, C.4.1 and C.4.2.
        let host = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode(&host, 100).unwrap(), b"www.example.com");
        assert_eq!(decode(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], 100).unwrap(), b"no-cache");
        assert_eq!(decode(&[], 0).unwrap(), b"");
    }

    #[test]
    fn refused_strings() {
        let cases: [(&[u8], &str); 5] = [
            (&[0xff], "eight bits of padding"),
            (&[0xff, 0xff, 0xff, 0xff], "a whole end-of-string symbol"),
            (&[0x00, 0xff, 0xff], "more padding than an octet"),
            (&[0x18], "padding that is not all ones"),
            (&[0x07, 0xfe], "an unfinished code"),
        ];
        for (input, what) in cases {
            assert_eq!(decode(input, 100), Err(Error::Huffman), "{what}");
        }
        assert_eq!(decode(&[0x00, 0x3f], 1), Err(Error::ListTooLarge(1)));
    }
}
