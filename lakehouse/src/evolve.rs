//! Columns that come to a table after it was made, and what is noted of a column: commits of nothing but new metadata.
//!
//! A commit that goes by older columns is void once such a one is in between: its writer loads the table again.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{Field, SchemaRef};
use buoyant_kernel::engine::arrow_conversion::TryIntoKernel as _;
use deltalake_core::kernel::{Metadata, MetadataExt as _, StructField, StructType};

use crate::commit::Outcome;
use crate::error::{Error, ErrorKind, Result};
use crate::log::{Commit, NewColumns, Operation};
use crate::name::TableName;
use crate::schema::{check_type, damaged, type_differs};
use crate::table::Table;
use crate::version::TableVersion;

/// Notes about a column are kept under keys that begin so; all else in a field's metadata is other engines'.
const NOTE_PREFIX: &str = "lakebeat.";
/// So many times others may change the same table's columns while we do.
const ATTEMPTS_MAX: u32 = 16;

/// What is noted about columns: by column, then by key.
pub(crate) type Notes = BTreeMap<String, BTreeMap<String, String>>;

impl Table {
    /// Adds those of `fields` that the table lacks, as its last columns, and writes down the notes that come with any of them
    /// (metadata whose key begins with `lakebeat.`). Rows of old are NULL there. Does nothing where nothing is new.
    ///
    /// # Errors
    /// `BadConfig` if a column is there with another type, or under a name that differs by its letters' size only, and for a
    /// column that may not be null. `NotFound` if there is no such table.
    pub async fn add_columns(&self, fields: &[Field]) -> Result<Arc<TableVersion>> {
        self.evolve(|_| Ok(fields.to_vec())).await
    }

    /// The same for columns that depend on how the table is: `wanted` is asked again whenever somebody else was first.
    pub async fn evolve(&self, wanted: impl Fn(&TableVersion) -> Result<Vec<Field>>) -> Result<Arc<TableVersion>> {
        for _ in 0..ATTEMPTS_MAX {
            let (head, metadata) = self.head_and_metadata().await?;
            let Some(commit) = evolution(self.name(), &metadata, &head.schema, &wanted(&head)?)? else {
                return Ok(head);
            };
            // Rows that others add meanwhile fit the old columns and the new: only their changes of columns get in the way.
            match self.append(head.version, commit).await? {
                Outcome::Committed(version) => {
                    tracing::info!(table = %self.name(), version, "columns changed");
                    return self.head().await;
                }
                Outcome::Lost { .. } => {}
            }
        }
        let message = format!("others changed the columns of {} {ATTEMPTS_MAX} times in a row", self.name());
        Err(Error::new(ErrorKind::Conflict, message))
    }
}

