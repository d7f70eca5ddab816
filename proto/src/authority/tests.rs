use super::*;
use proptest::prelude::*;

/// A client's connection, written by hand.
struct Client(Vec<u8>);

impl Client {
    fn new() -> Self {
        let mut client = Self(PREFACE.to_vec());
        client.frame(0x4, 0, 0, &[]);
        client
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let head = Head { length: payload.len(), kind, flags, stream };
        head.write(&mut self.0);
        self.0.extend_from_slice(payload);
    }

    /// The bytes as the server gets them.
    fn filtered(&self) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        Filter::new().push(&self.0, &mut out).map(|()| out)
    }
}

fn block(authority: &[u8]) -> Vec<u8> {
    // :method POST, then :authority as a literal that is put into the table.
    let mut block = vec![0x83, 0x41, u8::try_from(authority.len()).unwrap()];
    block.extend_from_slice(authority);
    block
}

/// What the server reads of `stream`: flags and priority of its headers frame, and its fields.
fn headers(output: &[u8], stream: u32) -> (u8, Vec<u8>, Vec<(String, String)>) {
    let mut rest = output.strip_prefix(PREFACE).unwrap();
    let (mut flags, mut priority, mut fragments) = (0, Vec::new(), Vec::new());
    while let Some(head) = Head::parse(rest) {
        let (mut payload, later) = rest[HEAD_SIZE..].split_at(head.length);
        rest = later;
        if head.stream != stream {
            continue;
        }
        if head.kind == HEADERS {
            if head.flags & PRIORITY != 0 {
                (priority, payload) = (payload[..5].to_vec(), &payload[5..]);
            }
            flags |= head.flags;
            fragments.extend_from_slice(payload);
        } else if head.kind == CONTINUATION {
            flags |= head.flags;
            fragments.extend_from_slice(payload);
        }
        assert!(head.length <= MAX_FRAME_SIZE);
    }
    let fields = Decoder::new(1 << 20).decode(&fragments).unwrap();
    let text = |octets| String::from_utf8(octets).unwrap();
    let fields = fields.into_iter().map(|field| (text(field.name), text(field.value))).collect();
    (flags, priority, fields)
}

fn authority(output: &[u8], stream: u32) -> String {
    let (_, _, fields) = headers(output, stream);
    let found = fields.into_iter().find(|(name, _)| name == ":authority");
    found.unwrap().1
}

#[test]
fn only_what_is_no_authority_is_replaced() {
    let cases: [(&str, &str); 7] = [
        ("localhost", "localhost"),
        ("example.com:50051", "example.com:50051"),
        ("[::1]:80", "[::1]:80"),
        ("/var/lib/kubelet/plugins_registry/a.sock", "localhost"),
        ("%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fa.sock", "localhost"),
        ("unix:///run/a.sock", "localhost"),
        ("", "localhost"),
    ];
    for (sent, read) in cases {
        let mut client = Client::new();
        client.frame(HEADERS, END_HEADERS, 1, &block(sent.as_bytes()));
        // The same authority again, by its index in the table.
        client.frame(HEADERS, END_HEADERS | END_STREAM, 3, &[0x83, 0xbe]);
        let output = client.filtered().unwrap();
        assert_eq!(authority(&output, 1), read, "{sent}");
        assert_eq!(authority(&output, 3), read, "{sent} by index");
        assert_eq!(headers(&output, 1).0, END_HEADERS);
        assert_eq!(headers(&output, 3).0, END_HEADERS | END_STREAM);
    }
}

#[test]
fn padding_goes_and_priority_stays() {
    let mut payload = vec![3, 0x80, 0, 0, 7, 200];
    payload.extend(block(b"/a.sock"));
    payload.extend([0, 0, 0]);
    let mut client = Client::new();
    client.frame(HEADERS, END_HEADERS | PADDED | PRIORITY, 1, &payload);
    let (flags, priority, fields) = headers(&client.filtered().unwrap(), 1);
    assert_eq!(flags, END_HEADERS | PRIORITY);
    assert_eq!(priority, [0x80, 0, 0, 7, 200]);
    assert_eq!(fields[1], (":authority".into(), "localhost".into()));
}

#[test]
fn blocks_in_several_frames() {
    let whole = block(b"/a.sock");
    for at in 0..=whole.len() {
        let mut client = Client::new();
        client.frame(HEADERS, END_STREAM, 1, &whole[..at]);
        client.frame(CONTINUATION, 0, 1, &[]);
        client.frame(CONTINUATION, END_HEADERS, 1, &whole[at..]);
        let output = client.filtered().unwrap();
        assert_eq!(authority(&output, 1), "localhost");
        assert_eq!(headers(&output, 1).0, END_HEADERS | END_STREAM);
    }
}

