//! The corpus of inputs, and mutations of it that are the same in each run.

use std::path::Path;

/// What JSON trips over, besides random bytes.
const FRAGMENTS: [&str; 18] = [
    "null",
    "{}",
    "[]",
    "\"\"",
    "0",
    "-1",
    "99999999999999999999",
    "1e999",
    "true",
    "{",
    "}",
    "[",
    "]",
    "\"",
    ",",
    ":",
    "\\u0000",
    "\u{202e}",
];

/// The lines of a file of the corpus.
pub fn corpus(kind: &str) -> Vec<Vec<u8>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/corpus/{kind}.txt"));
    let text = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut lines: Vec<Vec<u8>> = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    // After the last line's end comes nothing.
    lines.pop();
    assert!(lines.len() > 5, "{}: hardly a corpus", file.display());
    lines
}

/// Calls `check` with each of `inputs` and with mutations of it.
pub fn with_mutations(inputs: &[Vec<u8>], check: impl FnMut(&[u8])) {
    let wanted = std::env::var("PODRAIL_MUTATIONS").ok().map(|text| text.parse().unwrap());
    with_some_mutations(inputs, wanted.unwrap_or(300), check);
}

/// As [`with_mutations`], with so many of each.
pub fn with_some_mutations(inputs: &[Vec<u8>], count: usize, mut check: impl FnMut(&[u8])) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for input in inputs {
        check(input);
        for _ in 0..count {
            let mut mutated = input.clone();
            for _ in 0..=random.below(3) {
                let other = &inputs[random.below(inputs.len())];
                mutate(&mut mutated, other, &mut random);
            }
            check(&mutated);
        }
    }
}

fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let until = at + random.below(input.len() + 1 - at);
    match random.below(6) {
        0 => input.truncate(at),
        1 => drop(input.drain(at..until)),
        2 => drop(input.splice(at..until, FRAGMENTS[random.below(FRAGMENTS.len())].bytes())),
        3 => drop(input.splice(at..at, other[random.below(other.len() + 1)..].iter().copied())),
        4 => {
            let repeated = input[at..until].repeat(1 + random.below(4));
            drop(input.splice(at..at, repeated));
        }
        _ => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
    }
}

/// A xorshift generator.
struct Random(u64);

impl Random {
    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % limit
    }
}
