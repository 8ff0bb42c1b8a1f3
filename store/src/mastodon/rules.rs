//! Whom and what accounts do not want to see: for many accounts at once.

use super::{Error, in_time};
use crate::bulk::{Connection, Pool};
use std::collections::HashMap;
use time::PrimitiveDateTime;
use tokio_postgres::types::Type;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Accounts that it blocks or mutes, in order, each once.
    pub hidden: Vec<i64>,
    /// Accounts that block it, in order, each once.
    pub hidden_from: Vec<i64>,
    /// In order, each once.
    pub domains: Vec<String>,
    /// By id.
    pub filters: Vec<Filter>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub id: i64,
    pub title: String,
    pub context: Vec<String>,
    /// In UTC.
    pub expires_at: Option<PrimitiveDateTime>,
    pub action: i32,
    /// With whether it has to be a whole word.
    pub keywords: Vec<(String, bool)>,
}

/// Of these accounts, those that have none too.
pub async fn rules(pool: &Pool, accounts: &[i64]) -> Result<HashMap<i64, Rules>, Error> {
    in_time(async {
        let conn = pool.get().await?;
        let mut all: HashMap<i64, Rules> =
            accounts.iter().map(|account| (*account, Rules::default())).collect();
        relations(&conn, accounts, &mut all).await?;
        domains(&conn, accounts, &mut all).await?;
        filters(&conn, accounts, &mut all).await?;
        for rules in all.values_mut() {
            for list in [&mut rules.hidden, &mut rules.hidden_from] {
                list.sort_unstable();
                list.dedup();
            }
            rules.domains.sort_unstable();
            rules.domains.dedup();
        }
        Ok(all)
    })
    .await
}

async fn relations(conn: &Connection, accounts: &[i64], all: &mut HashMap<i64, Rules>) -> Result<(), Error> {
    const SQL: &str = "
        SELECT account_id, target_account_id, true FROM blocks WHERE account_id = ANY($1)
        UNION ALL
        SELECT account_id, target_account_id, true FROM mutes WHERE account_id = ANY($1)
        UNION ALL
        SELECT target_account_id, account_id, false FROM blocks WHERE target_account_id = ANY($1)";
    for row in conn.query_typed(SQL, &[(&accounts, Type::INT8_ARRAY)]).await? {
        let (account, other, is_ours): (i64, i64, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let Some(rules) = all.get_mut(&account) else { continue };
        if is_ours { &mut rules.hidden } else { &mut rules.hidden_from }.push(other);
    }
    Ok(())
}

async fn domains(conn: &Connection, accounts: &[i64], all: &mut HashMap<i64, Rules>) -> Result<(), Error> {
    const SQL: &str = "SELECT account_id, domain FROM account_domain_blocks
                       WHERE account_id = ANY($1) AND domain IS NOT NULL";
    for row in conn.query_typed(SQL, &[(&accounts, Type::INT8_ARRAY)]).await? {
        let account: i64 = row.try_get(0)?;
        if let Some(rules) = all.get_mut(&account) {
            rules.domains.push(row.try_get(1)?);
        }
    }
    Ok(())
}

async fn filters(conn: &Connection, accounts: &[i64], all: &mut HashMap<i64, Rules>) -> Result<(), Error> {
    const SQL: &str = "
        SELECT f.account_id::bigint, f.id::bigint, f.phrase::text, f.context::text[], f.expires_at::timestamp,
               f.action::int, k.keyword::text, k.whole_word
        FROM custom_filters f JOIN custom_filter_keywords k ON k.custom_filter_id = f.id
        WHERE f.account_id = ANY($1) AND (f.expires_at IS NULL OR f.expires_at > (now() AT TIME ZONE 'utc'))
        ORDER BY f.id";
    for row in conn.query_typed(SQL, &[(&accounts, Type::INT8_ARRAY)]).await? {
        let (account, id): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let Some(rules) = all.get_mut(&account) else { continue };
        let keyword = (row.try_get(6)?, row.try_get(7)?);
        if let Some(filter) = rules.filters.last_mut().filter(|filter| filter.id == id) {
            filter.keywords.push(keyword);
            continue;
        }
        let filter = Filter {
            id,
            title: row.try_get(2)?,
            context: row.try_get(3)?,
            expires_at: row.try_get(4)?,
            action: row.try_get(5)?,
            keywords: vec![keyword],
        };
        rules.filters.push(filter);
    }
    Ok(())
}
