//! Repairs the `:authority` of requests before the HTTP/2 server sees it.
//!
//! A Go client that dials a unix socket may send the socket's path, as it is or %-encoded, as the `:authority` of its
//! requests. kubelet's plugin watcher does so in every version; kubelet's device manager does before version 1.26.
//! That is not an authority (RFC 3986, 3.2), and the `h2` crate resets the stream. So this filter reads the client's
//! side of the connection frame by frame and writes every header block anew, with `localhost` in the place of what is
//! no authority. All other frames pass untouched.
//!
//! A header block cannot be changed in place: HPACK blocks refer to a table that all earlier blocks have built. The
//! filter therefore decodes each of them, and writes them so that the server's own table stays empty.

use tonic::codegen::http::uri::Authority;

use crate::hpack::{self, Decoder};

/// What every HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_SIZE: usize = 9;
/// The largest payload that a server takes unless it says otherwise (RFC 9113, 6.5.2), and so the largest we write.
const MAX_FRAME_SIZE: usize = 16_384;
/// Limit of a header block, on the wire and decoded. The server behind has a lower one of its own.
const MAX_HEADER_BLOCK: usize = 65_536;

const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Why a client's bytes cannot be followed any further. The connection is to be closed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("header block of stream {stream} is larger than {MAX_HEADER_BLOCK} octets")]
    BlockTooLarge { stream: u32 },
    #[error("header block of stream {stream} is interrupted by another frame")]
    Interrupted { stream: u32 },
    #[error("headers frame of stream {stream} is shorter than its own padding")]
    Padding { stream: u32 },
    #[error("header block of stream {stream}: {source}")]
    Hpack { stream: u32, source: hpack::Error },
}

/// The filter of one connection. Takes the client's bytes in pieces of any size.
#[derive(Debug)]
pub(crate) struct Filter {
    state: State,
    block: Option<Block>,
    decoder: Decoder,
}

/// Where in the client's bytes the next one stands.
#[derive(Debug)]
enum State {
    /// This far into the preface.
    Preface(usize),
    /// Behind something that is not HTTP/2: for the server to refuse.
    Foreign,
    /// In the nine octets that each frame begins with.
    Head(Vec<u8>),
    /// In a frame that is of no interest, with this many octets left.
    Pass(usize),
    /// In a frame that is part of a header block.
    Collect { head: Head, payload: Vec<u8> },
}

#[derive(Debug, Clone, Copy)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// A header block of which not all frames have come.
#[derive(Debug)]
struct Block {
    stream: u32,
    /// Flags of the headers frame, without those about padding and the end of the block.
    flags: u8,
    /// Stream dependency and weight, if the headers frame has them.
    priority: Vec<u8>,
    fragments: Vec<u8>,
}

impl Filter {
    pub(crate) fn new() -> Self {
        Self { state: State::Preface(0), block: None, decoder: Decoder::new(MAX_HEADER_BLOCK) }
    }

