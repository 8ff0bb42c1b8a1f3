//! What an access token is good for.

/// Of the scopes of a token those that streams ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scopes {
    /// `read` or `read:statuses`: everything but notifications.
    pub statuses: bool,
    /// `read` or `read:notifications`.
    pub notifications: bool,
}

impl Scopes {
    /// Of the column of the token: names with spaces between them.
    pub fn parse(text: &str) -> Self {
        let has = |scope: &str| text.split_ascii_whitespace().any(|word| word == "read" || word == scope);
        Self { statuses: has("read:statuses"), notifications: has("read:notifications") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_is_all_of_it() {
        for (text, statuses, notifications) in [
            ("read", true, true),
            ("write read follow", true, true),
            ("read:statuses", true, false),
            ("read:notifications push", false, true),
            ("write", false, false),
            ("read:statuses2 reader", false, false),
            ("", false, false),
        ] {
            assert_eq!(Scopes::parse(text), Scopes { statuses, notifications }, "{text}");
        }
    }
}
