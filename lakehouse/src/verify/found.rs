//! What is really in the tables, counted by the stretch of offsets that it belongs to. Rows are streamed, never collected.

use arrow::array::{Array as _, AsArray as _};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt as _;

use crate::error::{Error, Result};
use crate::progress::{INCARNATION_COLUMN, REPLAY_COLUMN};
use crate::version::TableVersion;

use super::account::{Account, Place};
use super::{EXAMPLES_MAX, Fault};

/// Finds the stretch of every row. The table has no column for the topic: it has one topic, or one stretch that fits.
pub(super) async fn count_rows(
    context: &SessionContext,
    head: &TableVersion,
    account: &mut Account,
    faults: &mut Vec<Fault>,
) -> Result<()> {
    let topics: Vec<String> = account.partitions.keys().map(|(topic, _)| topic.clone()).collect();
    let mut strays = 0;
    each_batch(context, head, &["_partition", "_offset"], |batch| {
        let replays = batch.column_by_name(REPLAY_COLUMN).map(|column| column.as_string::<i32>());
        for (row, place) in places(batch, "_partition", "_offset").enumerate() {
            // What came by a replay was consumed as a letter, and is counted there.
            if replays.is_some_and(|replays| replays.is_valid(row)) {
                continue;
            }
            let topic = topics.iter().find(|topic| account.stretch_of(topic, place).is_some());
            if let Some(stretch) = topic.and_then(|topic| account.stretch_of(topic, place)) {
                stretch.rows_found += 1;
                continue;
            }
            strays += 1;
            if strays <= EXAMPLES_MAX {
                let what = format!("a row with offset {} is in no range that a commit recorded", place.offset);
                faults.push(Fault::of_partition(&head.name, place.partition, what));
            }
        }
    })
    .await
}

/// The same for the letters of one table.
pub(super) async fn count_letters(
    context: &SessionContext,
    letters: &TableVersion,
    account: &mut Account,
) -> Result<()> {
    each_batch(context, letters, &["topic", "partition", "offset"], |batch| {
        let topics = batch.column(0).as_string::<i32>();
        for (row, place) in places(batch, "partition", "offset").enumerate() {
            // A letter in no stretch is of a batch whose bronze commit is still to come: the next start makes it.
            if let Some(stretch) = account.stretch_of(topics.value(row), place) {
                stretch.letters_found += 1;
            }
        }
    })
    .await
}

/// Streams these columns of a table, and with them what it may have of ours that not every table has.
async fn each_batch(
    context: &SessionContext,
    head: &TableVersion,
    columns: &[&str],
    mut visit: impl FnMut(&RecordBatch),
) -> Result<()> {
    let failed = |source| Error::query(format!("cannot read {}", head.name), source);
    let mut columns = columns.to_vec();
    columns.extend([INCARNATION_COLUMN, REPLAY_COLUMN].iter().filter(|name| head.has_column(name)));
    let rows = context.read_table(head.provider()).map_err(failed)?;
    let rows = rows.select_columns(&columns).map_err(failed)?;
    let mut batches = rows.execute_stream().await.map_err(failed)?;
    while let Some(batch) = batches.try_next().await.map_err(failed)? {
        visit(&batch);
    }
    Ok(())
}

fn places<'a>(batch: &'a RecordBatch, partition: &str, offset: &str) -> impl Iterator<Item = Place> + use<'a> {
    let column = |name: &str| batch.column_by_name(name).expect("a column that was selected");
    let (partitions, offsets) =
        (column(partition).as_primitive::<Int32Type>(), column(offset).as_primitive::<Int64Type>());
    let incarnations = batch.column_by_name(INCARNATION_COLUMN).map(|column| column.as_primitive::<Int32Type>());
    (0..batch.num_rows()).map(move |row| {
        let incarnation = incarnations.filter(|column| column.is_valid(row)).map_or(0, |column| column.value(row));
        Place { partition: partitions.value(row), incarnation, offset: offsets.value(row) }
    })
}

/// Each place at most once, whatever brought it.
pub(super) async fn find_doubles(context: &SessionContext, head: &TableVersion, faults: &mut Vec<Fault>) -> Result<()> {
    let failed = |source| Error::query(format!("cannot look for doubles in {}", head.name), source);
    let mut place = "_partition, _offset, _index".to_owned();
    if head.has_column(INCARNATION_COLUMN) {
        place += &format!(", coalesce({INCARNATION_COLUMN}, 0)");
    }
    context.register_table("audited", head.provider()).map_err(failed)?;
    let doubles = context
        .sql(&format!(
            "select _partition, _offset, count(*) from audited group by {place} having count(*) > 1 order by 1, 2 \
             limit {EXAMPLES_MAX}"
        ))
        .await
        .map_err(failed)?
        .collect()
        .await
        .map_err(failed)?;
    for batch in &doubles {
        let partitions = batch.column(0).as_primitive::<Int32Type>();
        let offsets = batch.column(1).as_primitive::<Int64Type>();
        let counts = batch.column(2).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let what = format!("offset {} is there {} times", offsets.value(row), counts.value(row));
            faults.push(Fault::of_partition(&head.name, partitions.value(row), what));
        }
    }
    Ok(())
}
