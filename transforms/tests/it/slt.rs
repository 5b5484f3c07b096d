//! Runs `tests/slt/*.slt`: each file on an empty lake in memory, with the bundled project.
//!
//! Beside queries, which see the newest publication, two statements are known: `insert into bronze.spotify_events (…) …`
//! commits rows that ingest would have written, and `build` builds the models and fails where one of them does.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast::{Insert, Statement as Ast};
use lakehouse::{DEFAULT_GROUP, Error, ErrorKind, Lake, Result};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};
use transforms::{Options, Project};

use crate::lake::{append_batch, bronze_spec, open, store};

struct Database(Lake);

#[async_trait]
impl AsyncDB for Database {
    type Error = Error;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>> {
        if sql.trim() == "build" {
            return self.build().await;
        }
        match parsed(sql)? {
            Some(insert) => self.insert(&insert).await,
            None => self.query(sql).await,
        }
    }

    async fn shutdown(&mut self) {}
}

impl Database {
    async fn build(&self) -> Result<DBOutput<DefaultColumnType>> {
        let report = transforms::build(&self.0, &Project::bundled(), &Options::default()).await?;
        if report.failed() {
            return Err(Error::new(ErrorKind::BadData, report.to_string()));
        }
        Ok(DBOutput::StatementComplete(report.models.iter().map(|run| run.rows_written).sum()))
    }

    /// Columns that are not named are null.
    async fn insert(&self, insert: &Insert) -> Result<DBOutput<DefaultColumnType>> {
        let source = insert.source.as_ref().expect("an insert has rows");
        let rows = rows(&self.0.session_factory().context(), &source.to_string()).await?;
        let named: Vec<String> = insert.columns.iter().map(ToString::to_string).collect();
        let fields = bronze_spec().schema;
        for column in &named {
            fields
                .field_with_name(column)
                .map_err(|error| Error::with_source(ErrorKind::BadData, sql_of(insert), error))?;
        }
        let columns = fields.fields().iter().map(|field| match named.iter().position(|name| name == field.name()) {
            Some(place) => cast(rows.column(place), field.data_type()).expect("a value of the column's type"),
            None => new_null_array(field.data_type(), rows.num_rows()),
        });
        let batch = RecordBatch::try_new(fields.clone(), columns.collect()).expect("the columns fit");
        let count = batch.num_rows() as u64;
        append_batch(&self.0, batch).await;
        Ok(DBOutput::StatementComplete(count))
    }

    async fn query(&self, sql: &str) -> Result<DBOutput<DefaultColumnType>> {
        // What the doors would answer: on the newest publication.
        let publication = self.0.newest_publication(DEFAULT_GROUP).await?;
        let session = self.0.session_factory().at_publication(publication.as_ref()).await?;
        let rows = rows(&session, sql).await?;
        let types = rows.schema().fields().iter().map(|field| column_type(field.data_type())).collect();
        let options = FormatOptions::default().with_null("NULL");
        let columns: Vec<_> = rows
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).expect("a printable column"))
            .collect();
        let text = |row| columns.iter().map(|column| shown(column.value(row).to_string())).collect();
        Ok(DBOutput::Rows { types, rows: (0..rows.num_rows()).map(text).collect() })
    }
}

async fn rows(session: &SessionContext, sql: &str) -> Result<RecordBatch> {
    let failed = |error| Error::query(format!("`{sql}` failed"), error);
    let frame = session.sql(sql).await.map_err(failed)?;
    let schema = Arc::clone(frame.schema().inner());
    let batches = frame.collect().await.map_err(failed)?;
    Ok(concat_batches(&schema, &batches).expect("all batches of an answer have its schema"))
}

/// The insert that a statement is, if it is one.
fn parsed(sql: &str) -> Result<Option<Insert>> {
    let failed = |error| Error::query(format!("`{sql}` cannot be read"), error);
    let statement = DFParser::parse_sql(sql).map_err(failed)?.pop_front();
    Ok(match statement {
        Some(Statement::Statement(ast)) => match *ast {
            Ast::Insert(insert) => Some(insert),
            _ => None,
        },
        _ => None,
    })
}

fn sql_of(insert: &Insert) -> String {
    format!("insert into {}", insert.table)
}

/// An empty text would not be seen in a file.
fn shown(text: String) -> String {
    if text.is_empty() { "(empty)".to_owned() } else { text }
}

fn column_type(data_type: &DataType) -> DefaultColumnType {
    match data_type {
        data_type if data_type.is_integer() => DefaultColumnType::Integer,
        data_type if data_type.is_floating() || matches!(data_type, DataType::Decimal128(..)) => {
            DefaultColumnType::FloatingPoint
        }
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => DefaultColumnType::Text,
        _ => DefaultColumnType::Any,
    }
}

#[tokio::test]
async fn every_file_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slt");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("its entries can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "slt"))
        .collect();
    files.sort();
    for file in &files {
        let mut runner = Runner::new(async || Ok(Database(open(&store()).await)));
        // The types of the columns are part of what a file says.
        runner.with_column_validator(sqllogictest::strict_column_validator);
        if let Err(error) = runner.run_file_async(file).await {
            panic!("{error}");
        }
    }
    for model in transforms::ls(&Project::bundled(), &Options::default()).expect("the bundled project is sound") {
        let file = folder.join(format!("{}.slt", model.model));
        assert!(files.contains(&file), "every model has a file: {} is missing", file.display());
    }
}
