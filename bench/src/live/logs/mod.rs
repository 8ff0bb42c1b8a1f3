//! The log of a running job: how late a line is that comes after silence, and how many lines a second a hundred viewers get
//! through one node.

mod first;
mod flood;
mod lines;
mod raw;
mod reader;
pub(crate) mod readers;

use anyhow::Result;
use serde_json::Value;

pub(super) async fn measure(runs: usize, lines_per_s: u32) -> Result<Value> {
    let mut fields = first::measure().await?;
    super::add(&mut fields, flood::measure(runs, lines_per_s).await?);
    super::add(&mut fields, raw::measure().await?);
    Ok(fields)
}
