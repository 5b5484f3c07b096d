//! One run: from the newest publication to a Snowflake schema that holds it.
//!
//! All that is slow happens where no reader sees it: export, upload and load go to a stage and to staging tables of this
//! attempt alone. What readers see changes in one transaction, at whose beginning stands the compare-and-set on the state.
//! Every statement in it asks for that state again, since Snowflake can end a transaction that idles while others wait for
//! it: what came after would then commit by itself, and so changes nothing.
//!
//! Up to its COMMIT a run can be broken off anywhere and started over. Whether a COMMIT without an answer was heard, the
//! next attempt learns from the state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lakehouse::{DEFAULT_GROUP, Lake, Publication, TableName, TableVersion};
use rand::Rng as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::client::{Client, Session};
use crate::export::export;
use crate::plan::{self, Load, Plan};
use crate::runs::Runs;
use crate::state::{self, STATE, State, TABLES};
use crate::types::{literal, quoted, upper};
use crate::{Error, ErrorKind, Options, Outcome, Result, Summary};

/// The schema of the lake that is mirrored.
const GOLD: &str = "gold";
/// The stage that parts are uploaded to. It ends with its session, and takes with it what was not loaded. Its files are
/// encrypted by Snowflake, not by us.
const STAGE: &str = "LAKEBEAT_MIRROR";
/// So often a run is tried before its error is the caller's.
const ATTEMPTS_MAX: u32 = 3;
/// The pause before the second attempt, at most; it doubles each time.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);

/// How far a run has come in its figures.
#[derive(Debug, Default, Clone, Copy)]
struct Figures {
    tables: u64,
    rows: u64,
    bytes: u64,
    statements: u64,
}

/// What Snowflake holds at the end of a run.
enum Applied {
    /// What this run put there.
    Loaded,
    /// What somebody else put there, or an attempt of ours whose end nobody saw.
    Found(u64),
}

pub(crate) async fn run(lake: &Lake, options: &Options, token: &CancellationToken) -> Result<Summary> {
    let started = Instant::now();
    let started_at = lake.clock().now();
    let client = Client::new(options)?;
    let runs = Runs::of(lake, options);
    let mut figures = Figures::default();
    let summary = |outcome, publication, figures: Figures| Summary {
        outcome,
        target: options.target(),
        publication,
        tables: figures.tables,
        rows: figures.rows,
        bytes: figures.bytes,
        statements: figures.statements,
        seconds: started.elapsed().as_secs_f64(),
    };
    for attempt in 1.. {
        let Some(publication) = lake.newest_publication(DEFAULT_GROUP).await? else {
            return Ok(summary(Outcome::NothingPublished, None, figures));
        };
        if let Some(mirrored) = runs.mirrored().await?.filter(|mirrored| *mirrored >= publication.id) {
            return Ok(summary(Outcome::Unchanged, Some(mirrored), figures));
        }
        let summary = match try_once(lake, options, &client, &publication, &mut figures, token).await {
            Ok(None) => return Ok(summary(Outcome::Stopped, None, figures)),
            Ok(Some(Applied::Loaded)) => summary(Outcome::Mirrored, Some(publication.id), figures),
            Ok(Some(Applied::Found(id))) => summary(Outcome::Found, Some(id), figures),
            Err(error) if attempt < ATTEMPTS_MAX && may_pass(error.kind()) => {
                let pause = ATTEMPT_PAUSE * 2_u32.pow(attempt - 1);
                let pause = pause.mul_f64(rand::rng().random_range(0.5..1.0));
                tracing::warn!(%error, attempt, retry_in = ?pause, "not mirrored, trying again");
                tokio::select! {
                    () = token.cancelled() => return Ok(summary(Outcome::Stopped, None, figures)),
                    () = tokio::time::sleep(pause) => continue,
                }
            }
            Err(error) => return Err(error),
        };
        runs.record(started_at, &summary).await?;
        return Ok(summary);
    }
    unreachable!("the loop ends by returning")
}

fn may_pass(kind: ErrorKind) -> bool {
    // What is not found was there: a version whose files were cleaned away while it was read, after a newer publication.
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Conflict | ErrorKind::NotFound)
}

