//! Whose a token is, and what they may listen to.

use super::{Error, in_time};
use crate::bulk::Pool;
use tokio_postgres::types::Type;

/// An access token that is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub id: i64,
    pub account: i64,
    pub scopes: String,
    /// The languages that its owner wants to read, if they chose any.
    pub languages: Option<Vec<String>>,
    /// Of the owner's role, bit by bit.
    pub permissions: i64,
}

/// Nothing for one that is unknown or revoked, or whose owner is disabled or suspended.
pub async fn token(pool: &Pool, token: &str) -> Result<Option<Token>, Error> {
    const SQL: &str = "
        SELECT oauth_access_tokens.id, users.account_id, coalesce(oauth_access_tokens.scopes, '')::text,
               users.chosen_languages::text[], coalesce(user_roles.permissions, 0)::bigint
        FROM oauth_access_tokens
        JOIN users ON users.id = oauth_access_tokens.resource_owner_id
        JOIN accounts ON accounts.id = users.account_id
        LEFT JOIN user_roles ON user_roles.id = users.role_id
        WHERE oauth_access_tokens.token = $1 AND oauth_access_tokens.revoked_at IS NULL
          AND NOT users.disabled AND accounts.suspended_at IS NULL
        LIMIT 1";
    in_time(async {
        let rows = pool.get().await?.query_typed(SQL, &[(&token, Type::TEXT)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(Token {
            id: row.try_get(0)?,
            account: row.try_get(1)?,
            scopes: row.try_get(2)?,
            languages: row.try_get(3)?,
            permissions: row.try_get(4)?,
        }))
    })
    .await
}

/// Of these tokens, by their ids, those that are good.
pub async fn good_tokens(pool: &Pool, tokens: &[i64]) -> Result<Vec<i64>, Error> {
    const SQL: &str = "
        SELECT oauth_access_tokens.id
        FROM oauth_access_tokens
        JOIN users ON users.id = oauth_access_tokens.resource_owner_id
        JOIN accounts ON accounts.id = users.account_id
        WHERE oauth_access_tokens.id = ANY($1) AND oauth_access_tokens.revoked_at IS NULL
          AND NOT users.disabled AND accounts.suspended_at IS NULL";
    in_time(async {
        let rows = pool.get().await?.query_typed(SQL, &[(&tokens, Type::INT8_ARRAY)]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    })
    .await
}

pub async fn owns_list(pool: &Pool, list: i64, account: i64) -> Result<bool, Error> {
    const SQL: &str = "SELECT 1 FROM lists WHERE id = $1 AND account_id = $2 LIMIT 1";
    in_time(async {
        let conn = pool.get().await?;
        let rows = conn.query_typed(SQL, &[(&list, Type::INT8), (&account, Type::INT8)]).await?;
        Ok(!rows.is_empty())
    })
    .await
}

/// Those of these settings that are set, as they are stored.
pub async fn settings(pool: &Pool, names: &[&str]) -> Result<Vec<(String, Option<String>)>, Error> {
    const SQL: &str = "SELECT var::text, value::text FROM settings WHERE var = ANY($1)";
    in_time(async {
        let rows = pool.get().await?.query_typed(SQL, &[(&names, Type::TEXT_ARRAY)]).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    })
    .await
}
