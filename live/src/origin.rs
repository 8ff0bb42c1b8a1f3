//! Pages of which origins may read what.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

#[derive(Debug)]
pub struct Origins(Vec<HeaderValue>);

impl Origins {
    pub fn new(origins: Vec<HeaderValue>) -> Self {
        Self(origins)
    }

    pub fn cors(&self) -> CorsLayer {
        let origin =
            if self.is_any() { AllowOrigin::any() } else { AllowOrigin::list(self.0.iter().cloned()) };
        CorsLayer::new().allow_origin(origin).allow_methods([Method::GET, Method::POST]).allow_headers([
            HeaderName::from_static("last-event-id"),
            HeaderName::from_static("message-id"),
            header::CACHE_CONTROL,
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
        ])
    }

    /// A browser asks nobody before it opens a WebSocket: the server has to look. What is no browser has no origin.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return true };
        let host = headers.get(header::HOST).map(HeaderValue::as_bytes).unwrap_or_default();
        let own = |scheme: &str| origin.as_bytes().strip_prefix(scheme.as_bytes()) == Some(host);
        self.is_any() || self.0.contains(origin) || own("https://") || own("http://")
    }

    fn is_any(&self) -> bool {
        self.0.iter().any(|origin| origin == "*")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_origins_open_no_websocket() {
        let listed = Origins::new(vec![HeaderValue::from_static("https://a.example")]);
        for (origin, expected) in [
            (None, true),
            (Some("https://a.example"), true),
            (Some("https://live.example"), true),
            (Some("http://live.example"), true),
            (Some("https://b.example"), false),
            (Some("https://live.example.b.example"), false),
            (Some("null"), false),
        ] {
            let mut headers =
                HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("live.example"))]);
            headers.extend(origin.map(|origin| (header::ORIGIN, HeaderValue::from_static(origin))));
            assert_eq!(listed.allow(&headers), expected, "{origin:?}");
            assert!(Origins::new(vec![HeaderValue::from_static("*")]).allow(&headers));
        }
    }
}
