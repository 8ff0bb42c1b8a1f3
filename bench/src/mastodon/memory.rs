//! What an idle connection over WebSocket takes, each of another account, with a token of its own.

use super::{farm::Farm, viewers::Viewers};
use crate::statistics::{count, hundredths};
use anyhow::Result;
use serde_json::{Value, json};

/// The first of them are there when the measuring begins: what a node needs once is nobody's.
const FIRST_PART: usize = 4;

pub(super) async fn measure(connections: usize) -> Result<Value> {
    let farm = Farm::start(connections).await?;
    let base = farm.memory().await?;
    let few = connections / FIRST_PART;
    let first = Viewers::open(farm.address()?, few, "user", |number| number + 1).await?;
    let with_few = farm.memory().await?;
    let others = Viewers::open(farm.address()?, connections - few, "user", |number| few + number + 1).await?;
    let with_all = farm.memory().await?;
    first.messages()?;
    others.messages()?;
    let (each, all) =
        ((with_all - with_few) / count(connections - few), (with_all - base) / count(connections));
    println!("  {:.1} MB before the first client, {each:.1} bytes for each ({all:.1} over all)", base / 1e6);
    drop((first, others));
    farm.stop().await?;
    Ok(json!({
        "base_bytes": base.round(),
        "ws_bytes_per_connection": hundredths(each),
        "ws_bytes_per_connection_over_all": hundredths(all),
    }))
}
