//! JSON that is passed on as it was written: on one line, with every number, key and escape as its author has it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// As deep as the parsers of most languages go without being told; serde_json stops there too.
pub const MAX_DEPTH: usize = 127;

/// One JSON value as text, without white space between its tokens, and so without line breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JsonText(String);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it is not in UTF-8")]
    NotText,
    #[error("{0}")]
    NotJson(#[from] serde_json::Error),
    #[error("it is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
}

impl JsonText {
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(bytes).map_err(|_| Error::NotText)?;
        // It skips values without keeping them, at any depth and whatever the size of a number.
        serde_json::from_str::<serde::de::IgnoredAny>(text)?;
        compact(text).map(Self)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Levels of arrays and objects.
    pub fn depth(&self) -> usize {
        let (mut depth, mut deepest) = (0_usize, 0);
        let (mut in_string, mut escaped) = (false, false);
        for byte in self.0.bytes() {
            if in_string {
                in_string = escaped || byte != b'"';
                escaped = !escaped && byte == b'\\';
                continue;
            }
            match byte {
                b'"' => in_string = true,
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(depth);
        }
        deepest
    }
}

/// `text` is JSON: what is white space outside of its strings stands between tokens that need none.
fn compact(text: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut escaped, mut depth) = (false, false, 0_usize);
    for c in text.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else {
            match c {
                ' ' | '\t' | '\n' | '\r' => continue,
                '"' => in_string = true,
                '[' | '{' => depth += 1,
                ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > MAX_DEPTH {
                return Err(Error::TooDeep);
            }
        }
        out.push(c);
    }
    Ok(out)
}

impl fmt::Display for JsonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for JsonText {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(text.as_bytes())
    }
}

impl From<JsonText> for String {
    fn from(text: JsonText) -> Self {
        text.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn compact(text: &str) -> String {
        JsonText::parse(text.as_bytes()).unwrap().to_string()
    }

    #[test]
    fn everything_but_white_space_stays() {
        for (text, expected) in [
            (" 1.0e400\n", "1.0e400"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("[ -0.0 , 1.10 ]", "[-0.0,1.10]"),
            ("{ \"b\" : 1 ,\r\n\t\"a\" : 2 , \"b\" : 3 }", r#"{"b":1,"a":2,"b":3}"#),
            (r#" "a  \" b \\" "#, r#""a  \" b \\""#),
            (r#"[ "\\" , "\n \u00e4 ä" ]"#, r#"["\\","\n \u00e4 ä"]"#),
            ("\"\u{2028} \u{a0}\"", "\"\u{2028} \u{a0}\""),
            ("null", "null"),
        ] {
            assert_eq!(compact(text), expected);
        }
    }

    #[test]
    fn depth() {
        for (text, expected) in [("1", 0), ("\"[[\\\"[\"", 0), ("[]", 1), (r#"[{"a[": []}, [1]]"#, 3)] {
            assert_eq!(JsonText::parse(text.as_bytes()).unwrap().depth(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for bad in [
            &b""[..],
            b" ",
            b"{",
            b"[1,]",
            b"{a:1}",
            b"1 2",
            b"01",
            b"nul",
            b"NaN",
            b"\"a",
            b"\"a\nb\"",
            b"\"\\x\"",
            b"\"\xff\"",
            b"\xef\xbb\xbf1",
            b"[\xc2\xa01]",
        ] {
            assert!(JsonText::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn nesting_is_bounded_as_a_reader_bounds_it() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(serde_json::from_str::<Value>(&compact(&nested(MAX_DEPTH))).is_ok());
        for depth in [MAX_DEPTH + 1, 100_000] {
            assert!(serde_json::from_str::<Value>(&nested(depth)).is_err());
            assert!(matches!(JsonText::parse(nested(depth).as_bytes()), Err(Error::TooDeep)));
        }
        // Side by side is not deep, nor is what stands in a string.
        assert!(JsonText::parse(format!("[{}[]]", "[],".repeat(1_000)).as_bytes()).is_ok());
        assert!(JsonText::parse(format!("\"{}\"", "[".repeat(1_000)).as_bytes()).is_ok());
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[ \\t\\n\"\\\\\\[{,:a-zäß\u{1F980}]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 60, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("[ \"\\\\a-c]{0,4}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_is_what_serde_json_writes(value in value()) {
            let expected = serde_json::to_string(&value).unwrap();
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(&compact(&pretty), &expected);
            prop_assert_eq!(compact(&expected), expected);
        }

        #[test]
        fn it_takes_what_others_read(text in "[\\[\\]{}\",:0-9eE.+\\-\\\\ \\ntruefalsn]{0,30}") {
            let (ours, theirs) = (JsonText::parse(text.as_bytes()), serde_json::from_str::<Value>(&text));
            match theirs {
                Ok(theirs) => {
                    let ours = ours.unwrap();
                    prop_assert!(!ours.as_str().contains(['\n', '\r']));
                    prop_assert_eq!(serde_json::from_str::<Value>(ours.as_str()).unwrap(), theirs);
                }
                // Theirs has no room for all numbers.
                Err(error) => prop_assert!(ours.is_err() || error.to_string().contains("out of range")),
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            _ = JsonText::parse(&bytes);
        }
    }
}
