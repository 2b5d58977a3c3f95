//! Drops what is older than it shall be kept, and signs for it: the chains go on behind what was dropped, and whoever
//! verifies them is told that it was dropped and not taken out.

use chrono::{DateTime, Utc};
use waffles_core::trail::{Forgotten, Signer};

use crate::store::trail::{self as store, Old};
use crate::store::{Db, Tx};

/// Records of a month that are looked at at once.
const PAGE: u32 = 5000;

/// Drops the months that ended before a time, and up to `most` single events from before it. Returns how many of the
/// latter there were.
pub async fn forget(db: &Db, signer: &Signer, before: DateTime<Utc>, most: u32) -> sqlx::Result<u64> {
    let mut tx = store::begin_as_owner(db).await?;
    let months = store::months_before(&mut tx, before).await?;
    for month in &months {
        store::close_month(&mut tx, month).await?;
        let mut last = None;
        loop {
            let page = store::of_month(&mut tx, month, last, PAGE).await?;
            let Some((chain, sequence, _)) = page.last().copied() else { break };
            last = Some((chain, sequence));
            for stretch in stretches(&mut tx, page).await? {
                sign(&mut tx, signer, &stretch, before).await?;
            }
        }
        store::drop_month(&mut tx, month).await?;
    }
    let mut dropped = 0;
    let page = store::older(&mut tx, before, most).await?;
    for stretch in stretches(&mut tx, page).await? {
        sign(&mut tx, signer, &stretch, before).await?;
        dropped += store::delete_stretch(&mut tx, stretch.first.0, stretch.first.1, stretch.last.1).await?;
    }
    dropped += store::delete_unchained(&mut tx, before, most).await?;
    tx.commit().await?;
    Ok(dropped)
}

/// Records of one chain between which none is kept.
#[derive(Debug)]
struct Stretch {
    first: Old,
    last: Old,
}

async fn stretches(tx: &mut Tx, records: Vec<Old>) -> sqlx::Result<Vec<Stretch>> {
    let mut found: Vec<Stretch> = Vec::new();
    for record in records {
        if let Some(stretch) = found.last_mut() {
            let (chain, last, _) = stretch.last;
            let joins = record.0 == chain
                && (record.1 == last + 1 || !store::has_between(&mut *tx, chain, last, record.1).await?);
            if joins {
                stretch.last = record;
                continue;
            }
        }
        found.push(Stretch { first: record, last: record });
    }
    Ok(found)
}

async fn sign(tx: &mut Tx, signer: &Signer, stretch: &Stretch, before: DateTime<Utc>) -> sqlx::Result<()> {
    let (chain, first, _) = stretch.first;
    let (_, last, hash) = stretch.last;
    let previous = store::hash_before(tx, chain, first).await?;
    let forgotten = Forgotten::sign(signer, chain, (first, last), (previous, hash), before);
    store::insert_forgotten(tx, &forgotten).await
}
