//! The examples of RFC 7541, appendix C, and what no encoder sends.

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn decode(decoder: &mut Decoder, block: &str) -> Vec<String> {
    let fields = decoder.decode(&hex(block)).unwrap();
    let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
    fields.iter().map(|field| format!("{}: {}", text(&field.name), text(&field.value))).collect()
}

#[test]
fn integers() {
    // C.1, and the widest and the first too wide integer.
    assert_eq!(Input(&[0x0a]).integer(5), Ok(10));
    assert_eq!(Input(&[0x1f, 0x9a, 0x0a]).integer(5), Ok(1337));
    assert_eq!(Input(&[0x2a]).integer(8), Ok(42));
    assert_eq!(Input(&[0x1f, 0xff, 0xff, 0xff, 0x7f]).integer(5), Ok(31 + (1 << 28) - 1));
    assert_eq!(Input(&[0x1f, 0x80, 0x80, 0x80, 0x80, 0x00]).integer(5), Err(Error::IntegerTooLarge));
    assert_eq!(Input(&[0x1f, 0x80]).integer(5), Err(Error::Truncated));
}

#[test]
fn single_fields() {
    // C.2.
    let mut decoder = Decoder::new(4096);
    let custom = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    assert_eq!(decode(&mut decoder, custom), ["custom-key: custom-header"]);
    assert_eq!(decoder.table.size(), 55);
    let mut decoder = Decoder::new(4096);
    assert_eq!(decode(&mut decoder, "040c 2f73 616d 706c 652f 7061 7468"), [":path: /sample/path"]);
    assert_eq!(decoder.table.size(), 0);
    let never = "1008 7061 7373 776f 7264 0673 6563 7265 74";
    assert_eq!(decode(&mut decoder, never), ["password: secret"]);
    assert!(decoder.decode(&hex(never)).unwrap()[0].sensitive);
    assert_eq!(decode(&mut decoder, "82"), [":method: GET"]);
}

#[test]
fn requests_on_one_connection() {
    let first = [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
    let second = [&first[..], &["cache-control: no-cache"]].concat();
    let third = [
        ":method: GET",
        ":scheme: https",
        ":path: /index.html",
        ":authority: www.example.com",
        "custom-key: custom-value",
    ];
    // C.3 without and C.4 with Huffman code.
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let huffman = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    for blocks in [plain, huffman] {
        let mut decoder = Decoder::new(4096);
        assert_eq!(decode(&mut decoder, blocks[0]), first);
        assert_eq!(decoder.table.size(), 57);
        assert_eq!(decode(&mut decoder, blocks[1]), second);
        assert_eq!(decoder.table.size(), 110);
        assert_eq!(decode(&mut decoder, blocks[2]), third);
        assert_eq!(decoder.table.size(), 164);
    }
}

#[test]
fn responses_evict_from_a_small_table() {
    // C.5 without and C.6 with Huffman code: a table of 256 octets.
    let plain = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d \
         546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f \
         6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b \
         2076 6572 7369 6f6e 3d31",
    ];
    let huffman = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 \
         8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 \
         dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    for blocks in [plain, huffman] {
        let mut decoder = Decoder::new(4096);
        decoder.table.resize(256);
        let first = decode(&mut decoder, blocks[0]);
        assert_eq!(first[0], ":status: 302");
        assert_eq!(first[3], "location: https://www.example.com");
        assert_eq!(decoder.table.size(), 222);
        let second = decode(&mut decoder, blocks[1]);
        assert_eq!(second[0], ":status: 307");
        assert_eq!(second[1..], first[1..]);
        assert_eq!(decoder.table.size(), 222);
        assert_eq!(
            decode(&mut decoder, blocks[2]),
            [
                ":status: 200",
                "cache-control: private",
                "date: Mon, 21 Oct 2013 20:13:22 GMT",
                "location: https://www.example.com",
                "content-encoding: gzip",
                "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ]
        );
        assert_eq!(decoder.table.size(), 215);
    }
}

#[test]
fn broken_blocks() {
    let long_value = format!("0001 61 7f a1 1e {}", "61".repeat(4000));
    let cases = [
        ("80", Error::UnknownIndex(0)),
        ("be", Error::UnknownIndex(62)),
        ("40", Error::Truncated),
        ("0001", Error::Truncated),
        ("41 05 61", Error::Truncated),
        ("3f e2 1f", Error::TableSize(4097)),
        ("82 20", Error::TableSize(0)),
        ("00 81 ff 00", Error::Huffman),
        (&long_value, Error::ListTooLarge(1024)),
    ];
    for (block, error) in cases {
        assert_eq!(Decoder::new(1024).decode(&hex(block)), Err(error), "{block}");
    }
}

#[test]
fn a_few_octets_do_not_become_a_large_list() {
    let mut decoder = Decoder::new(8192);
    let mut block = hex("4001 61 7f a1 1e");
    block.extend(std::iter::repeat_n(b'x', 4000));
    decoder.decode(&block).unwrap();
    assert_eq!(decoder.decode(&[0xbe; 100]), Err(Error::ListTooLarge(8192)));
}

#[test]
fn entries_larger_than_the_table_empty_it() {
    let mut decoder = Decoder::new(8192);
    decode(&mut decoder, "4001 61 01 62");
    let mut block = hex("4001 61 7f 81 1f");
    block.extend(std::iter::repeat_n(b'x', 4096));
    decoder.decode(&block).unwrap();
    assert_eq!(decoder.table.size(), 0);
    assert_eq!(decoder.decode(&[0xbe]), Err(Error::UnknownIndex(62)));
}

proptest::proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        name: Vec<u8>,
        value in proptest::collection::vec(proptest::num::u8::ANY, 0..40_000),
        sensitive: bool,
    ) {
        let field = Field { name, value, sensitive };
        let mut block = Vec::new();
        field.encode(&mut block);
        proptest::prop_assert_eq!(Decoder::new(1 << 20).decode(&block), Ok(vec![field]));
    }

    #[test]
    fn no_block_panics(blocks: Vec<Vec<u8>>) {
        let mut decoder = Decoder::new(4096);
        for block in blocks {
            let _ = decoder.decode(&block);
            proptest::prop_assert!(decoder.table.size() <= DEFAULT_TABLE_SIZE);
        }
    }
}
