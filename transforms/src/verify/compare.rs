//! Comparing a table with what its query gives, in one query of the engine: both are counted by row, and rows whose counts
//! differ come out, in the order of their keys. Grouping and sorting spill, so a table may be larger than memory.

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt as _;
use lakehouse::{DEFAULT_SCHEMA, Lake, TableName, TableVersion};

use crate::class;
use crate::compile::Model;
use crate::data_tests::Check;
use crate::error::{Error, ErrorKind, Result};
use crate::query::{self, Query, Relations, quoted};

/// So many differences of one table are told; the rest are counted.
const EXAMPLES_MAX: u64 = 20;
/// A value longer than this is cut when it is told.
const VALUE_CHARS_MAX: usize = 100;

/// Sums and averages of floats depend on the order of addition: two that are this close, relative to the smaller, are the same.
const TOLERANCE: f64 = 1e-9;
/// The same for 32 bits.
const TOLERANCE_32: f64 = 1e-5;
/// What is left where floats cancel each other out.
const TOLERANCE_AT_ZERO: f64 = 1e-12;

/// How a table compares with its query.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) compared_rows: u64,
    pub(super) differing_rows: u64,
    /// The differences in words.
    pub(super) told: Vec<String>,
}

/// Compares `found` with all that `query` gives, or with the share `sample` of the keys.
pub(super) async fn compare(
    lake: &Lake,
    model: &Model,
    query: Query,
    found: &TableVersion,
    sample: Option<f64>,
) -> Result<Comparison> {
    let wanted = query.columns();
    let mut differences = Differences::default();
    for what in other_columns(&wanted, &found.schema) {
        differences.tell(|| what);
    }
    if differences.count > 0 {
        return Ok(differences.end(0));
    }
    let columns = Columns::of(model, &query.plan, &found.schema);
    let relation = |name: &str| TableName::new(DEFAULT_SCHEMA, name);
    let expected = query.relation(&found.schema, model)?;
    let relations = Relations::from([(relation("expected"), expected), (relation("found"), found.provider())]);
    let context = query::session(lake, &relations)?;
    let condition = sample.and_then(|share| columns.sampled(share)).unwrap_or_else(|| "true".to_owned());
    let compared_rows = count(&context, &condition, model).await?;
    let mut rows = query::stream(&context, &columns.differences(&condition), model).await?;
    let mut reader = Reader { columns: &columns, differences, waiting: None };
    while let Some(batch) = rows.try_next().await.map_err(|error| query::run_error(model, error))? {
        reader.read(&batch).map_err(|error| {
            Error::with_source(ErrorKind::Bug, format!("the rows of {} cannot be printed", model.table), error)
        })?;
    }
    Ok(reader.end(compared_rows))
}

async fn count(context: &SessionContext, condition: &str, model: &Model) -> Result<u64> {
    let counted = query::collect(context, &format!("select count(*) from found where {condition}"), model).await?;
    let counts = counted.iter().filter(|batch| batch.num_rows() > 0);
    Ok(counts.map(|batch| batch.column(0).as_primitive::<Int64Type>().value(0) as u64).sum())
}

/// Columns that only the query or only the table has.
fn other_columns(wanted: &SchemaRef, found: &SchemaRef) -> Vec<String> {
    let only_in = |one: &SchemaRef, other: &SchemaRef| -> Vec<String> {
        let names = one.fields().iter().map(|field| field.name());
        names.filter(|name| other.field_with_name(name).is_err()).cloned().collect()
    };
    let missing = only_in(wanted, found).into_iter().map(|name| format!("it lacks the column {name} of its query"));
    let extra = only_in(found, wanted).into_iter().map(|name| format!("it has the column {name}, its query has not"));
    missing.chain(extra).collect()
}

/// The columns of a table, by how they are compared.
#[derive(Debug)]
struct Columns {
    names: Vec<String>,
    types: Vec<DataType>,
    /// The places of the columns that tell one row from another; empty if nothing says which they are.
    key: Vec<usize>,
}

impl Columns {
    fn of(model: &Model, plan: &LogicalPlan, schema: &SchemaRef) -> Self {
        let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let types: Vec<DataType> = schema.fields().iter().map(|field| field.data_type().clone()).collect();
        let place = |name: &String| names.iter().position(|column| column == name);
        let key: Option<Vec<usize>> = key_of(model, plan).iter().map(place).collect();
        // Floats are compared by nearness, which tells no row from another.
        let key = key.filter(|key| key.iter().all(|place| tolerance(&types[*place]).is_none())).unwrap_or_default();
        Self { names, types, key }
    }

    /// The places of the columns that are compared exactly.
    fn exact(&self) -> impl Iterator<Item = usize> {
        (0..self.names.len()).filter(|place| tolerance(&self.types[*place]).is_none())
    }

    /// The places of the floats, with how near is near enough.
    fn floats(&self) -> impl Iterator<Item = (usize, f64)> {
        self.types.iter().enumerate().filter_map(|(place, data_type)| Some((place, tolerance(data_type)?)))
    }

