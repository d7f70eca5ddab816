//! JSON, as much of it as the shim needs: any text in, a tree, text out.

use std::fmt::Write as _;

/// How deep arrays and objects may be nested: what recursion the stack surely has room for.
const MAX_DEPTH: usize = 128;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as it is written: no digit is lost.
    Number(String),
    /// A text.
    Text(String),
    /// An array.
    Array(Vec<Value>),
    /// An object, in the order of its members.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// Reads one value with nothing after it.
    ///
    /// # Errors
    /// What is wrong, and at which octet.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|e| format!("JSON that is not UTF-8: {e}"))?;
        let mut reader = Reader { text, at: 0 };
        reader.space();
        let value = reader.value(0)?;
        reader.space();
        if reader.rest().is_empty() { Ok(value) } else { Err(reader.wrong("the end")) }
    }

    /// The last member called `key`, in any case of letters, as Go finds it; `null` is none.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        let Value::Object(members) = self else { return None };
        let found = members.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(key));
        found.map(|(_, value)| value).filter(|value| **value != Value::Null)
    }

    /// The member `key` when it is a text that is not empty.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Value::Text(text)) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// The elements of the member `key`; none when it is no array.
    pub(crate) fn elements(&self, key: &str) -> &[Value] {
        match self.get(key) {
            Some(Value::Array(elements)) => elements,
            _ => &[],
        }
    }

    /// The value on one line.
    pub(crate) fn compact(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, None);
        out
    }

    /// The value indented by four spaces, as plugins print.
    pub(crate) fn pretty(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, Some(0));
        out
    }

    fn write(&self, out: &mut String, indent: Option<usize>) {
        match self {
            Value::Null => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Number(digits) => out.push_str(digits),
            Value::Text(text) => quote(text, out),
            Value::Array(elements) => {
                group(out, ['[', ']'], indent, elements, Value::write);
            }
            Value::Object(members) => {
                group(out, ['{', '}'], indent, members, |(name, value), out, indent| {
                    quote(name, out);
                    out.push_str(if indent.is_some() { ": " } else { ":" });
                    value.write(out, indent);
                });
            }
        }
    }
}

/// An object of these members.
pub(crate) fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A text.
pub(crate) fn text(text: impl Into<String>) -> Value {
    Value::Text(text.into())
}

fn group<T>(
    out: &mut String,
    [open, close]: [char; 2],
    indent: Option<usize>,
    items: &[T],
    write: impl Fn(&T, &mut String, Option<usize>),
) {
    out.push(open);
    let inner = indent.map(|depth| depth + 1);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        new_line(out, inner);
        write(item, out, inner);
    }
    if !items.is_empty() {
        new_line(out, indent);
    }
    out.push(close);
}

fn new_line(out: &mut String, indent: Option<usize>) {
    if let Some(depth) = indent {
        out.push('\n');
        out.extend(std::iter::repeat_n("    ", depth));
    }
}

fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => {
                // Writing to a String does not fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn wrong(&self, expected: &str) -> String {
        format!("JSON: expected {expected} at octet {}", self.at)
    }

    fn space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH {
            return Err(self.wrong("less nesting"));
        }
        match self.rest().bytes().next() {
            Some(b'{') => self.members(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Value::Text),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ if self.take("true") => Ok(Value::Bool(true)),
            _ if self.take("false") => Ok(Value::Bool(false)),
            _ if self.take("null") => Ok(Value::Null),
            _ => Err(self.wrong("a value")),
        }
    }

    fn members(&mut self, depth: usize) -> Result<Value, String> {
        let mut members = Vec::new();
        self.take("{");
        self.space();
        if self.take("}") {
            return Ok(Value::Object(members));
        }
        loop {
            self.space();
            let name = self.string()?;
            self.space();
            if !self.take(":") {
                return Err(self.wrong("':'"));
            }
            self.space();
            members.push((name, self.value(depth + 1)?));
            self.space();
            if self.take("}") {
                return Ok(Value::Object(members));
            }
            if !self.take(",") {
                return Err(self.wrong("',' or '}'"));
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, String> {
        let mut elements = Vec::new();
        self.take("[");
        self.space();
        if self.take("]") {
            return Ok(Value::Array(elements));
        }
        loop {
            self.space();
            elements.push(self.value(depth + 1)?);
            self.space();
            if self.take("]") {
                return Ok(Value::Array(elements));
            }
            if !self.take(",") {
                return Err(self.wrong("',' or ']'"));
            }
        }
    }

    /// Takes what may be part of a number. What it means is for those who use it.
    fn number(&mut self) -> Result<Value, String> {
        let rest = self.rest();
        let length =
            rest.bytes().take_while(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).count();
        let digits = rest.get(..length).unwrap_or_default();
        if digits.parse::<f64>().is_err() {
            return Err(self.wrong("a number"));
        }
        self.at += length;
        Ok(Value::Number(digits.to_owned()))
    }

    fn string(&mut self) -> Result<String, String> {
        if !self.take("\"") {
            return Err(self.wrong("a text"));
        }
        let mut out = String::new();
        loop {
            let rest = self.rest();
            let plain = rest.find(|c| c == '"' || c == '\\' || c < ' ').unwrap_or(rest.len());
            out.push_str(rest.get(..plain).unwrap_or_default());
            self.at += plain;
            if self.take("\"") {
                return Ok(out);
            }
            if !self.take("\\") {
                return Err(self.wrong("the end of a text"));
            }
            out.push(self.escape()?);
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let c = self.rest().chars().next().ok_or_else(|| self.wrong("an escape"))?;
        self.at += c.len_utf8();
        Ok(match c {
            '"' | '\\' | '/' => c,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => self.unicode()?,
            _ => return Err(self.wrong("an escape")),
        })
    }

    /// Four hexadecimal digits, or two times four for what UTF-16 needs a pair for. Half a pair is no character.
    fn unicode(&mut self) -> Result<char, String> {
        let first = self.hex()?;
        if !(0xD800..0xDC00).contains(&first) {
            return Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        let here = self.at;
        if self.take("\\u") {
            let second = self.hex()?;
            if (0xDC00..0xE000).contains(&second) {
                let code = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
        }
        self.at = here;
        Ok(char::REPLACEMENT_CHARACTER)
    }

    fn hex(&mut self) -> Result<u32, String> {
        let digits = self.rest().get(..4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let code = code.ok_or_else(|| self.wrong("four hexadecimal digits"))?;
        self.at += 4;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "",
            " ",
            "{",
            "[1,]",
            "{\"a\"}",
            "{\"a\":1,}",
            "nul",
            "\"",
            "\"\\x\"",
            "\"\\u12\"",
            "1 2",
            "-",
            "{a:1}",
            "\"\n\"",
        ] {
            assert!(Value::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Value::parse(&[b'[', 0xff, b']']).is_err());
        assert!(Value::parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn keys_in_any_case_and_the_last_one_counts() {
        let value = Value::parse(br#"{"CniVersion":"0.4.0","logfile":"","x":null,"a":1,"A":2}"#).unwrap();
        assert_eq!(value.text("cniVersion"), Some("0.4.0"));
        assert_eq!(value.text("logFile"), None);
        assert_eq!(value.get("x"), None);
        assert_eq!(value.get("a"), Some(&Value::Number("2".into())));
        assert_eq!(Value::Null.get("a"), None);
    }

    #[test]
    fn half_a_pair_is_replaced() {
        for (json, expected) in [
            (r#""\ud83d\ude00""#, "\u{1F600}"),
            (r#""\ud83dx""#, "\u{FFFD}x"),
            (r#""\ud83d\u0041""#, "\u{FFFD}A"),
            (r#""\ude00""#, "\u{FFFD}"),
            (r#""\u000a\b\/""#, "\n\u{8}/"),
        ] {
            assert_eq!(Value::parse(json.as_bytes()).unwrap(), text(expected), "{json}");
        }
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<i32>().prop_map(|n| (f64::from(n) / 8.0).into()),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn reads_and_writes_what_others_do(json in any_json()) {
            for text in [json.to_string(), format!("{json:#}")] {
                let value = Value::parse(text.as_bytes()).unwrap();
                for written in [value.compact(), value.pretty()] {
                    prop_assert_eq!(&serde_json::from_str::<serde_json::Value>(&written).unwrap(), &json);
                }
            }
        }

        #[test]
        fn no_input_panics(text in ".{0,60}") {
            let _ = Value::parse(text.as_bytes());
        }
    }
}
