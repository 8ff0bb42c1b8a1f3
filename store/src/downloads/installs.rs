//! Installs of clients that ask for a file twice, to see whether it is there and to have it: two requests of one client for
//! one artifact within a few minutes are one download, four are two.
//!
//! The two may go through different nodes and come in either order, in different messages, so that what pairs them is in
//! the database. One whose second half never comes counts as one.

use super::{
    tally::{Key, Tally},
    write::Error,
};
use cratemill_protocol::bus::Install;
use deadpool_postgres::Transaction;
use std::collections::{BTreeMap, VecDeque};

/// Long enough for a person to be asked in between whether to go on.
const TOGETHER_S: i64 = 300;

/// Notes the requests, and adds those that are downloads to the tally.
pub(super) async fn pair(
    tx: &Transaction<'_>,
    installs: &[&Install],
    tally: &mut Tally,
) -> Result<(), Error> {
    let mut runs = runs(installs);
    while !runs.is_empty() {
        // The oldest of each client and artifact; a row is written once in a statement.
        let first = runs.iter_mut().filter_map(|(of, runs)| Some((*of, runs.pop_front()?))).collect();
        note(tx, first, tally).await?;
        runs.retain(|_, runs| !runs.is_empty());
    }
    Ok(())
}

type Who = (i64, i64);
type Run<'a> = Vec<&'a Install>;

/// Each client's requests for an artifact, in the order of time, cut where nothing came for longer than two requests
/// of one download are apart: what waited for the bus comes at once, however long ago it was asked for.
fn runs<'a>(installs: &[&'a Install]) -> BTreeMap<Who, VecDeque<Run<'a>>> {
    let mut requests: BTreeMap<Who, Run<'a>> = BTreeMap::new();
    for install in installs {
        requests.entry((install.who, install.artifact.0)).or_default().push(install);
    }
    let cut = |mut all: Run<'a>| {
        all.sort_by_key(|install| install.at_s);
        all.chunk_by(|a, b| b.at_s.saturating_sub(a.at_s) <= TOGETHER_S).map(<[_]>::to_vec).collect()
    };
    requests.into_iter().map(|(of, all)| (of, cut(all))).collect()
}

async fn note(
    tx: &Transaction<'_>,
    requests: BTreeMap<Who, Run<'_>>,
    tally: &mut Tally,
) -> Result<(), Error> {
    let (who, artifacts): (Vec<i64>, Vec<i64>) = requests.keys().copied().unzip();
    let counts: Vec<i64> = requests.values().map(|all| number(all)).collect();
    let newest: Vec<i64> =
        requests.values().map(|all| all.last().map_or(0, |install| install.at_s)).collect();
    let upsert = tx
        .prepare_cached(
            "INSERT INTO download_installs AS d (who, artifact_id, requests, at_s)
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) ORDER BY 1, 2
             ON CONFLICT (who, artifact_id) DO UPDATE SET
                requests = CASE WHEN abs(d.at_s::numeric - excluded.at_s) <= $5::bigint THEN d.requests ELSE 0 END + excluded.requests,
                at_s = excluded.at_s, seen_at = now()
             RETURNING who, artifact_id, requests",
        )
        .await?;
    for row in tx.query(&upsert, &[&who, &artifacts, &counts, &newest, &TOGETHER_S]).await? {
        let after: i64 = row.try_get(2)?;
        let Some(all) = requests.get(&(row.try_get(0)?, row.try_get(1)?)) else { continue };
        let before = after.saturating_sub(number(all));
        let downloads = usize::try_from(pairs(after) - pairs(before)).unwrap_or(0);
        for install in all.iter().take(downloads) {
            let key = Key { artifact: install.artifact.0, day: install.day, client: install.client };
            tally.add(key, 1);
        }
    }
    Ok(())
}

fn number(requests: &[&Install]) -> i64 {
    i64::try_from(requests.len()).unwrap_or(i64::MAX)
}

/// Downloads that so many requests are.
fn pairs(requests: i64) -> i64 {
    requests / 2 + requests % 2
}
