//! A client of the REST API, as far as a stack, its demo and its tests need one.

use anyhow::{Context, Result, bail};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::time::Duration;

/// Of everything but downloads.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Pages of one list; with fifty items a page it is a bug to have more.
const MAX_PAGES: usize = 100;

#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    admin_token: String,
}

impl Client {
    pub fn new(url: &str, admin_token: &str) -> Self {
        Self { http: reqwest::Client::new(), url: url.to_owned(), admin_token: admin_token.to_owned() }
    }

    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.send(self.http.get(self.url(path))).await.with_context(|| format!("GET {path}"))
    }

    /// As the operator.
    pub async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let request = self.http.request(method.clone(), self.url(path));
        let request = request.bearer_auth(&self.admin_token).json(body);
        self.send(request).await.with_context(|| format!("{method} {path}"))
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, path, body).await
    }

    /// All items of a list, page by page.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut page = path.to_owned();
        for _ in 0..MAX_PAGES {
            let body = self.get(&page).await?;
            items.extend(body["items"].as_array().context("the answer has no items")?.iter().cloned());
            let Some(cursor) = body["next"].as_str() else { return Ok(items) };
            let separator = if path.contains('?') { '&' } else { '?' };
            page = format!("{path}{separator}cursor={cursor}");
        }
        bail!("GET {path}: more than {MAX_PAGES} pages");
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value> {
        let response = request.timeout(TIMEOUT).send().await?;
        let status = response.status();
        let text = response.text().await?;
        if status.is_success() {
            return match text.as_str() {
                "" => Ok(Value::Null),
                text => serde_json::from_str(text).context("the answer is not JSON"),
            };
        }
        bail!("{status}{}", explanation(status, &text));
    }
}

/// What a problem document says beyond its status.
fn explanation(status: StatusCode, text: &str) -> String {
    let problem: Value = serde_json::from_str(text).unwrap_or_default();
    match (problem["detail"].as_str(), problem["title"].as_str()) {
        (Some(why), _) | (None, Some(why)) if Some(why) != status.canonical_reason() => format!(": {why}"),
        _ => String::new(),
    }
}