    /// The condition on the key, or without one on the whole row, that a share of the rows fulfils: the same share each time,
    /// and on both sides.
    fn sampled(&self, share: f64) -> Option<String> {
        let of_key = if self.key.is_empty() { self.exact().collect() } else { self.key.clone() };
        let has_text = |place: &usize| !self.types[*place].is_nested() && !self.types[*place].is_binary();
        let texts: Vec<_> = of_key.into_iter().filter(has_text).map(|place| self.text(place)).collect();
        let bound = (share * f64::from(u32::MAX)).round() as u32;
        let hash = format!("substr(md5(concat_ws('|', {})), 1, 8)", texts.join(", "));
        (share < 1.0 && !texts.is_empty()).then(|| format!("{hash} < '{bound:08x}'"))
    }

    fn text(&self, place: usize) -> String {
        format!("cast({} as varchar)", quoted(&self.names[place]))
    }

    /// The query for the rows that differ. Its columns are the exact ones, then each float as found and as expected, then how
    /// often the row is there and how often it should be.
    fn differences(&self, condition: &str) -> String {
        let exact: Vec<String> = self.exact().map(|place| format!("c{place}")).collect();
        let floats = self.floats().map(|(place, _)| {
            format!("max(c{place}) filter (where s = 1) as f{place}, max(c{place}) filter (where s = 0) as e{place}")
        });
        let counts = "count(*) filter (where s = 1) as found, count(*) filter (where s = 0) as expected".to_owned();
        let counted: Vec<String> = exact.iter().cloned().chain(floats).chain([counts]).collect();
        let group: Vec<String> = exact.iter().cloned().chain(["nth".to_owned()]).collect();
        let (found, expected) = (self.side("found", 1, condition), self.side("expected", 0, condition));
        let differs: Vec<String> =
            ["found <> expected".to_owned()].into_iter().chain(self.floats().map(differs)).collect();
        let sortable = |place: &usize| !self.types[*place].is_nested();
        let order = self.key.iter().copied().chain(self.exact().filter(sortable)).map(|place| format!("c{place}"));
        let order: Vec<String> = order.chain(["expected".to_owned()]).collect();
        format!(
            "select * from (select {} from ({found} union all {expected}) group by {}) where {} order by {}",
            counted.join(", "),
            group.join(", "),
            differs.join(" or "),
            order.join(", ")
        )
    }

    /// The rows of one side. Rows that differ in floats alone are counted through in the order of these, and each is compared
    /// with that of the same number.
    fn side(&self, relation: &str, side: u8, condition: &str) -> String {
        let columns = self.names.iter().enumerate().map(|(place, name)| format!("{} as c{place}", quoted(name)));
        let listed = |places: &mut dyn Iterator<Item = usize>| -> String {
            places.map(|place| quoted(&self.names[place])).collect::<Vec<_>>().join(", ")
        };
        let exact = listed(&mut self.exact());
        let within = if exact.is_empty() { String::new() } else { format!("partition by {exact} ") };
        let floats = listed(&mut self.floats().map(|(place, _)| place));
        let number =
            if floats.is_empty() { "1".to_owned() } else { format!("row_number() over ({within}order by {floats})") };
        let columns: Vec<String> = columns.chain([format!("{side} as s, {number} as nth")]).collect();
        format!("select {} from {relation} where {condition}", columns.join(", "))
    }
}

/// How far apart two values of that type may be, if they are floats.
fn tolerance(data_type: &DataType) -> Option<f64> {
    match data_type {
        DataType::Float64 => Some(TOLERANCE),
        DataType::Float32 => Some(TOLERANCE_32),
        _ => None,
    }
}

fn differs((place, tolerance): (usize, f64)) -> String {
    let (found, expected) = (format!("f{place}"), format!("e{place}"));
    let near = format!(
        "abs({found} - {expected}) <= {tolerance:e} * least(abs({found}), abs({expected})) + {TOLERANCE_AT_ZERO:e}"
    );
    // Of the infinite nothing is near but itself.
    let finite = format!("abs({found} - {expected}) < {:e}", f64::MAX);
    format!("not coalesce({found} = {expected} or ({near} and {finite}), {found} is null and {expected} is null)")
}

/// The columns that tell one row of a model from another, as far as the project or the query says which they are.
fn key_of(model: &Model, plan: &LogicalPlan) -> Vec<String> {
    if !model.config.unique_key.is_empty() {
        return model.config.unique_key.clone();
    }
    let unique = model.tests.iter().filter(|test| test.condition.is_none()).find_map(|test| match &test.check {
        Check::Unique { columns } => Some(columns.clone()),
        _ => None,
    });
    unique.or_else(|| class::group_columns(plan)).unwrap_or_default()
}

/// A row that is more often on one side than on the other, or has other floats.
#[derive(Debug)]
struct Row {
    /// The value of each column, as it is and as it should be. A side that has no such row has only the exact ones.
    values: Vec<(String, String)>,
    found: i64,
    expected: i64,
}

#[derive(Debug, PartialEq, Eq)]
enum Side {
    OnlyFound,
    OnlyExpected,
    Both,
}