/// The commit that brings `fields` to the table; none if they are there.
fn evolution(name: &TableName, metadata: &Metadata, columns: &SchemaRef, fields: &[Field]) -> Result<Option<Commit>> {
    let schema = metadata.parse_schema().map_err(|source| damaged(name, source))?;
    let mut evolved: Vec<StructField> = schema.fields().cloned().collect();
    let mut operation = None;
    for field in fields {
        let wanted = delta_field(name, field)?;
        let same_name = |column: &StructField| column.name().eq_ignore_ascii_case(field.name());
        let Some(column) = evolved.iter_mut().find(|column| same_name(column)) else {
            evolved.push(wanted);
            operation = Some(Operation::AddColumns);
            continue;
        };
        if column.name() != field.name() {
            let message = format!(
                "column {} cannot be added to {name}, which has {}: names that differ by the size of their letters only are one",
                field.name(),
                column.name()
            );
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
        // One that was just added twice has its type from us.
        if let Ok(found) = columns.field_with_name(field.name())
            && found.data_type() != field.data_type()
        {
            return Err(type_differs(name, field.name(), found.data_type(), field.data_type()));
        }
        let notes = wanted.metadata.into_iter().filter(|(key, _)| key.starts_with(NOTE_PREFIX));
        for (key, note) in notes {
            if column.metadata.get(&key) != Some(&note) {
                column.metadata.insert(key, note);
                operation.get_or_insert(Operation::ChangeColumn);
            }
        }
    }
    let Some(operation) = operation else { return Ok(None) };
    let doing = || format!("the columns of {name} do not fit a Delta table");
    let schema = StructType::try_new(evolved).map_err(|source| Error::kernel(doing(), source))?;
    let mut commit = Commit::new(operation);
    let metadata = metadata.clone().with_schema(&schema).map_err(|source| Error::delta(doing(), source.into()))?;
    commit.columns = Some(NewColumns(metadata));
    Ok(Some(commit))
}

fn delta_field(name: &TableName, field: &Field) -> Result<StructField> {
    if !field.is_nullable() {
        let message =
            format!("column {} cannot be added to {name} as one that is never null: rows of old are", field.name());
        return Err(Error::new(ErrorKind::BadConfig, message));
    }
    check_type(name, field.name(), field.data_type())?;
    field.try_into_kernel().map_err(|source| {
        let message = format!("column {} does not fit a Delta table such as {name}", field.name());
        Error::with_source(ErrorKind::BadConfig, message, source)
    })
}

/// What is noted about the columns of a table.
pub(crate) fn notes(name: &TableName, metadata: &Metadata) -> Result<Notes> {
    let schema = metadata.parse_schema().map_err(|source| damaged(name, source))?;
    let of_field = |field: &StructField| -> BTreeMap<String, String> {
        let ours = field.metadata.iter().filter(|(key, _)| key.starts_with(NOTE_PREFIX));
        ours.map(|(key, value)| (key.clone(), value.to_string())).collect()
    };
    let all = schema.fields().map(|field| (field.name().clone(), of_field(field)));
    Ok(all.filter(|(_, notes)| !notes.is_empty()).collect())
}

/// Whether a table that was as `before` and is now as `after` has got nothing but further columns that may be null, and notes.
/// Then every row of old is what it was, with NULL beside it.
pub(crate) fn only_adds_columns(before: &TableVersion, after: &TableVersion) -> bool {
    let kept = |field: &Arc<Field>| after.schema.field_with_name(field.name()).is_ok_and(|now| now == field.as_ref());
    let is_new = |field: &Arc<Field>| before.schema.field_with_name(field.name()).is_err();
    before.table_id == after.table_id
        && before.partition_columns == after.partition_columns
        && before.properties == after.properties
        && before.schema.fields().iter().all(kept)
        && after.schema.fields().iter().filter(|field| is_new(field)).all(|field| field.is_nullable())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Schema};

    use super::*;

    fn table(fields: Vec<Field>) -> TableVersion {
        TableVersion {
            name: TableName::new("bronze", "t"),
            table_id: "id".to_owned(),
            version: 1,
            schema: Arc::new(Schema::new(fields)),
            partition_columns: vec!["day".to_owned()],
            properties: BTreeMap::new(),
            files: Arc::new([]),
            notes: Arc::default(),
            readers: Arc::default(),
        }
    }

    #[test]
    fn only_further_columns_leave_the_rows_as_they_were() {
        let column = |name: &str, data_type: DataType| Field::new(name, data_type, true);
        let (id, day) = (column("id", DataType::Int64), column("day", DataType::Utf8));
        let before = table(vec![id.clone(), day.clone()]);
        let more = column("more", DataType::Utf8);
        assert!(only_adds_columns(&before, &before));
        assert!(only_adds_columns(&before, &table(vec![more.clone(), id.clone(), day.clone()])));
        let same = table(vec![id.clone(), day.clone()]);
        let properties = BTreeMap::from([("delta.columnMapping.mode".to_owned(), "name".to_owned())]);
        for (what, after) in [
            ("a column went", table(vec![day.clone(), more.clone()])),
            ("a type changed", table(vec![column("id", DataType::Int32), day.clone()])),
            ("a column must not be null", table(vec![id.clone(), day.clone(), more.clone().with_nullable(false)])),
            ("another table", TableVersion { table_id: "other".to_owned(), ..same.clone() }),
            ("other partitions", TableVersion { partition_columns: Vec::new(), ..same.clone() }),
            ("other settings", TableVersion { properties, ..same }),
        ] {
            assert!(!only_adds_columns(&before, &after), "{what}");
        }
    }
}
