//! Who may do what: operators by the admin token, builders by the token of their job.

use crate::{App, config::Secret, problem::Problem};
use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
};
use cratemill_protocol::{
    JobId,
    token::{self, Claims, Purpose, Signer},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const OPERATOR_CHALLENGE: &str = "Bearer realm=\"cratemill\"";
const JOB_CHALLENGE: &str = "Bearer realm=\"cratemill-job\"";

/// The admin token, as a digest: comparing digests takes the same time wherever, and however long, a guess is wrong.
#[derive(Clone)]
pub(crate) struct AdminToken([u8; 32]);

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken(..)")
    }
}

impl AdminToken {
    pub(crate) fn new(secret: &Secret) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    fn is(&self, presented: &[u8]) -> bool {
        self.0.ct_eq(&Sha256::digest(presented)).into()
    }
}

/// The request comes from an operator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operator;

impl FromRequestParts<App> for Operator {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        match bearer(&parts.headers) {
            Some(token) if app.admin.is(token) => Ok(Self),
            Some(_) => Err(challenge("this is not the operator's token", OPERATOR_CHALLENGE)),
            None => Err(challenge("this route wants the operator's bearer token", OPERATOR_CHALLENGE)),
        }
    }
}

/// The claims of a good job token in the request, if they are for building this job.
pub(crate) fn job_token(
    headers: &HeaderMap,
    signer: &Signer,
    job: JobId,
    now_s: i64,
) -> Result<Claims, Problem> {
    let text = bearer(headers)
        .and_then(|token| std::str::from_utf8(token).ok())
        .ok_or_else(|| challenge("this route wants the job's bearer token", JOB_CHALLENGE))?;
    match signer.verify(text, now_s) {
        Ok(claims) if claims.job == job && claims.purpose == Purpose::Build => Ok(claims),
        Ok(_) | Err(token::Error::WrongScope) => {
            Err(Problem::new(StatusCode::FORBIDDEN, "the job token is for something else"))
        }
        Err(error) => Err(challenge(&error.to_string(), JOB_CHALLENGE)),
    }
}

fn challenge(detail: &str, challenge: &'static str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, detail)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
}

/// The credentials of `Authorization: Bearer ...`, if there is exactly one such header.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let values = values.iter().map(|value| (header::AUTHORIZATION, value.parse().unwrap()));
        values.collect()
    }

    #[test]
    fn one_bearer_token_is_read() {
        assert_eq!(bearer(&headers(&["Bearer abc"])), Some(&b"abc"[..]));
        assert_eq!(bearer(&headers(&["bearer  abc"])), Some(&b"abc"[..]));
        assert_eq!(bearer(&headers(&["Bearer "])), Some(&b""[..]));
        for bad in [&["Basic abc"][..], &[], &["Bearer"], &["Bearer a", "Bearer b"], &["Bearerabc"]] {
            let mut repeated = HeaderMap::new();
            for value in bad {
                repeated.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            assert_eq!(bearer(&repeated), None, "{bad:?}");
        }
    }

    #[test]
    fn only_the_same_token_is_the_same() {
        let token = AdminToken::new(&"0123456789abcdef".parse().unwrap());
        assert!(token.is(b"0123456789abcdef"));
        for wrong in [&b""[..], b"0123456789abcde", b"0123456789abcdeF", b"0123456789abcdef0"] {
            assert!(!token.is(wrong));
        }
    }
}
