//! Where a page of a list begins. Opaque to clients, so that what a list is sorted by can change.

use crate::problem::{Problem, Result};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use std::{fmt::Display, str::FromStr};

pub(crate) const DEFAULT_LIMIT: u8 = 50;
pub(crate) const MAX_LIMIT: u8 = 100;

/// `list` keeps a cursor of one list from being taken for another's.
pub(crate) fn encode(list: &str, position: impl Display) -> String {
    BASE64.encode(format!("{list}:{position}"))
}

pub(crate) fn decode<T: FromStr>(list: &str, cursor: Option<&str>) -> Result<Option<T>> {
    let Some(cursor) = cursor else { return Ok(None) };
    let position = || {
        let text = String::from_utf8(BASE64.decode(cursor).ok()?).ok()?;
        text.strip_prefix(list)?.strip_prefix(':')?.parse().ok()
    };
    position().map(Some).ok_or_else(|| Problem::bad_request("this is no cursor of this list").at("cursor"))
}

/// How many items a page may have.
pub(crate) fn limit(asked: Option<u8>) -> Result<usize> {
    match asked.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(usize::from(limit)),
        _ => Err(Problem::bad_request(format!("limit goes from 1 to {MAX_LIMIT}")).at("limit")),
    }
}

/// Cuts a list that was read with one item more than the page has, and says where the next page begins.
pub(crate) fn page<T, P: Display>(
    mut items: Vec<T>,
    limit: usize,
    list: &str,
    position: impl Fn(&T) -> P,
) -> (Vec<T>, Option<String>) {
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| encode(list, position(last)));
    (items, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pages_follow_each_other() {
        let (items, next) = page(vec![5, 4, 3], 2, "jobs", |n| *n);
        assert_eq!(items, [5, 4]);
        assert_eq!(decode::<i32>("jobs", next.as_deref()).unwrap(), Some(4));
        assert_eq!(page(vec![2, 1], 2, "jobs", |n| *n).1, None);
        assert_eq!(page(Vec::<i32>::new(), 2, "jobs", |n| *n).1, None);
    }

    #[test]
    fn of_another_list_is_refused() {
        assert!(decode::<i64>("builders", Some(&encode("jobs", 7))).is_err());
        assert!(decode::<i64>("jobs", Some(&encode("jobs", "x"))).is_err());
    }

    proptest! {
        #[test]
        fn any_position_comes_back(text in "\\PC{0,80}") {
            prop_assert_eq!(decode::<String>("crates", Some(&encode("crates", &text))).unwrap(), Some(text));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,80}") {
            let _ = decode::<i64>("jobs", Some(&text));
        }
    }
}
