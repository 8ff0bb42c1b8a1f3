//! How often what was downloaded: of a crate by day, version, target, kind or client, and the crates with the most.

use crate::{
    App,
    crates::find,
    cursor,
    extract::{Path, Query},
    problem::{Body as ProblemBody, Problem, Result},
};
use axum::{
    Json,
    extract::State,
    http::{HeaderName, header},
};
use cratemill_protocol::CrateName;
use cratemill_store::{
    database,
    downloads::{self, Axis},
};
use serde::{Deserialize, Serialize};
use time::{
    Date, Duration, OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description,
};
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

/// If nothing else is asked for: a quarter, as dashboards show it.
const DEFAULT_DAYS: i64 = 90;
/// Ten years: an answer by day is never longer than this.
const MAX_DAYS: i64 = 3_660;
const DAY: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]");
/// As long as for a connection.
const TURN_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
/// Days are counted up all day long; nobody needs each second of it.
const CACHE: (HeaderName, &str) = (header::CACHE_CONTROL, "public, max-age=60");

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(of_crate)).routes(routes!(top))
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum By {
    #[default]
    Day,
    Version,
    Target,
    Kind,
    Client,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct CountQuery {
    /// The first day (UTC), as `2026-11-20`; 90 days in all if not given.
    from: Option<String>,
    /// The last day; today if not given.
    to: Option<String>,
    /// What the counts are told apart by.
    #[serde(default)]
    by: By,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct TopQuery {
    /// The first day (UTC), as `2026-11-20`; 90 days in all if not given.
    from: Option<String>,
    /// The last day; today if not given.
    to: Option<String>,
    /// 1 to 100, 50 if not given.
    limit: Option<u8>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Counts {
    #[serde(rename = "crate")]
    krate: String,
    /// Ever.
    total: i64,
    #[schema(value_type = String, format = Date)]
    from: String,
    #[schema(value_type = String, format = Date)]
    to: String,
    /// From the first to the last day.
    count: i64,
    by: By,
    /// Days in their order, without those that had none; of anything else the most first.
    items: Vec<Item>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Item {
    /// A day, a version, a target, a kind, or a class of clients: binstall, apt, cargo, curl, browser or other.
    key: String,
    count: i64,
}

/// How often a crate's artifacts were downloaded
///
/// A download is one that was answered with a redirect or whose last byte was sent; HEAD, 304, and parts that do not reach
/// the end of the file are none. A client that asks twice for what it installs counts once.
#[utoipa::path(get, operation_id = "get_crate_downloads", path = "/api/v1/crates/{crate}/downloads", tag = "crates",
    params(("crate" = String, Path, description = "its name"), CountQuery), responses(
    (status = 200, body = Counts, description = "the counts"),
    (status = 400, body = ProblemBody, content_type = "application/problem+json", description = "bad query"),
    (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "unknown"),
))]
async fn of_crate(
    State(app): State<App>,
    Path(name): Path<CrateName>,
    Query(query): Query<CountQuery>,
) -> Result<([(HeaderName, &'static str); 1], Json<Counts>)> {
    let (from, to) = window(query.from.as_deref(), query.to.as_deref(), today())?;
    let mut conn = database::snapshot(&app.pool).await?;
    let krate = find(&mut conn, &name).await?;
    let axis = match query.by {
        By::Day => None,
        By::Version => Some(Axis::Version),
        By::Target => Some(Axis::Target),
        By::Kind => Some(Axis::Kind),
        By::Client => Some(Axis::Client),
    };
    let items: Vec<Item> = if let Some(axis) = axis {
        let counts = downloads::by_axis(&mut conn, krate.id, axis, from, to).await?;
        counts.into_iter().map(|row| Item { key: row.key, count: row.count }).collect()
    } else {
        let days = downloads::by_day(&mut conn, krate.id, from, to).await?;
        days.into_iter().map(|row| Item { key: row.day.to_string(), count: row.count }).collect()
    };
    let total = downloads::total(&mut conn, krate.id).await?;
    let (krate, by) = (krate.name.into(), query.by);
    let count = items.iter().fold(0, |sum: i64, item| sum.saturating_add(item.count));
    let (from, to) = (from.to_string(), to.to_string());
    Ok(([CACHE], Json(Counts { krate, total, from, to, count, by, items })))
}

#[derive(Debug, Serialize, ToSchema)]
struct Top {
    #[schema(value_type = String, format = Date)]
    from: String,
    #[schema(value_type = String, format = Date)]
    to: String,
    /// The most downloaded first.
    items: Vec<TopCrate>,
}

#[derive(Debug, Serialize, ToSchema)]
struct TopCrate {
    #[serde(rename = "crate")]
    krate: String,
    count: i64,
}

/// The crates that were downloaded most
#[utoipa::path(get, operation_id = "get_top_downloads", path = "/api/v1/downloads", tag = "crates", params(TopQuery), responses(
    (status = 200, body = Top, description = "crates"),
    (status = 400, body = ProblemBody, content_type = "application/problem+json", description = "bad query"),
))]
async fn top(
    State(app): State<App>,
    Query(query): Query<TopQuery>,
) -> Result<([(HeaderName, &'static str); 1], Json<Top>)> {
    let (from, to) = window(query.from.as_deref(), query.to.as_deref(), today())?;
    let limit = i64::try_from(cursor::limit(query.limit)?).unwrap_or(i64::MAX);
    // It reads every crate's days: one at a time, so that nobody else waits for a connection because of it.
    let turn = timeout(TURN_PATIENCE, app.surveys.acquire()).await;
    let _turn = turn.map_err(|_| Problem::unavailable("others are asking for the same: try again"))?;
    let mut conn = app.pool.acquire().await?;
    let rows = downloads::top(&mut conn, from, to, limit).await?;
    let items = rows.into_iter().map(|row| TopCrate { krate: row.name, count: row.count }).collect();
    Ok(([CACHE], Json(Top { from: from.to_string(), to: to.to_string(), items })))
}

fn today() -> Date {
    OffsetDateTime::now_utc().date()
}

/// The first and the last day.
fn window(from: Option<&str>, to: Option<&str>, today: Date) -> Result<(Date, Date)> {
    let day = |text: &str, field| {
        Date::parse(text, DAY)
            .ok()
            .filter(|day| text.len() == 10 && day.year() >= 1970)
            .ok_or_else(|| Problem::bad_request("expected a day such as 2026-11-20").at(field))
    };
    let to = to.map_or(Ok(today), |text| day(text, "to"))?;
    let earliest = to.checked_sub(Duration::days(DEFAULT_DAYS - 1)).unwrap_or(Date::MIN);
    let from = from.map_or(Ok(earliest), |text| day(text, "from"))?;
    match (to - from).whole_days() {
        0..MAX_DAYS => Ok((from, to)),
        ..0 => Err(Problem::bad_request("from is after to").at("from")),
        _ => Err(Problem::bad_request(format!("at most {MAX_DAYS} days at once")).at("from")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::date;

    #[test]
    fn a_window_is_of_whole_days() {
        let today = date!(2026 - 11 - 20);
        for (from, to, expected) in [
            (None, None, Some((date!(2026 - 08 - 23), today))),
            (Some("2026-11-20"), None, Some((today, today))),
            (Some("2026-11-20"), Some("2026-11-20"), Some((today, today))),
            (None, Some("2026-01-01"), Some((date!(2025 - 10 - 04), date!(2026 - 01 - 01)))),
            (Some("2026-11-21"), None, None),
            (Some("2016-01-01"), None, None),
            (Some("0001-01-01"), Some("0001-01-02"), None),
            (Some("2026-1-1"), None, None),
            (Some("20261120"), None, None),
            (Some("2026-W47-5"), None, None),
            (Some("2026-02-30"), None, None),
            (Some(""), None, None),
            (Some("2026-11-20' OR ''='"), None, None),
        ] {
            assert_eq!(window(from, to, today).ok(), expected, "{from:?} {to:?}");
        }
    }
}
