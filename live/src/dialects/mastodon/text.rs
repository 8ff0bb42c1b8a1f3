//! What a status says, without its markup, and which of a viewer's words may be in it.
//!
//! A text is scanned once: which two and three bytes stand beside each other is kept in a set of bits, and a keyword whose
//! own are not all there cannot be in it. So a viewer's keywords cost a few looks each, however long the text is.

use serde::Deserialize;

/// As Mastodon's streaming server puts it together before it looks for keywords.
#[derive(Debug, Default, Deserialize)]
pub struct Parts {
    #[serde(default)]
    spoiler_text: Option<String>,
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    poll: Option<Poll>,
    #[serde(default)]
    media_attachments: Option<Vec<Attachment>>,
}

#[derive(Debug, Deserialize)]
struct Poll {
    #[serde(default)]
    options: Option<Vec<PollOption>>,
}

#[derive(Debug, Deserialize)]
struct PollOption {
    #[serde(default)]
    title: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Attachment {
    #[serde(default)]
    description: Option<String>,
}

impl Parts {
    pub fn plain(&self) -> String {
        let options = self.poll.iter().flat_map(|poll| poll.options.iter().flatten());
        let attachments = self.media_attachments.iter().flatten();
        let parts = [self.spoiler_text.as_deref(), self.content.as_deref()]
            .into_iter()
            .chain(options.map(|option| option.title.as_deref()))
            .chain(attachments.map(|attachment| attachment.description.as_deref()));
        let markup: Vec<&str> = parts.map(Option::unwrap_or_default).collect();
        strip(&markup.join("\n\n"))
    }
}

/// The text of a piece of HTML, as a browser has it; line breaks and paragraphs are line breaks.
pub fn strip(markup: &str) -> String {
    let mut out = String::with_capacity(markup.len());
    let mut rest = markup;
    while let Some(at) = rest.find('<') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let Some(length) = tag(rest) else {
            out.push('<');
            rest = &rest[1..];
            continue;
        };
        let found = &rest[..length];
        rest = &rest[length..];
        if is_break(found) {
            out.push('\n');
        } else if found == "</p>" && rest.starts_with("<p>") {
            out.push_str("\n\n");
        }
    }
    out.push_str(rest);
    if out.contains('&') { htmlize::unescape(out.as_str()).into_owned() } else { out }
}

/// How long the tag or comment is that stands here, if it is one. One without an end goes to the end.
fn tag(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    if let Some(comment) = text.strip_prefix("<!--") {
        return Some(comment.find("-->").map_or(text.len(), |end| end + "<!---->".len()));
    }
    let opens = match bytes.get(1)? {
        b'/' => bytes.get(2)?,
        byte => byte,
    };
    if !opens.is_ascii_alphabetic() && !matches!(bytes[1], b'/' | b'!' | b'?') {
        return None;
    }
    let mut quote = None;
    for (at, byte) in bytes.iter().enumerate().skip(1) {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            (None, b'"' | b'\'') if bytes[at - 1] == b'=' => quote = Some(*byte),
            (Some(open), byte) if open == *byte => quote = None,
            _ => {}
        }
    }
    Some(text.len())
}

fn is_break(tag: &str) -> bool {
    let inside = tag.strip_prefix("<br").and_then(|rest| rest.strip_suffix('>'));
    inside.is_some_and(|inside| inside.trim_end_matches('/').trim().is_empty())
}

/// Bits of [`Grams`]: of a text of five hundred letters few of them are set.
const BITS: usize = 1 << 15;

/// Which bytes stand beside each other in a text, letters in one case.
#[derive(Debug)]
pub struct Grams(Box<[u64; BITS / 64]>);

/// The same of one keyword: each is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needle(Box<[u16]>);

/// Enough to tell most texts without the word.
const MOST: usize = 6;

impl Grams {
    /// `folded` is text in one case.
    pub fn of(folded: &str) -> Self {
        let mut bits = Box::new([0; BITS / 64]);
        for gram in grams(folded) {
            bits[usize::from(gram) / 64] |= 1 << (gram % 64);
        }
        Self(bits)
    }

