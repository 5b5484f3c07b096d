//! The table of rows, made to fit its topic's description before anything is written: made where it is missing, and given the
//! columns of fields that were added since. Columns are never taken away: that of a field that is gone is NULL from then on.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use lakehouse::{Table, TableVersion};

use crate::topic::{FieldKind, FieldSpec, KIND_NOTE, TopicSpec};
use crate::{Error, ErrorKind, Result};

/// Makes the table of rows of `topic` fit.
///
/// # Errors
/// `BadConfig` if a column has another type than text, or if its field may hold less than it did.
pub(crate) async fn prepare(table: &Table, topic: &TopicSpec) -> Result<Arc<TableVersion>> {
    let spec = topic.rows_spec();
    if !table.exists().await? {
        table.ensure(&spec).await?;
    }
    let columns: Vec<Field> = spec.schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    table.evolve(|existing| check(existing, topic).map(|()| columns.clone())).await?;
    // For what no added column can mend, such as one of somebody else's that must not be null.
    table.ensure(&spec).await
}

/// Rows do not say which topic they are of, and the places of another topic's would be taken for theirs.
///
/// # Errors
/// `BadConfig` if the table was filled from another topic.
pub(crate) async fn refuse_table_of_another(table: &Table, topic: &TopicSpec) -> Result<()> {
    let Some(other) = table.topics().await?.into_iter().find(|filled_from| *filled_from != topic.name) else {
        return Ok(());
    };
    let message = format!(
        "{} holds the messages of topic {other}: give topic {} a table of its own (table = \"…\" in its settings)",
        table.name(),
        topic.name
    );
    Err(Error::new(ErrorKind::BadConfig, message))
}

/// Whether what is there allows the fields as they are described.
fn check(existing: &TableVersion, topic: &TopicSpec) -> Result<()> {
    for field in &topic.fields {
        check_type(existing, topic, field)?;
        check_kind(existing, topic, field)?;
    }
    Ok(())
}

fn check_type(existing: &TableVersion, topic: &TopicSpec, field: &FieldSpec) -> Result<()> {
    let found = existing.schema.field_with_name(&field.column).ok().map(|column| column.data_type());
    let Some(found) = found.filter(|&found| *found != DataType::Utf8) else { return Ok(()) };
    let message = format!(
        "topic {}: column {} of {} is {found} in the lake, and field \"{}\" ({}) needs {}, as all fields do: give the field \
         another column, or the topic another table",
        topic.name,
        field.column,
        existing.name,
        field.name,
        field.kind.code(),
        DataType::Utf8
    );
    Err(Error::new(ErrorKind::BadConfig, message))
}

/// What is in the table stays what it is, so a field may come to hold more, never less: whoever reads the column as numbers
/// relies on there being nothing else.
fn check_kind(existing: &TableVersion, topic: &TopicSpec, field: &FieldSpec) -> Result<()> {
    // None is noted of a column that somebody else made.
    let Some(noted) = existing.note(&field.column, KIND_NOTE) else { return Ok(()) };
    if noted == field.kind.code() || field.kind == FieldKind::Any {
        return Ok(());
    }
    let message = format!(
        "topic {}: field \"{}\" is {} in the settings, but column {} of {} was filled from {noted} so far, and that cannot be \
         taken back: say type = \"{noted}\" (or \"any\", which holds both), or give the field another column",
        topic.name,
        field.name,
        field.kind.code(),
        field.column,
        existing.name,
    );
    Err(Error::new(ErrorKind::BadConfig, message))
}