#[test]
fn blocks_that_grow_beyond_a_frame_are_split() {
    // Each index octet stands for a field of more than four thousand octets.
    let mut first = vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e];
    first.extend([b'x'; 4000]);
    let mut client = Client::new();
    client.frame(HEADERS, END_HEADERS, 1, &first);
    client.frame(HEADERS, END_HEADERS | END_STREAM, 3, &[0xbe; 10]);
    let (flags, _, fields) = headers(&client.filtered().unwrap(), 3);
    assert_eq!(flags, END_HEADERS | END_STREAM);
    assert_eq!(fields.len(), 10);
    assert!(fields.iter().all(|(name, value)| name == "a" && value.len() == 4000));
}

#[test]
fn other_frames_pass_untouched() {
    let mut client = Client::new();
    client.frame(0x0, 0x1, 1, b"data");
    client.frame(0x6, 0, 0, b"12345678");
    client.frame(0x8, 0, 0, &[0, 0, 0, 9]);
    client.frame(CONTINUATION, END_HEADERS, 1, b"without a headers frame");
    client.frame(0xfe, 0xff, 0, b"unknown type");
    assert_eq!(client.filtered().unwrap(), client.0);
    let foreign = Client(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec());
    assert_eq!(foreign.filtered().unwrap(), foreign.0);
}

#[test]
fn what_cannot_be_followed_is_an_error() {
    let fragment = [0u8; 16_000];
    /// Kind, flags, stream and payload.
    type Frames<'a> = &'a [(u8, u8, u32, &'a [u8])];
    let cases: [(Frames<'_>, Error); 7] = [
        (&[(HEADERS, 0, 1, &[]), (0x0, 0, 1, &[])], Error::Interrupted { stream: 1 }),
        (&[(HEADERS, 0, 1, &[]), (CONTINUATION, 0, 3, &[])], Error::Interrupted { stream: 1 }),
        (&[(HEADERS, END_HEADERS | PADDED, 1, &[9, 0])], Error::Padding { stream: 1 }),
        (&[(HEADERS, PADDED, 1, &[])], Error::Padding { stream: 1 }),
        (&[(HEADERS, PRIORITY, 1, &[0; 4])], Error::Padding { stream: 1 }),
        (
            &[
                (HEADERS, 0, 1, &fragment),
                (CONTINUATION, 0, 1, &fragment),
                (CONTINUATION, 0, 1, &fragment),
                (CONTINUATION, 0, 1, &fragment),
                (CONTINUATION, 0, 1, &fragment),
            ],
            Error::BlockTooLarge { stream: 1 },
        ),
        (
            &[(HEADERS, END_HEADERS, 1, &[0x80])],
            Error::Hpack { stream: 1, source: hpack::Error::UnknownIndex(0) },
        ),
    ];
    for (frames, error) in cases {
        let mut client = Client::new();
        for (kind, flags, stream, payload) in frames {
            client.frame(*kind, *flags, *stream, payload);
        }
        assert_eq!(client.filtered(), Err(error));
    }
}

fn recorded() -> Vec<u8> {
    let digits: Vec<u8> = include_str!("../../tests/grpc-go-1.27.1.hex")
        .lines()
        .flat_map(|line| line.split('#').next().unwrap().trim().bytes())
        .collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn recorded_requests_keep_their_other_fields() {
    let output = Client(recorded()).filtered().unwrap();
    let (_, _, first) = headers(&output, 1);
    let (_, _, second) = headers(&output, 3);
    let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let common = |path| {
        [
            field(":method", "POST"),
            field(":scheme", "http"),
            field(":path", path),
            field(":authority", "localhost"),
            field("content-type", "application/grpc"),
            field("user-agent", "grpc-go/1.27.1"),
            field("te", "trailers"),
        ]
    };
    assert_eq!(first[..7], common("/pluginregistration.Registration/GetInfo"));
    assert_eq!(second[..7], common("/pluginregistration.Registration/NotifyRegistrationStatus"));
    assert_eq!(first[7].0, "grpc-timeout");
}

proptest! {
    #[test]
    fn the_pieces_do_not_matter(cuts in proptest::collection::vec(0usize..400, 0..40)) {
        let input = recorded();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(input.len())).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        let mut filter = Filter::new();
        let mut output = Vec::new();
        for piece in cuts.windows(2) {
            filter.push(&input[piece[0]..piece[1]], &mut output).unwrap();
        }
        prop_assert_eq!(output, Client(input).filtered().unwrap());
    }

    #[test]
    fn garbage_is_survived(
        frames: Vec<(u8, u8, u8, Vec<u8>)>,
        tail: Vec<u8>,
        flip in 0usize..400,
        to: u8,
    ) {
        let mut client = Client::new();
        for (kind, flags, stream, payload) in frames {
            client.frame(kind % 12, flags, stream.into(), &payload);
        }
        client.0.extend(tail);
        let _ = client.filtered();
        let mut damaged = recorded();
        if let Some(octet) = damaged.get_mut(flip) {
            *octet = to;
        }
        let _ = Client(damaged).filtered();
    }
}
