//! Dead letters that are in their table although the rows beside them are not: what a crash between the two commits leaves.

use std::collections::BTreeMap;
use std::ops::Range;

use futures::TryStreamExt as _;
use lakehouse::{Filter, Scan};

use super::intake::PartitionStart;
use super::write::{Bound, Sink};
use crate::decode::Recorded;
use crate::letters::{Letters, Place};
use crate::{Error, ErrorKind, Result};

/// The letters beyond what bronze's ledger says was consumed. There are some only after a crash between the two commits.
pub(super) async fn recorded_letters(
    sink: &Sink,
    starts: &BTreeMap<i32, PartitionStart>,
    bound: &Bound,
) -> Result<Recorded> {
    let mut overlap = BTreeMap::new();
    for (&partition, start) in starts {
        let Some(&upto) = bound.letters_ledger.get(&partition).filter(|&&upto| upto > start.next) else { continue };
        if upto > start.watermarks.high {
            let message = format!(
                "topic {} partition {partition} ends at offset {}, but {} has its letters up to {upto}: the topic was made anew. \
                 Let its settings name another table for dead letters",
                sink.topic.name,
                start.watermarks.high,
                sink.letters.name()
            );
            return Err(Error::new(ErrorKind::BadData, message));
        }
        overlap.insert(partition, start.next..upto);
    }
    let mut recorded = Recorded::new();
    if overlap.is_empty() {
        return Ok(recorded);
    }
    let head = sink.letters.head().await?;
    let columns = Letters::columns(&head, &Letters::WHOLE);
    // There may be more letters of all times than memory holds; a handful of them is looked for.
    let scan = Scan::new(head, sink.sessions.clone(), beyond(&sink.topic.name, &overlap));
    let mut batches = scan.read_all(&columns).await?;
    while let Some(batch) = batches.try_next().await? {
        for letter in Letters::of(&batch)?.letters()? {
            let Place { partition, incarnation, offset, index } = letter.place;
            // Letters of a partition that was made anew since say nothing about this one.
            if incarnation == bound.incarnations.get(&partition).copied().unwrap_or(0) {
                recorded.insert((partition, offset, index), letter.record().fingerprint());
            }
        }
    }
    tracing::info!(letters = recorded.len(), "dead letters were committed without the rows beside them; they are kept");
    Ok(recorded)
}

/// Letters of the topic at these offsets.
fn beyond(topic: &str, overlap: &BTreeMap<i32, Range<i64>>) -> Filter {
    let one = |(&partition, offsets): (&i32, &Range<i64>)| {
        let partition = i64::from(partition);
        Filter::number_in("partition", &[partition..=partition])
            .and(Filter::number_in("offset", &[offsets.start..=offsets.end - 1]))
    };
    Filter::text_in("topic", &[topic]).and(Filter::any(overlap.iter().map(one)))
}
