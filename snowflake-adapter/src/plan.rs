//! What has to be done: the publication's tables against what Snowflake holds. Nothing is sent from here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lakehouse::{TableName, TableVersion};

use crate::state::{Existing, Found, Held, STAGING, STATE, State, TABLES};
use crate::types::{ColumnType, quoted, upper};
use crate::{Error, ErrorKind, Result};

/// What one run does.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Tables whose version here is another one than the publication's.
    pub(crate) loads: Vec<Load>,
    /// Tables that the publication no longer names, or that an earlier run could not drop any more.
    pub(crate) leaving: Vec<Leaving>,
    /// Staging tables that somebody left behind. Whoever did has read the state before we did, so once ours is applied
    /// nothing can come of theirs.
    pub(crate) leftovers: Vec<String>,
}

/// A table to empty and then to drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaving {
    pub(crate) name: String,
    /// Whether it is still there.
    pub(crate) is_there: bool,
}

/// One table to load.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) table: Arc<TableVersion>,
    /// Its name on the other side.
    pub(crate) name: String,
    /// The table that its rows are loaded into first.
    pub(crate) staging: String,
    pub(crate) columns: Vec<Column>,
    /// Whether no rows of others can be in the target: it is not there yet, or the mirror has filled it before.
    pub(crate) is_ours: bool,
    /// What makes the target table what it has to be. Commits by itself, and takes no row away.
    pub(crate) definition: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) column_type: ColumnType,
}

impl Load {
    /// The columns, quoted, with commas.
    pub(crate) fn column_list(&self) -> String {
        self.columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
    }

    /// The columns with their types.
    pub(crate) fn column_definitions(&self) -> String {
        let definition = |column: &Column| format!("{} {}", quoted(&column.name), column.column_type);
        self.columns.iter().map(definition).collect::<Vec<_>>().join(", ")
    }
}

/// Compares the two sides. `attempt` makes the names of staging tables this run's own.
///
/// # Errors
/// `BadConfig` if a table cannot be carried over, or does not fit the one that is there.
pub(crate) fn plan(
    published: &BTreeMap<TableName, Arc<TableVersion>>,
    state: &State,
    existing: &Existing,
    attempt: &str,
) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut names = BTreeSet::new();
    for table in published.values() {
        let name = upper(&table.name.name);
        check_name(&table.name, &name)?;
        if !names.insert(name.clone()) {
            let message = format!("two tables of gold are {name} in upper case: rename one of the models");
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
        let held = Held { table_id: table.table_id.clone(), version: table.version };
        // A table that somebody has dropped there is loaded again.
        if state.tables.get(&name) == Some(&held) && existing.contains_key(&name) {
            continue;
        }
        let columns = columns(table)?;
        let definition = definition(&table.name, &name, &columns, existing.get(&name))?;
        let staging = format!("{STAGING}{attempt}_{name}");
        let is_ours = state.tables.contains_key(&name) || !existing.contains_key(&name);
        plan.loads.push(Load { table: table.clone(), name, staging, columns, definition, is_ours });
    }
    let is_published = |name: &String| published.keys().any(|table| upper(&table.name) == *name);
    let leaving = state.tables.keys().filter(|name| !is_published(name));
    plan.leaving = leaving.map(|name| Leaving { name: name.clone(), is_there: existing.contains_key(name) }).collect();
    plan.leftovers = existing.keys().filter(|name| name.starts_with(STAGING)).cloned().collect();
    Ok(plan)
}

/// Names of the mirror's own tables are not for models.
fn check_name(table: &TableName, name: &str) -> Result<()> {
    if [STATE, TABLES].contains(&quoted(name).as_str()) || name.starts_with(STAGING) {
        let message = format!("{table} would be {name} in Snowflake, a table of the mirror's own: rename the model");
        return Err(Error::new(ErrorKind::BadConfig, message));
    }
    Ok(())
}

