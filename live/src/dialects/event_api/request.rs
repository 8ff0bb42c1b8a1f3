//! What clients send, checked. Fields that nobody knows are ignored.

use cratemill_protocol::{CollectionId, JsonText, json_text};
use serde::Deserialize;
use serde_json::value::RawValue;

/// bcrypt looks at no more.
pub const MAX_PASSWORD_BYTES: usize = 72;
const MAX_USERNAME_BYTES: usize = 255;
/// Deeper than anything that is meant, and shallow enough that lists of events are read by every parser.
pub const MAX_DATA_DEPTH: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("not the JSON that is expected: {0}")]
    Json(#[from] serde_json::Error),
    #[error("username: expected 1 to {MAX_USERNAME_BYTES} bytes without control characters")]
    Username,
    #[error("password: at most {MAX_PASSWORD_BYTES} bytes")]
    Password,
    #[error("event: a name has no control characters")]
    Name,
    #[error("data: nested more than {MAX_DATA_DEPTH} levels deep")]
    Depth,
    #[error("data: {0}")]
    Data(json_text::Error),
}

impl Error {
    /// It is JSON of the right shape, and means nothing.
    pub fn is_meaning(&self) -> bool {
        !matches!(self, Self::Json(_) | Self::Data(_))
    }
}

/// Who somebody says to be. It may be nobody.
#[derive(Debug, Deserialize)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

#[derive(Debug, Deserialize)]
pub struct SignUp {
    #[serde(flatten)]
    pub credentials: Credentials,
    pub collection_id: CollectionId,
}

impl SignUp {
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        let this: Self = serde_json::from_slice(body)?;
        let Credentials { username, password } = &this.credentials;
        if !(1..=MAX_USERNAME_BYTES).contains(&username.len()) || username.chars().any(char::is_control) {
            return Err(Error::Username);
        }
        if password.len() > MAX_PASSWORD_BYTES {
            return Err(Error::Password);
        }
        Ok(this)
    }
}

impl Credentials {
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        Ok(serde_json::from_slice(body)?)
    }
}

#[derive(Debug)]
pub struct Insert {
    pub event: String,
    pub collection_id: CollectionId,
    /// Unix seconds.
    pub timestamp: i64,
    pub data: JsonText,
}

impl Insert {
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Body<'a> {
            event: String,
            collection_id: CollectionId,
            timestamp: i64,
            #[serde(borrow)]
            data: &'a RawValue,
        }
        let Body { event, collection_id, timestamp, data } = serde_json::from_slice(body)?;
        if event.chars().any(char::is_control) {
            return Err(Error::Name);
        }
        let data = JsonText::parse(data.get().as_bytes()).map_err(|error| match error {
            json_text::Error::TooDeep => Error::Depth,
            error => Error::Data(error),
        })?;
        if data.depth() > MAX_DATA_DEPTH {
            return Err(Error::Depth);
        }
        Ok(Self { event, collection_id, timestamp, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77";

    fn insert(timestamp: &str, event: &str, data: &str) -> Result<Insert, Error> {
        let body = format!(
            r#"{{"x": 1, "event": {event}, "collection_id": "{ID}", "timestamp": {timestamp}, "data": {data}}}"#
        );
        Insert::parse(body.as_bytes())
    }

    #[test]
    fn data_stays_as_it_was_written() {
        for data in
            ["null", "18446744073709551615", "123456789012345678901234", "1.10", r#""\u0000 ä""#, "[]"]
        {
            assert_eq!(insert("0", "\"x\"", data).unwrap().data.as_str(), data);
        }
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(insert("0", "\"x\"", &nested(MAX_DATA_DEPTH)).is_ok());
        for depth in [MAX_DATA_DEPTH + 1, 10_000] {
            assert!(insert("0", "\"x\"", &nested(depth)).unwrap_err().is_meaning(), "{depth}");
        }
    }

    #[test]
    fn timestamps_are_whole_numbers() {
        for good in ["0", "-1", "9223372036854775807", "-9223372036854775808"] {
            assert_eq!(insert(good, "\"x\"", "1").unwrap().timestamp.to_string(), good);
        }
        for bad in ["1.0", "1e3", "9223372036854775808", "\"1\"", "null"] {
            assert!(!insert(bad, "\"x\"", "1").unwrap_err().is_meaning(), "{bad}");
        }
    }

    #[test]
    fn any_name_but_one_that_breaks_lines() {
        for good in ["\"\"", "\"a_u_b_v_c\"", "\"ä \\u2028 🦀\""] {
            assert!(insert("0", good, "1").is_ok(), "{good}");
        }
        for bad in ["\"a\\nb\"", "\"\\u0000\"", "\"\\r\"", "\"\\u0085\""] {
            assert!(insert("0", bad, "1").unwrap_err().is_meaning(), "{bad}");
        }
        for bad in ["1", "\"\\ud800\"", "null"] {
            assert!(!insert("0", bad, "1").unwrap_err().is_meaning(), "{bad}");
        }
    }

    #[test]
    fn people() {
        let sign_up = |username: &str, password: &str| {
            let body =
                serde_json::json!({"username": username, "password": password, "collection_id": ID, "x": []});
            SignUp::parse(body.to_string().as_bytes())
        };
        assert!(sign_up("a", &"x".repeat(72)).is_ok());
        assert!(sign_up("a", &"ä".repeat(37)).unwrap_err().is_meaning());
        for bad in ["", "a\nb", &"x".repeat(256)] {
            assert!(sign_up(bad, "p").unwrap_err().is_meaning(), "{bad}");
        }
        for bad in
            ["", "{}", "[]", r#"{"username": "a", "password": "b"}"#, r#"{"username": 1, "password": "b"}"#]
        {
            assert!(!SignUp::parse(bad.as_bytes()).unwrap_err().is_meaning(), "{bad}");
        }
        assert!(Credentials::parse(br#"{"username": "a", "password": "b", "z": 1}"#).is_ok());
    }
}