/// One attempt, from login to logout. `None` if it was stopped.
async fn try_once(
    lake: &Lake,
    options: &Options,
    client: &Client,
    publication: &Publication,
    figures: &mut Figures,
    token: &CancellationToken,
) -> Result<Option<Applied>> {
    let prepare = async {
        let published = gold(lake, publication).await?;
        let lake_id = lake.table(&TableName::new("system", "publications")).head().await?.table_id.clone();
        Ok((published, lake_id, client.login().await?))
    };
    let (published, lake_id, mut session) = tokio::select! {
        prepared = prepare => prepared?,
        () = token.cancelled() => return Ok(None),
    };
    *figures = Figures { statements: figures.statements, ..Figures::default() };
    let before = figures.statements;
    let mut attempt = Attempt {
        lake,
        options,
        session: &mut session,
        published,
        publication: publication.id,
        lake_id,
        id: Uuid::new_v4().simple().to_string()[..12].to_uppercase(),
        figures,
    };
    let applied = tokio::select! {
        applied = attempt.run() => applied.map(Some),
        () = token.cancelled() => Ok(None),
    };
    figures.statements = before + session.statements;
    // This also ends a transaction that was broken off.
    session.close().await;
    applied
}

/// The tables to mirror, at the versions that the publication names.
async fn gold(lake: &Lake, publication: &Publication) -> Result<BTreeMap<TableName, Arc<TableVersion>>> {
    let mut tables = BTreeMap::new();
    for (name, pinned) in publication.tables.iter().filter(|(name, _)| name.schema == GOLD) {
        let table = lake.table(name).at(pinned.version).await?;
        if table.table_id != pinned.table_id {
            let message = format!("{name} was made anew since publication {}: build again", publication.id);
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        tables.insert(name.clone(), table);
    }
    Ok(tables)
}

/// One attempt at one publication, in one session.
struct Attempt<'a> {
    lake: &'a Lake,
    options: &'a Options,
    session: &'a mut Session,
    published: BTreeMap<TableName, Arc<TableVersion>>,
    publication: u64,
    lake_id: String,
    /// Names this attempt in the state, in the stage and in the staging tables.
    id: String,
    figures: &'a mut Figures,
}

