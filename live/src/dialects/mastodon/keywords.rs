//! Keyword filters: which of a viewer's filters a status matches, and how that is said.

use super::text::{self, Grams, Needle};
use serde::Serialize;

/// One of a viewer's filters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// As viewers are told of it, in JSON.
    description: Box<str>,
    /// In milliseconds since 1970.
    expires_at_ms: Option<i64>,
    keywords: Box<[Keyword]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Keyword {
    /// In one case.
    word: Box<str>,
    needle: Needle,
    whole: bool,
}

/// What a filter is called and does.
#[derive(Debug, Serialize)]
pub struct Description<'a> {
    pub id: &'a str,
    pub title: &'a str,
    pub context: &'a [String],
    pub expires_at: Option<&'a str>,
    pub filter_action: &'a str,
}

/// What a status says, looked at once for all viewers.
#[derive(Debug)]
pub struct Text {
    plain: String,
    /// In one case, letter for letter.
    folded: String,
    grams: Grams,
}

impl Text {
    pub fn new(plain: String) -> Self {
        let folded = text::folded(&plain);
        let grams = Grams::of(&folded);
        Self { plain, folded, grams }
    }

    /// Where in the text as it was written something in the folded one is.
    fn at(&self, folded: usize) -> usize {
        let letters = self.folded[..folded].chars().count();
        self.plain.char_indices().nth(letters).map_or(self.plain.len(), |(at, _)| at)
    }
}

impl Filter {
    /// `keywords`: each with whether only the whole word counts.
    pub fn new<'a>(
        description: &Description<'_>,
        expires_at_ms: Option<i64>,
        keywords: impl IntoIterator<Item = (&'a str, bool)>,
    ) -> Self {
        let keyword = |(word, whole): (&str, bool)| {
            let word = text::folded(word);
            Keyword { needle: Needle::of(&word), word: word.into(), whole }
        };
        let keywords = keywords.into_iter().filter(|(word, _)| !word.is_empty()).map(keyword).collect();
        // A map of strings.
        let description = serde_json::to_string(description).unwrap_or_default().into();
        Self { description, expires_at_ms, keywords }
    }

    /// What matches first in the text, as it is written there.
    fn find<'a>(&self, text: &'a Text, now_ms: i64) -> Option<&'a str> {
        if self.expires_at_ms.is_some_and(|expires| expires < now_ms) {
            return None;
        }
        let possible = self.keywords.iter().filter(|keyword| text.grams.may_have(&keyword.needle));
        let found = possible.filter_map(|keyword| Some((keyword.find(&text.folded)?, keyword.word.len())));
        // Of those that begin at the same place the first keyword.
        let (start, length) = found.reduce(|best, next| if next.0 < best.0 { next } else { best })?;
        Some(&text.plain[text.at(start)..text.at(start + length)])
    }
}

impl Keyword {
    fn find(&self, text: &str) -> Option<usize> {
        let mut from = 0;
        while let Some(found) = text.get(from..)?.find(&*self.word) {
            let (start, end) = (from + found, from + found + self.word.len());
            if !self.whole || self.is_whole(&text[..start], &text[end..]) {
                return Some(start);
            }
            from = start + self.word.chars().next().map_or(1, char::len_utf8);
        }
        None
    }

    /// The word ends where it does, where it ends in what words are made of.
    fn is_whole(&self, before: &str, after: &str) -> bool {
        let goes_on = |ours: Option<char>, theirs: Option<char>| {
            ours.is_some_and(is_of_words) && theirs.is_some_and(is_of_words)
        };
        !goes_on(self.word.chars().next(), before.chars().next_back())
            && !goes_on(self.word.chars().next_back(), after.chars().next())
    }
}

/// As JavaScript has it.
fn is_of_words(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[derive(Serialize)]
struct Match<'a> {
    filter: &'a serde_json::value::RawValue,
    keyword_matches: [&'a str; 1],
    status_matches: Option<()>,
}

/// Those that match, as a JSON array; nothing if none does.
pub fn matches(filters: &[Filter], text: &Text, now_ms: i64) -> Option<String> {
    let found = filters.iter().filter_map(|filter| {
        let word = filter.find(text, now_ms)?;
        Some(Match {
            filter: serde_json::from_str(&filter.description).ok()?,
            keyword_matches: [word],
            status_matches: None,
        })
    });
    let found: Vec<Match<'_>> = found.collect();
    if found.is_empty() { None } else { serde_json::to_string(&found).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(keywords: &[(&str, bool)]) -> Filter {
        let description =
            Description { id: "7", title: "t", context: &[], expires_at: None, filter_action: "warn" };
        Filter::new(&description, None, keywords.iter().copied())
    }

    #[test]
    fn the_first_match_of_all_keywords_counts() {
        for (keywords, text, found) in [
            (&[("cat", false)][..], "A Concatenation", Some("cat")),
            (&[("cat", true)], "A concatenation, a CAT!", Some("CAT")),
            (&[("cat", true)], "cats", None),
            (&[("cat", true)], "my_cat", None),
            (&[("cat", true)], "(cat)", Some("cat")),
            (&[("#cat", true)], "x#cat y", Some("#cat")),
            (&[("#cat", true)], "x#cats y", None),
            (&[("c++", true)], "c++11", Some("c++")),
            (&[("dog", false), ("cat", false)], "cat dog", Some("cat")),
            (&[("do", false), ("dog", false)], "a dog", Some("do")),
            (&[("dog", false), ("do", false)], "a dog", Some("dog")),
            (&[("ÄRGER", false)], "großer ärger", Some("ärger")),
            (&[("straße", true)], "STRASSE Straße", Some("Straße")),
            (&[("café", true)], "cafés", Some("café")),
            (&[("ai", true)], "said AI", Some("AI")),
            (&[("x", true)], "ox x", Some("x")),
            (&[("ſ", false)], "S s ſ", Some("ſ")),
            (&[("猫", false)], "私の猫です", Some("猫")),
            (&[("", false)], "a", None),
            (&[("aab", false)], "aaab", Some("aab")),
        ] {
            let text = Text::new(text.to_owned());
            assert_eq!(filter(keywords).find(&text, 0), found, "{keywords:?} {text:?}");
        }
    }

    #[test]
    fn matches_are_told_as_mastodon_tells_them() {
        let context = ["home".to_owned()];
        let expires_at = Some("2100-01-02T03:04:05.000Z");
        let description =
            Description { id: "7", title: "T\"", context: &context, expires_at, filter_action: "hide" };
        let filters = [Filter::new(&description, Some(10), [("b", false)]), filter(&[("z", false)])];
        let text = Text::new("a B".into());
        let told = r#"[{"filter":{"id":"7","title":"T\"","context":["home"],"expires_at":"2100-01-02T03:04:05.000Z","filter_action":"hide"},"keyword_matches":["B"],"status_matches":null}]"#;
        assert_eq!(matches(&filters, &text, 10).as_deref(), Some(told));
        assert_eq!(matches(&filters, &text, 11), None, "it has expired");
    }
}