    /// Takes the client's next bytes, and appends to `out` what the server is to read.
    pub(crate) fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        while !input.is_empty() {
            input = self.step(input, out)?;
        }
        Ok(())
    }

    /// Takes some of the bytes, at least one, and returns the rest.
    fn step<'a>(&mut self, input: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], Error> {
        match &mut self.state {
            State::Preface(seen) => {
                let expected = PREFACE.get(*seen..).unwrap_or_default();
                let (now, rest) = split(input, expected.len());
                out.extend_from_slice(now);
                *seen += now.len();
                if !expected.starts_with(now) {
                    self.state = State::Foreign;
                } else if *seen == PREFACE.len() {
                    self.state = State::Head(Vec::new());
                }
                Ok(rest)
            }
            State::Foreign => {
                out.extend_from_slice(input);
                Ok(&[])
            }
            State::Head(head) => {
                let (now, rest) = split(input, HEAD_SIZE - head.len());
                head.extend_from_slice(now);
                if let Some(parsed) = Head::parse(head) {
                    let raw = std::mem::take(head);
                    self.begin(parsed, &raw, out)?;
                }
                Ok(rest)
            }
            State::Pass(left) => {
                let (now, rest) = split(input, *left);
                out.extend_from_slice(now);
                *left -= now.len();
                if *left == 0 {
                    self.state = State::Head(Vec::new());
                }
                Ok(rest)
            }
            State::Collect { head, payload } => {
                let (now, rest) = split(input, head.length - payload.len());
                payload.extend_from_slice(now);
                if payload.len() == head.length {
                    let (head, payload) = (*head, std::mem::take(payload));
                    self.state = State::Head(Vec::new());
                    self.collected(head, &payload, out)?;
                }
                Ok(rest)
            }
        }
    }

    /// A frame begins: decides what becomes of it.
    fn begin(&mut self, head: Head, raw: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let stream = head.stream;
        let collected = match &self.block {
            None if head.kind == HEADERS => 0,
            Some(block) if head.kind == CONTINUATION && block.stream == stream => block.fragments.len(),
            Some(block) => {
                return Err(Error::Interrupted { stream: block.stream });
            }
            None => {
                out.extend_from_slice(raw);
                if head.length > 0 {
                    self.state = State::Pass(head.length);
                }
                return Ok(());
            }
        };
        if collected + head.length > MAX_HEADER_BLOCK {
            return Err(Error::BlockTooLarge { stream });
        }
        if head.length == 0 {
            return self.collected(head, &[], out);
        }
        let payload = Vec::with_capacity(head.length);
        self.state = State::Collect { head, payload };
        Ok(())
    }

    /// A frame of a header block is complete; perhaps the block is, too.
    fn collected(&mut self, head: Head, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let block = match self.block.take() {
            Some(mut block) => {
                block.fragments.extend_from_slice(payload);
                block
            }
            None => Block::open(head, payload)?,
        };
        if head.flags & END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        let mut fields = self
            .decoder
            .decode(&block.fragments)
            .map_err(|source| Error::Hpack { stream: block.stream, source })?;
        for field in &mut fields {
            // The server's own test, so that neither a good authority is replaced nor a bad one left.
            if field.name == b":authority" && Authority::try_from(field.value.as_slice()).is_err() {
                field.value = b"localhost".to_vec();
            }
        }
        block.write(&fields, out);
        Ok(())
    }
}

impl Head {
    /// `None` if `raw` is not a whole frame head.
    fn parse(raw: &[u8]) -> Option<Self> {
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = *raw.first_chunk::<HEAD_SIZE>()?;
        let length = u32::from_be_bytes([0, l1, l2, l3]);
        Some(Self {
            length: usize::try_from(length).ok()?,
            kind,
            flags,
            stream: u32::from_be_bytes([s1, s2, s3, s4]) & 0x7fff_ffff,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        out.extend(length.to_be_bytes().iter().skip(1));
        out.extend([self.kind, self.flags]);
        out.extend(self.stream.to_be_bytes());
    }
}

impl Block {
    /// The block that a headers frame begins (RFC 9113, 6.2).
    fn open(head: Head, payload: &[u8]) -> Result<Self, Error> {
        let stream = head.stream;
        let short = || Error::Padding { stream };
        let mut content = payload;
        if head.flags & PADDED != 0 {
            let (&padding, rest) = content.split_first().ok_or_else(short)?;
            let kept = rest.len().checked_sub(padding.into()).ok_or_else(short)?;
            content = split(rest, kept).0;
        }
        let mut priority: &[u8] = &[];
        if head.flags & PRIORITY != 0 {
            (priority, content) = content.split_at_checked(5).ok_or_else(short)?;
        }
        Ok(Self {
            stream,
            flags: head.flags & (END_STREAM | PRIORITY),
            priority: priority.to_vec(),
            fragments: content.to_vec(),
        })
    }

    /// Writes the block with these fields, in as many frames as it takes.
    fn write(&self, fields: &[hpack::Field], out: &mut Vec<u8>) {
        let mut payload = self.priority.clone();
        for field in fields {
            field.encode(&mut payload);
        }
        let mut rest = payload.as_slice();
        let mut head = Head { length: 0, kind: HEADERS, flags: self.flags, stream: self.stream };
        loop {
            let (now, later) = split(rest, MAX_FRAME_SIZE);
            head.length = now.len();
            if later.is_empty() {
                head.flags |= END_HEADERS;
            }
            head.write(out);
            out.extend_from_slice(now);
            if later.is_empty() {
                return;
            }
            rest = later;
            (head.kind, head.flags) = (CONTINUATION, 0);
        }
    }
}

/// Splits off the first `most` octets, or all if there are fewer.
fn split(input: &[u8], most: usize) -> (&[u8], &[u8]) {
    input.split_at_checked(most).unwrap_or((input, &[]))
}

#[cfg(test)]
mod tests;