impl Attempt<'_> {
    async fn run(&mut self) -> Result<Applied> {
        let target = self.options.target();
        state::enter(self.session, self.options).await?;
        let state = state::read(self.session, &self.lake_id, &target).await?;
        if state.publication >= self.publication {
            return Ok(Applied::Found(state.publication));
        }
        let published = self.published.keys().map(|name| upper(&name.name));
        let names: Vec<String> = published.chain(state.tables.keys().cloned()).collect();
        let existing = state::existing(self.session, self.options, &names).await?;
        let plan = plan::plan(&self.published, &state, &existing, &self.id)?;
        self.check_foreign(&plan).await?;
        let ended = match self.prepare(&plan).await {
            Ok(rows) => self.apply(&plan, &state, &rows).await,
            Err(error) => Err(error),
        };
        match &ended {
            Ok(()) => self.drop_tables(&plan).await,
            // One that does not answer is not asked once more: whoever comes next drops what stays behind.
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            Err(_) => self.drop_staging(&plan).await,
        }
        ended.map(|()| Applied::Loaded)
    }

    /// A table that the mirror has not filled before is its to fill only while it is empty.
    async fn check_foreign(&mut self, plan: &Plan) -> Result<()> {
        for Load { name, .. } in plan.loads.iter().filter(|load| !load.is_ours) {
            let doing = format!("look into {name}");
            let count =
                self.session.run(&doing, &format!("SELECT COUNT(*) AS N FROM {}", quoted(name))).await?.number()?;
            if count > 0 {
                return Err(self.foreign(name, count).await?);
            }
        }
        Ok(())
    }

    /// Whose rows they are: another mirror's of this lake, which has been quicker, or somebody's who knows nothing of us.
    async fn foreign(&mut self, name: &str, count: u64) -> Result<Error> {
        let target = self.options.target();
        let known = format!("SELECT COUNT(*) AS N FROM {TABLES} WHERE TABLE_NAME = {}", literal(name));
        if self.session.run(&format!("look for {name} in the state"), &known).await?.number()? > 0 {
            return Ok(Error::new(ErrorKind::Conflict, format!("another mirror has filled {target} meanwhile")));
        }
        let message = format!(
            "{name} in {target} has {count} rows that are not the mirror's: drop or rename that table in Snowflake, or name \
             another schema with LAKEBEAT_SNOWFLAKE_SCHEMA"
        );
        Ok(Error::new(ErrorKind::BadConfig, message))
    }

    /// All that readers do not see: rows in staging tables, target tables without rows, columns without values. Returns the
    /// number of rows by table.
    async fn prepare<'p>(&mut self, plan: &'p Plan) -> Result<BTreeMap<&'p str, u64>> {
        if !plan.loads.is_empty() {
            let stage = format!("CREATE TEMPORARY STAGE IF NOT EXISTS {STAGE} ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')");
            self.session.run(&format!("make a stage in {}", self.options.target()), &stage).await?;
        }
        let mut rows = BTreeMap::new();
        for load in &plan.loads {
            rows.insert(load.name.as_str(), self.stage(load).await?);
        }
        for load in &plan.loads {
            for statement in &load.definition {
                self.session.run(&format!("make table {} fit {}", load.name, load.table.name), statement).await?;
            }
        }
        Ok(rows)
    }

    /// The transaction. After an error it is over, unless Snowflake does not answer: then it is left to the end of the
    /// session. Any other statement would be wrong in that place: one that drops a table commits what is open.
    async fn apply(&mut self, plan: &Plan, state: &State, rows: &BTreeMap<&str, u64>) -> Result<()> {
        self.session.run("begin a transaction", "BEGIN").await?;
        let ended = match self.replace_rows(plan, state, rows).await {
            Ok(()) => self.commit().await,
            Err(error) => Err(error),
        };
        match ended {
            Err(error) if error.kind() != ErrorKind::Unavailable => {
                self.session.run("roll back", "ROLLBACK").await.map_err(|unheard| {
                    tracing::warn!(%unheard, "not rolled back");
                    Error::with_source(ErrorKind::Unavailable, "cannot roll back", error.to_string())
                })?;
                Err(error)
            }
            ended => ended,
        }
    }

    /// Loads a table's rows into its staging table, and counts them on both sides.
    async fn stage(&mut self, load: &Load) -> Result<u64> {
        let Load { table, name, staging, .. } = load;
        let doing = format!("upload {}", table.name);
        let folder = format!("{STAGE}/{}/{name}", self.id);
        let (sender, mut parts) = mpsc::channel::<Bytes>(1);
        let session = &mut *self.session;
        let upload = async {
            let (mut count, mut bytes) = (0_u64, 0_u64);
            while let Some(part) = parts.recv().await {
                bytes += part.len() as u64;
                session.put(&doing, &format!("{folder}/part-{count}.parquet"), part).await?;
                count += 1;
            }
            Ok((count, bytes))
        };
        let (rows, (count, bytes)) = tokio::try_join!(export(self.lake, table, sender), upload)?;
        let doing = format!("load {}", table.name);
        let create = format!(
            "CREATE OR REPLACE TRANSIENT TABLE {} ({}) DATA_RETENTION_TIME_IN_DAYS = 0",
            quoted(staging),
            load.column_definitions()
        );
        self.session.run(&doing, &create).await?;
        let mut loaded = 0;
        if count > 0 {
            let copy = format!(
                "COPY INTO {} FROM @{folder}/ \
                 FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE BINARY_AS_TEXT = FALSE) \
                 MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE ON_ERROR = ABORT_STATEMENT FORCE = TRUE PURGE = TRUE",
                quoted(staging)
            );
            loaded = self.session.run(&doing, &copy).await?.iter().map(|file| file.number("ROWS_LOADED")).sum();
        }
        self.check_count(load, rows, loaded)?;
        self.figures.tables += 1;
        self.figures.rows += rows;
        self.figures.bytes += bytes;
        tracing::debug!(table = %table.name, version = table.version, rows, bytes, "loaded");
        Ok(rows)
    }

    fn check_count(&self, load: &Load, wanted: u64, found: u64) -> Result<()> {
        if wanted == found {
            return Ok(());
        }
        let message = format!(
            "{} has {wanted} rows at version {}, and {found} arrived in {}: nothing was changed there",
            load.table.name, load.table.version, load.name
        );
        Err(Error::new(ErrorKind::BadData, message))
    }

    /// Finds the state's row if it is this attempt's.
    fn ours(&self) -> String {
        format!("ATTEMPT = {}", literal(&self.id))
    }

    /// Holds as long as it is, so for as long as the transaction.
    fn is_ours(&self) -> String {
        format!("EXISTS (SELECT 1 FROM {STATE} WHERE {})", self.ours())
    }

    /// What is in the transaction, all but its ends.
    async fn replace_rows(&mut self, plan: &Plan, state: &State, rows: &BTreeMap<&str, u64>) -> Result<()> {
        let target = self.options.target();
        let (ours, is_ours) = (self.ours(), self.is_ours());
        let claim = format!(
            "UPDATE {STATE} SET {ours}, PUBLICATION = {}, APPLIED_AT = CURRENT_TIMESTAMP() \
             WHERE LAKE = {} AND ATTEMPT = {}",
            self.publication,
            literal(&self.lake_id),
            literal(&state.attempt)
        );
        if self.session.run(&format!("claim {target}"), &claim).await?.number()? != 1 {
            let message = format!("another mirror has changed {target} meanwhile: nothing was changed by this one");
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        for load in &plan.loads {
            let Load { name, staging, .. } = load;
            let doing = format!("replace the rows of {name}");
            let (name, columns) = (quoted(name), load.column_list());
            self.session.run(&doing, &format!("DELETE FROM {name} WHERE {is_ours}")).await?;
            let staging = quoted(staging);
            let insert = format!("INSERT INTO {name} ({columns}) SELECT {columns} FROM {staging} WHERE {is_ours}");
            self.session.run(&doing, &insert).await?;
            let count = self.session.run(&doing, &format!("SELECT COUNT(*) AS N FROM {name}")).await?.number()?;
            let wanted = rows.get(load.name.as_str()).copied().unwrap_or_default();
            self.check_count(load, wanted, count)?;
        }
        for leaving in plan.leaving.iter().filter(|leaving| leaving.is_there) {
            let delete = format!("DELETE FROM {} WHERE {is_ours}", quoted(&leaving.name));
            self.session.run(&format!("empty {}", leaving.name), &delete).await?;
        }
        self.write_down(plan, rows).await?;
        // Had the transaction been ended from outside, none of the above would be in it, and this would not find it either.
        let doing = format!("check that {target} is still claimed");
        match self.session.run(&doing, &format!("SELECT COUNT(*) AS N FROM {STATE} WHERE {ours}")).await?.number()? {
            1 => Ok(()),
            _ => Err(Error::new(ErrorKind::Conflict, format!("Snowflake has ended the transaction on {target}"))),
        }
    }

    /// Moves the rows of `_MIRROR_TABLES`.
    async fn write_down(&mut self, plan: &Plan, rows: &BTreeMap<&str, u64>) -> Result<()> {
        let (ours, is_ours) = (self.ours(), self.is_ours());
        let loads = plan.loads.iter().map(|load| {
            let Load { table, name, .. } = load;
            let rows = rows.get(name.as_str()).copied().unwrap_or_default();
            (name, Some((table.table_id.as_str(), table.version, rows)))
        });
        // One without an id is there until it is dropped, after the commit.
        let leaving = plan.leaving.iter().map(|leaving| (&leaving.name, leaving.is_there.then_some(("", 0, 0))));
        let tables: Vec<_> = loads.chain(leaving).collect();
        if tables.is_empty() {
            return Ok(());
        }
        let doing = format!("write down what {} holds", self.options.target());
        let names: Vec<String> = tables.iter().map(|(name, _)| literal(name)).collect();
        let delete = format!("DELETE FROM {TABLES} WHERE TABLE_NAME IN ({}) AND {is_ours}", names.join(", "));
        self.session.run(&doing, &delete).await?;
        let row = |(name, held): &(&String, Option<(&str, u64, u64)>)| {
            let (table_id, version, rows) = (*held)?;
            let (name, table_id) = (literal(name), literal(table_id));
            let publication = self.publication;
            Some(format!(
                "SELECT {name}, {table_id}, {version}, {rows}, {publication}, CURRENT_TIMESTAMP() FROM {STATE} WHERE {ours}"
            ))
        };
        let rows: Vec<String> = tables.iter().filter_map(row).collect();
        if !rows.is_empty() {
            let insert = format!(
                "INSERT INTO {TABLES} (TABLE_NAME, TABLE_ID, DELTA_VERSION, ROW_COUNT, PUBLICATION, APPLIED_AT) {}",
                rows.join(" UNION ALL ")
            );
            self.session.run(&doing, &insert).await?;
        }
        Ok(())
    }

    /// Without an answer nobody knows how it ended. Another attempt reads the state, in a session that sees only what is
    /// committed.
    async fn commit(&mut self) -> Result<()> {
        let doing = format!("commit publication {} to {}", self.publication, self.options.target());
        self.session.run(&doing, "COMMIT").await.map(|_| ())
    }

    /// After the commit: staging tables, those of others who have lost too, and tables that have left the publication.
    /// Whatever cannot be dropped now, the next run that has something to load drops.
    async fn drop_tables(&mut self, plan: &Plan) {
        self.drop_staging(plan).await;
        for name in &plan.leftovers {
            self.try_to(&format!("drop {name}"), &format!("DROP TABLE IF EXISTS {}", quoted(name))).await;
        }
        for leaving in plan.leaving.iter().filter(|leaving| leaving.is_there) {
            let name = &leaving.name;
            self.try_to(&format!("drop {name}"), &format!("DROP TABLE IF EXISTS {}", quoted(name))).await;
            let forget = format!("DELETE FROM {TABLES} WHERE TABLE_NAME = {} AND TABLE_ID = ''", literal(name));
            self.try_to(&format!("forget {name}"), &forget).await;
        }
    }

    async fn drop_staging(&mut self, plan: &Plan) {
        for load in &plan.loads {
            let drop = format!("DROP TABLE IF EXISTS {}", quoted(&load.staging));
            self.try_to(&format!("drop {}", load.staging), &drop).await;
        }
    }

    async fn try_to(&mut self, doing: &str, sql: &str) {
        if let Err(error) = self.session.run(doing, sql).await {
            tracing::warn!(%error, "left for the next run");
        }
    }
}
