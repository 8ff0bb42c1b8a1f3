//! Names of crates from a feed: plain text, one a line, or RSS and Atom, where links lead to `/crates/<name>`.

use cratemill_protocol::CrateName;
use std::collections::BTreeSet;

/// The most names taken from one feed: each costs a request per round.
pub const MAX_NAMES: usize = 5_000;

const LINK: &str = "/crates/";

/// Whatever is no name is passed over.
pub fn names(body: &str) -> BTreeSet<CrateName> {
    let xml = body.trim_start_matches('\u{feff}').trim_start().starts_with('<');
    let names: Box<dyn Iterator<Item = &str>> =
        if xml { Box::new(linked(body)) } else { Box::new(listed(body)) };
    names.filter_map(|name| CrateName::parse(name).ok()).take(MAX_NAMES).collect()
}

fn listed(body: &str) -> impl Iterator<Item = &str> {
    body.lines().map(|line| line.split('#').next().unwrap_or_default().trim())
}

fn linked(body: &str) -> impl Iterator<Item = &str> {
    body.split(LINK).skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(body: &str) -> Vec<String> {
        names(body).into_iter().map(String::from).collect()
    }

    #[test]
    fn both_forms() {
        assert_eq!(all("hexyl\n# comment\n\nbat # good\n../x\nhexyl"), ["bat", "hexyl"]);
        let rss = r#"<?xml version="1.0"?><rss><channel><item><link>https://r.example/crates/demo-tool/0.1.0</link>
            <guid>https://r.example/crates/demo-tool/0.1.0</guid></item><entry><link href="https://r.example/crates/b_c"/>
            </entry><item><link>https://r.example/crates/</link></item></channel></rss>"#;
        assert_eq!(all(rss), ["b_c", "demo-tool"]);
        assert!(all("").is_empty());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[<]?.{0,60}(/crates/.{0,20}){0,3}") {
            names(&text);
        }
    }
}