impl Row {
    fn side(&self) -> Side {
        match (self.found, self.expected) {
            (1, 0) => Side::OnlyFound,
            (0, 1) => Side::OnlyExpected,
            _ => Side::Both,
        }
    }
}

/// Makes words of the rows that differ.
struct Reader<'a> {
    columns: &'a Columns,
    differences: Differences,
    /// The last row, if the next one may be its other side: rows come in the order of their keys.
    waiting: Option<Row>,
}

impl Reader<'_> {
    fn read(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let options = FormatOptions::default().with_null("NULL");
        let printers = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
        let printers = printers.collect::<Result<Vec<_>, _>>()?;
        let place = |name: String| batch.schema_ref().index_of(&name);
        let sides = self.columns.types.iter().enumerate().map(|(at, data_type)| match tolerance(data_type) {
            Some(_) => Ok((place(format!("f{at}"))?, place(format!("e{at}"))?)),
            None => place(format!("c{at}")).map(|both| (both, both)),
        });
        let sides = sides.collect::<Result<Vec<_>, ArrowError>>()?;
        let counts = |name: &str| place(name.to_owned()).map(|at| batch.column(at).as_primitive::<Int64Type>());
        let (found, expected) = (counts("found")?, counts("expected")?);
        for row in 0..batch.num_rows() {
            let text = |at: usize| printers[at].value(row).to_string();
            let values = sides.iter().map(|(found, expected)| (text(*found), text(*expected))).collect();
            self.take(Row { values, found: found.value(row), expected: expected.value(row) });
        }
        Ok(())
    }

    fn take(&mut self, row: Row) {
        let Some(last) = self.waiting.take() else {
            self.waiting = Some(row);
            return;
        };
        let same_key =
            !self.columns.key.is_empty() && self.columns.key.iter().all(|at| last.values[*at] == row.values[*at]);
        match (last.side(), row.side()) {
            (Side::OnlyFound, Side::OnlyExpected) if same_key => self.pair(last, row),
            (Side::OnlyExpected, Side::OnlyFound) if same_key => self.pair(row, last),
            _ => {
                self.differences.tell(|| self.columns.told(&last));
                self.waiting = Some(row);
            }
        }
    }

    /// A row that is there with other values than it should have.
    fn pair(&mut self, found: Row, expected: Row) {
        let values = found.values.into_iter().zip(expected.values).map(|((found, _), (_, expected))| (found, expected));
        let row = Row { values: values.collect(), found: 1, expected: 1 };
        self.differences.tell(|| self.columns.told(&row));
    }

    fn end(mut self, compared_rows: u64) -> Comparison {
        if let Some(last) = self.waiting.take() {
            self.differences.tell(|| self.columns.told(&last));
        }
        self.differences.end(compared_rows)
    }
}

impl Columns {
    /// What is wrong with a row.
    fn told(&self, row: &Row) -> String {
        let all = || 0..self.names.len();
        let found = || self.spelled(all().map(|at| (at, &row.values[at].0)));
        let expected = || self.spelled(all().map(|at| (at, &row.values[at].1)));
        match (row.found, row.expected) {
            (0, 1) => format!("the row ({}) is missing", expected()),
            (0, times) => format!("the row ({}) is missing, {times} times", expected()),
            (1, 0) => format!("the row ({}) should not be there", found()),
            (times, 0) => format!("the row ({}) should not be there, and is {times} times", found()),
            (times, wanted) if times != wanted => {
                format!("the row ({}) is there {times} times, and should be there {wanted}", found())
            }
            _ => self.changed(row),
        }
    }

    fn changed(&self, row: &Row) -> String {
        let (same, other): (Vec<usize>, Vec<usize>) =
            (0..self.names.len()).partition(|at| row.values[*at].0 == row.values[*at].1);
        let key = if self.key.is_empty() { &same } else { &self.key };
        let key = self.spelled(key.iter().map(|at| (*at, &row.values[*at].0)));
        let changed = other.iter().map(|at| {
            let (found, expected) = &row.values[*at];
            format!("{} is {}, and should be {}", self.names[*at], cut(found), cut(expected))
        });
        format!("the row ({key}) differs: {}", changed.collect::<Vec<_>>().join("; "))
    }

    fn spelled<'a>(&self, values: impl Iterator<Item = (usize, &'a String)>) -> String {
        let spelled = values.map(|(at, value)| format!("{} = {}", self.names[at], cut(value)));
        spelled.collect::<Vec<_>>().join(", ")
    }
}

fn cut(value: &str) -> String {
    match value.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

/// The first differences in words, and how many there are.
#[derive(Debug, Default)]
struct Differences {
    count: u64,
    told: Vec<String>,
}

impl Differences {
    fn tell(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        if self.count <= EXAMPLES_MAX {
            self.told.push(what());
        }
    }

    fn end(mut self, compared_rows: u64) -> Comparison {
        if self.count > EXAMPLES_MAX {
            self.told.push(format!("{} more rows differ", self.count - EXAMPLES_MAX));
        }
        Comparison { compared_rows, differing_rows: self.count, told: self.told }
    }
}
