//! One HTTP/1.1 request over a Unix socket, and its answer.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The largest answer that is read, in octets.
const MAX_ANSWER: u64 = 16 << 20;

/// What came of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// An answer, whole.
    Answer {
        /// The status code.
        status: u16,
        /// The body.
        body: Vec<u8>,
    },
    /// Nobody is there; nothing was asked.
    Absent(io::Error),
    /// The connection ended before the answer: what was asked may have been done, in part or whole.
    Lost(String),
}

/// Posts `body` to `path` of the server at `socket` and waits for the answer, at most `patience` for each part of it.
pub(crate) fn post(socket: &Path, path: &str, body: &[u8], patience: Duration) -> Outcome {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) => return Outcome::Absent(error),
    };
    let mut talk = || -> io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: dummy\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        // A server may answer, and close, before it has read everything.
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        let mut answer = Vec::new();
        match ((&mut stream).take(MAX_ANSWER).read_to_end(&mut answer), sent) {
            (_, Err(error)) if answer.is_empty() => Err(error),
            (Err(error), _) if answer.is_empty() => Err(error),
            _ => Ok(answer),
        }
    };
    match talk() {
        Ok(bytes) => match parse(&bytes) {
            Some((status, body)) => Outcome::Answer { status, body },
            None => Outcome::Lost(format!("the answer ended after {} octets", bytes.len())),
        },
        Err(error) => Outcome::Lost(error.to_string()),
    }
}

/// Status and body of an answer; `None` when it is not whole.
fn parse(bytes: &[u8]) -> Option<(u16, Vec<u8>)> {
    let (head, body) = split(bytes, b"\r\n\r\n")?;
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    if !words.next()?.starts_with("HTTP/1.") {
        return None;
    }
    let status = words.next()?.parse().ok()?;
    let headers: Vec<(&str, &str)> =
        lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect();
    let header = |wanted: &str| {
        headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| *value)
    };
    let body = match (header("Transfer-Encoding"), header("Content-Length")) {
        (Some(coding), _) if coding.eq_ignore_ascii_case("chunked") => chunks(body)?,
        (_, Some(length)) => body.get(..length.parse().ok()?)?.to_vec(),
        _ => body.to_vec(),
    };
    Some((status, body))
}

/// Joins the chunks of a body; `None` when the last one is missing.
fn chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let (size, after) = split(rest, b"\r\n")?;
        let size = std::str::from_utf8(size).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

fn split<'a>(bytes: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(mark.len()).position(|window| window == mark)?;
    Some((bytes.get(..at)?, bytes.get(at + mark.len()..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_in_every_framing() {
        let table: [(&str, Option<(u16, &str)>); 10] = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", Some((200, "{}"))),
            ("HTTP/1.1 200 OK\r\ncontent-length:0\r\nDate: x\r\n\r\n", Some((200, ""))),
            ("HTTP/1.0 400 Bad Request\r\n\r\nwhy", Some((400, "why"))),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
                Some((200, "abc0123456789")),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", None),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc\r\n", None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3", None),
            ("", None),
            ("SSH-2.0-x\r\n\r\n", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(status, body)| (status, body.as_bytes().to_vec()));
            assert_eq!(parse(text.as_bytes()), expected, "{text}");
        }
    }
}