fn columns(table: &TableVersion) -> Result<Vec<Column>> {
    let mut columns: Vec<Column> = Vec::new();
    for field in table.schema.fields() {
        let column_type = ColumnType::of(field.data_type()).ok_or_else(|| {
            let message = format!(
                "column {} of {} is {}, which the mirror cannot carry: make a text or a number of it in the model",
                field.name(),
                table.name,
                field.data_type()
            );
            Error::new(ErrorKind::BadConfig, message)
        })?;
        let name = upper(field.name());
        if columns.iter().any(|column| column.name == name) {
            let message =
                format!("{} has two columns that are {name} in upper case: rename one in the model", table.name);
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
        columns.push(Column { name, column_type });
    }
    Ok(columns)
}

/// The statements that make the target table, or add what it lacks.
///
/// A column that is there and not in the lake, or has another type there, is refused: taking it away or changing it would
/// commit at once, and readers would see a table of no publication.
fn definition(table: &TableName, name: &str, columns: &[Column], found: Option<&Vec<Found>>) -> Result<Vec<String>> {
    let Some(found) = found else {
        let definitions: Vec<_> = columns.iter().map(|c| format!("{} {}", quoted(&c.name), c.column_type)).collect();
        return Ok(vec![format!("CREATE TABLE IF NOT EXISTS {} ({})", quoted(name), definitions.join(", "))]);
    };
    let refuse = |what: String| {
        let message =
            format!("{what}: drop or rename that table in Snowflake, and the next run makes it as {table} is now");
        Err(Error::new(ErrorKind::BadConfig, message))
    };
    for there in found {
        match columns.iter().find(|column| column.name == there.name) {
            None => return refuse(format!("{name} in Snowflake has a column {}, which {table} has not", there.name)),
            Some(column) if !column.column_type.fits(&there.data_type, there.precision, there.scale) => {
                let Found { name: column_name, data_type, precision, scale } = there;
                let shown =
                    if data_type == "NUMBER" { format!("NUMBER({precision},{scale})") } else { data_type.clone() };
                return refuse(format!(
                    "column {column_name} of {name} in Snowflake is {shown}, and has to be {}",
                    column.column_type
                ));
            }
            Some(_) => {}
        }
    }
    let missing = columns.iter().filter(|column| found.iter().all(|there| there.name != column.name));
    let add = |column: &Column| {
        format!("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}", quoted(name), quoted(&column.name), column.column_type)
    };
    Ok(missing.map(add).collect())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use expect_test::expect;

    use super::*;

    fn table(name: &str, version: u64, fields: Vec<Field>) -> (TableName, Arc<TableVersion>) {
        let name = TableName::new("gold", name);
        let table = TableVersion {
            name: name.clone(),
            table_id: "id".to_owned(),
            version,
            schema: Arc::new(Schema::new(fields)),
            partition_columns: Vec::new(),
            properties: BTreeMap::new(),
            files: Arc::new([]),
            notes: Arc::default(),
            readers: Arc::default(),
        };
        (name, Arc::new(table))
    }

    fn fields() -> Vec<Field> {
        vec![Field::new("song", DataType::Utf8, true), Field::new("plays", DataType::Int64, true)]
    }

    fn there(columns: &[(&str, &str)]) -> Existing {
        let found = |(name, data_type): &(&str, &str)| Found {
            name: (*name).to_owned(),
            data_type: (*data_type).to_owned(),
            precision: 38,
            scale: 0,
        };
        Existing::from([("TOP".to_owned(), columns.iter().map(found).collect())])
    }

    fn held(version: u64) -> State {
        let held = |table_id: &str| Held { table_id: table_id.to_owned(), version };
        State {
            tables: BTreeMap::from([("TOP".to_owned(), held("id")), ("OLD".to_owned(), held("x"))]),
            ..State::default()
        }
    }

    fn definitions(existing: &Existing) -> Result<Vec<String>> {
        let published = BTreeMap::from([table("top", 1, fields())]);
        let plan = plan(&published, &State::default(), existing, "A1")?;
        Ok(plan.loads.into_iter().flat_map(|load| load.definition).collect())
    }

    #[test]
    fn only_what_differs_is_loaded() {
        let published = BTreeMap::from([table("top", 7, fields())]);
        let mut existing = there(&[("SONG", "TEXT"), ("PLAYS", "NUMBER")]);
        existing.insert("_LAKEBEAT_STAGING_B2_TOP".to_owned(), Vec::new());
        let same = plan(&published, &held(7), &existing, "A1").expect("fits");
        assert!(same.loads.is_empty());
        let old = Leaving { name: "OLD".to_owned(), is_there: false };
        assert_eq!((same.leaving, same.leftovers), (vec![old], vec!["_LAKEBEAT_STAGING_B2_TOP".into()]));
        let newer = plan(&published, &held(6), &existing, "A1").expect("fits");
        assert_eq!(newer.loads[0].staging, "_LAKEBEAT_STAGING_A1_TOP");
        assert!(newer.loads[0].definition.is_empty());
        let dropped = plan(&published, &held(7), &Existing::new(), "A1").expect("fits");
        assert_eq!(dropped.loads.len(), 1);
    }

    #[test]
    fn a_table_is_made_or_grows() {
        expect![[r#"CREATE TABLE IF NOT EXISTS "TOP" ("SONG" VARCHAR, "PLAYS" NUMBER(38,0))"#]]
            .assert_eq(&definitions(&Existing::new()).expect("made").join("; "));
        expect![[r#"ALTER TABLE "TOP" ADD COLUMN IF NOT EXISTS "PLAYS" NUMBER(38,0)"#]]
            .assert_eq(&definitions(&there(&[("SONG", "TEXT")])).expect("grows").join("; "));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let refusal = |columns: &[(&str, &str)]| definitions(&there(columns)).expect_err("refused").to_string();
        expect!["column PLAYS of TOP in Snowflake is TEXT, and has to be NUMBER(38,0): drop or rename that table in Snowflake, and the next run makes it as gold.top is now"]
            .assert_eq(&refusal(&[("SONG", "TEXT"), ("PLAYS", "TEXT")]));
        expect!["TOP in Snowflake has a column MORE, which gold.top has not: drop or rename that table in Snowflake, and the next run makes it as gold.top is now"]
            .assert_eq(&refusal(&[("SONG", "TEXT"), ("PLAYS", "NUMBER"), ("MORE", "DATE")]));
        let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
        for fields in [
            vec![Field::new("tags", list, true)],
            vec![Field::new("a", DataType::Utf8, true), Field::new("A", DataType::Utf8, true)],
        ] {
            let published = BTreeMap::from([table("top", 1, fields)]);
            let error = plan(&published, &State::default(), &Existing::new(), "A1").expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::BadConfig);
        }
    }
}