    /// False only where the word is not in the text.
    pub fn may_have(&self, needle: &Needle) -> bool {
        needle.0.iter().all(|gram| self.0[usize::from(*gram) / 64] & (1 << (gram % 64)) != 0)
    }
}

impl Needle {
    /// Of less than two bytes there is nothing to look for: such a word may be anywhere.
    pub fn of(folded: &str) -> Self {
        let mut all: Vec<u16> = grams(folded).collect();
        // The long ones tell more.
        all.reverse();
        all.dedup();
        all.truncate(MOST);
        Self(all.into())
    }
}

/// First those of two bytes, then those of three.
fn grams(folded: &str) -> impl Iterator<Item = u16> {
    let bytes = folded.as_bytes();
    bytes.windows(2).chain(bytes.windows(3)).map(hash)
}

#[allow(clippy::cast_possible_truncation, reason = "the upper bits, which are as many as there are")]
fn hash(gram: &[u8]) -> u16 {
    let number = gram.iter().fold(gram.len() as u32, |number, byte| number << 8 | u32::from(*byte));
    (number.wrapping_mul(0x9E37_79B1) >> (32 - BITS.trailing_zeros())) as u16
}

/// With letters in one case, as JavaScript's expressions compare them: a letter for a letter, and none of ASCII for another.
pub fn folded(text: &str) -> String {
    text.chars().map(fold).collect()
}

fn fold(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_uppercase();
    }
    // Two units of JavaScript's, neither of which is a letter.
    if c > '\u{FFFF}' {
        return c;
    }
    let mut upper = c.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(upper), None) if !upper.is_ascii() => upper,
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn markup_becomes_text() {
        for (markup, text) in [
            ("<p>Hello</p>", "Hello"),
            ("<p>a</p><p>b</p>", "a\n\nb"),
            ("a<br>b<br/>c<br />d", "a\nb\nc\nd"),
            ("x &lt;b&gt; &amp; y&#39;s &hellip;", "x <b> & y's …"),
            ("&amp;lt;", "&lt;"),
            (r#"<a href="x>y" class='b'>link</a>!"#, "link!"),
            (r#"<span class="h-card">@<span>ann</span></span>"#, "@ann"),
            ("a < b and 3 <4, I <3 it", "a < b and 3 <4, I <3 it"),
            ("a <!-- no --> b", "a  b"),
            ("open <a href=", "open "),
            ("<", "<"),
            ("</", "</"),
            ("", ""),
        ] {
            assert_eq!(strip(markup), text, "{markup}");
        }
    }

    #[test]
    fn all_that_a_status_says_counts() {
        let json = r#"{"spoiler_text":"CW","content":"<p>body</p>","poll":{"options":[{"title":"yes"},{"title":"no"}]},
                       "media_attachments":[{"description":"a cat"},{"description":null},{}]}"#;
        let parts: Parts = serde_json::from_str(json).unwrap();
        assert_eq!(parts.plain(), "CW\n\nbody\n\nyes\n\nno\n\na cat\n\n\n\n");
        let parts: Parts = serde_json::from_str(r#"{"content":null,"poll":null}"#).unwrap();
        assert_eq!(parts.plain(), "\n\n");
    }

    #[test]
    fn a_word_that_is_not_there_is_mostly_seen() {
        let grams = Grams::of(&folded(&"The quick brown fox jumps over the lazy dog. ".repeat(12)));
        let strange: Vec<String> = (0..2_000).map(|n| format!("ZX{n:04}Q")).collect();
        let seen = strange.iter().filter(|word| grams.may_have(&Needle::of(word))).count();
        assert!(seen < 20, "{seen}");
    }

    proptest! {
        #[test]
        fn what_is_there_is_never_missed(text in "\\PC{0,80}", start in 0_usize..80, length in 0_usize..20) {
            let word: String = text.chars().skip(start).take(length).collect();
            prop_assert!(Grams::of(&folded(&text)).may_have(&Needle::of(&folded(&word))));
            let _ = strip(&text);
        }
    }
}
