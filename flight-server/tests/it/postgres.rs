//! The PostgreSQL door with a real client (tokio-postgres), which speaks the extended protocol in binary, and the simple
//! one in text.

use std::time::Duration;

use flight_server::query::{Limits, QueryEngine};
use flight_server::{Options, postgres};
use futures::TryStreamExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;

use crate::lake::TestLake;

/// A door on a lake, and what keeps it and its clients running.
struct Server {
    lake: TestLake,
    engine: QueryEngine,
    port: u16,
    token: CancellationToken,
    tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let lake = TestLake::new().await;
        let engine = QueryEngine::new(lake.lake.clone(), Limits::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let token = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let serving = postgres::serve(listener, engine.clone(), Options::default(), token.clone());
        tasks.spawn(async move { serving.await.expect("the door serves") });
        Self { lake, engine, port, token, tasks }
    }

    async fn connect(&mut self) -> Client {
        self.connect_with("").await.expect("the door lets everybody in")
    }

    async fn connect_with(&mut self, more: &str) -> Result<Client, Error> {
        let config = format!("host=127.0.0.1 port={} user=ana dbname=lake {more}", self.port);
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
        self.tasks.spawn(async move {
            // A connection that the test or the door has ended.
            let _ = connection.await;
        });
        Ok(client)
    }

    /// Waits until no statement runs.
    async fn until_quiet(&self) {
        let quiet = async {
            while !self.engine.running().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), quiet).await.expect("the statement is freed");
    }

    /// Waits until a statement runs.
    async fn until_busy(&self) {
        let busy = async {
            while self.engine.running().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), busy).await.expect("the statement starts");
    }
}

/// Takes about for ever.
const SLOW: &str = "select count(*) from generate_series(1, 1000000) a, generate_series(1, 1000000) b where a.value % 7 = b.value % 11";

async fn rows(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(sql).await.expect(sql);
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        })
        .collect()
}

/// The first value of the first row, in text.
async fn value(client: &Client, sql: &str) -> String {
    let rows = rows(client, sql).await;
    rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_else(|| format!("{rows:?}"))
}

fn state(error: &Error) -> &str {
    error.code().map_or("no sqlstate", SqlState::code)
}

async fn refusal(client: &Client, sql: &str) -> String {
    match client.simple_query(sql).await {
        Ok(_) => format!("{sql} was accepted"),
        Err(error) => state(&error).to_owned(),
    }
}

#[tokio::test]
async fn the_simple_protocol_answers_in_postgresqls_text() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    let row = rows(&client, "select * from gold.every_type where a_bool").await.remove(0);
    let row: Vec<String> = row.into_iter().map(|value| value.unwrap_or_else(|| "NULL".to_owned())).collect();
    assert_eq!(
        row,
        [
            "t",
            "-2",
            "7",
            "9223372036854775807",
            "0.1",
            "1e+20",
            "Grüße, {\"x\"}",
            "\\x00ff",
            "2026-01-01",
            "2026-01-01 10:00:00.123456+00",
            "123.45",
        ]
    );
    let nulls = rows(&client, "select * from every_type where a_bool is null").await;
    assert_eq!(nulls, [vec![None; 11]]);
    // Several statements in one message, each with its own answer.
    let several = rows(&client, "select 1; ; select ';' -- two\n; select song_name from top_songs limit 1;").await;
    assert_eq!(several.len(), 3);
    assert_eq!(several[1][0].as_deref(), Some(";"));
}

#[tokio::test]
async fn the_extended_protocol_answers_in_binary() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    let row = client.query_one("select * from every_type where an_int = $1", &[&7_i32]).await.expect("one row");
    let types: Vec<Type> = row.columns().iter().map(|column| column.type_().clone()).collect();
    assert_eq!(
        types,
        [
            Type::BOOL,
            Type::INT2,
            Type::INT4,
            Type::INT8,
            Type::FLOAT4,
            Type::FLOAT8,
            Type::TEXT,
            Type::BYTEA,
            Type::DATE,
            Type::TIMESTAMPTZ,
            Type::NUMERIC,
        ]
    );
    assert!(row.get::<_, bool>("a_bool"));
    assert_eq!(row.get::<_, i16>("a_short"), -2);
    assert_eq!(row.get::<_, i64>("a_long"), i64::MAX);
    assert_eq!(row.get::<_, f32>("a_float"), 0.1);
    assert_eq!(row.get::<_, f64>("a_double"), 1e20);
    assert_eq!(row.get::<_, &str>("a_text"), "Grüße, {\"x\"}");
    assert_eq!(row.get::<_, &[u8]>("some_bytes"), [0, 255]);
    assert_eq!(row.get::<_, chrono::NaiveDate>("a_date").to_string(), "2026-01-01");
    let instant = row.get::<_, chrono::DateTime<chrono::Utc>>("an_instant");
    assert_eq!(instant.timestamp_micros(), crate::lake::INSTANT);

    let nulls = client.query_one("select * from every_type where an_int is null", &[]).await.expect("one row");
    assert_eq!(nulls.get::<_, Option<i64>>("a_long"), None);
    let list: Vec<i64> = client.query_one("select make_array(1, 2)", &[]).await.expect("one row").get(0);
    assert_eq!(list, [1, 2]);
}

#[tokio::test]
async fn parameters_have_the_types_of_their_places() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    let sql = "select song_name from top_songs where total_plays > $1 and song_name <> $2 order by 1 limit $3";
    let statement = client.prepare(sql).await.expect("it plans");
    assert_eq!(statement.params(), [Type::INT8, Type::TEXT, Type::INT8]);
    let found = client.query(&statement, &[&10_i64, &"Stronger", &5_i64]).await.expect("it runs");
    assert_eq!(found.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>(), ["Levitating"]);

    // Nothing says what this is: it is text, as in PostgreSQL.
    let row = client.query_one("select $1", &[&"x"]).await.expect("it runs");
    assert_eq!(row.get::<_, &str>(0), "x");

    // Declared by the client.
    let statement = client.prepare_typed("select $1 + 1", &[Type::INT4]).await.expect("it plans");
    assert_eq!(statement.params(), [Type::INT4]);
    client.query_one(&statement, &[&41_i32]).await.expect("it runs");

    let instant = chrono::DateTime::from_timestamp_micros(crate::lake::INSTANT).expect("in range");
    let sql = "select count(*) from every_type where an_instant = $1 and a_date = $2";
    let count: i64 = client.query_one(sql, &[&instant, &instant.date_naive()]).await.expect("it runs").get(0);
    assert_eq!(count, 1);
    let error = client.query("select $1 + $1", &[]).await;
    assert!(error.is_err());
}

#[tokio::test]
async fn errors_have_sqlstates_and_leave_the_connection_usable() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    for (sql, expected) in [
        ("selec 1", "42601"),
        ("select * from nope", "42P01"),
        ("select * from nope.nope", "42P01"),
        ("select nope from top_songs", "42703"),
        ("select nope(1)", "42883"),
        ("select 1 / 0", "22012"),
        ("select cast('x' as int)", "22P02"),
        ("show nonsense", "42704"),
        ("set client_encoding = 'LATIN1'", "22023"),
        ("savepoint a", "25P01"),
        ("deallocate nope", "26000"),
        ("declare c cursor for select 1", "0A000"),
    ] {
        assert_eq!(refusal(&client, sql).await, expected, "{sql}");
        assert_eq!(value(&client, "select 42").await, "42", "after {sql}");
    }
    let error = client.query("select nope from top_songs", &[]).await.expect_err("no such column");
    assert_eq!(state(&error), "42703");
    assert!(
        error.to_string().contains("nope")
            || error.as_db_error().is_some_and(|error| error.message().contains("song_name"))
    );
    client.query_one("select 1", &[]).await.expect("the connection lives");
}

#[tokio::test]
async fn whatever_would_change_or_reach_something_is_refused() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    for (sql, expected) in [
        ("create table t (a int)", "25006"),
        ("insert into top_songs values ('a')", "25006"),
        ("update top_songs set total_plays = 0", "25006"),
        ("delete from top_songs", "25006"),
        ("drop table gold.top_songs", "25006"),
        ("explain analyze insert into top_songs select * from top_songs", "25006"),
        ("copy top_songs to '/tmp/songs.csv'", "42501"),
        ("copy top_songs from '/etc/passwd'", "42501"),
        ("create external table t stored as csv location '/etc/passwd'", "42501"),
        ("select * from '/etc/passwd'", "42P01"),
        ("select * from read_csv('/etc/passwd')", "42883"),
        ("select * from parquet_metadata('/etc/passwd')", "42883"),
    ] {
        assert_eq!(refusal(&client, sql).await, expected, "{sql}");
    }
    assert_eq!(value(&client, "select count(*) from top_songs").await, "3");
}

#[tokio::test]
async fn a_transaction_is_one_moment_and_the_next_statement_is_never_stale() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    let sql = "select max(total_plays) from top_songs";
    let prepared = client.prepare(sql).await.expect("it plans");

    client.batch_execute("begin").await.expect("a transaction");
    assert_eq!(value(&client, sql).await, "100");
    let newer = server.lake.publish_songs(200).await;
    assert_eq!(value(&client, sql).await, "100");
    assert_eq!(client.query_one(&prepared, &[]).await.expect("it runs").get::<_, i64>(0), 100);
    client.batch_execute("commit").await.expect("the end");
    assert_eq!(value(&client, sql).await, "200");
    assert_eq!(client.query_one(&prepared, &[]).await.expect("it runs").get::<_, i64>(0), 200);

    server.lake.publish_songs(300).await;
    assert_eq!(value(&client, sql).await, "300");
    client.batch_execute(&format!("set lakebeat.publication = {}", newer.id)).await.expect("it exists");
    assert_eq!(value(&client, sql).await, "200");
    assert_eq!(value(&client, "show lakebeat.publication").await, newer.id.to_string());
    client.batch_execute("reset lakebeat.publication").await.expect("known");
    assert_eq!(value(&client, sql).await, "300");
    assert_eq!(refusal(&client, "set lakebeat.publication = 999999").await, "42704");
}

#[tokio::test]
async fn bronze_is_read_at_its_head() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    let sql = "select count(*) from bronze.events";
    assert_eq!(value(&client, sql).await, "2");
    server.lake.add_event("c").await;
    assert_eq!(value(&client, sql).await, "3");
    assert_eq!(value(&client, "select count(*) from events").await, "3");
}

#[tokio::test]
async fn a_failed_transaction_takes_nothing_but_its_end() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    client.batch_execute("begin; set local time zone 'Europe/Berlin'; savepoint a").await.expect("a transaction");
    assert_eq!(refusal(&client, "select nope").await, "42703");
    assert_eq!(refusal(&client, "select 1").await, "25P02");
    let error = client.query("select 1", &[]).await.expect_err("failed");
    assert_eq!(state(&error), "25P02");
    client.batch_execute("rollback to savepoint a").await.expect("there is one");
    assert_eq!(value(&client, "show time zone").await, "Europe/Berlin");
    assert_eq!(refusal(&client, "select 1 / 0").await, "22012");
    client.batch_execute("commit").await.expect("an end");
    assert_eq!(value(&client, "show time zone").await, "UTC");
    assert_eq!(value(&client, "select 1").await, "1");
}

#[tokio::test]
async fn settings_take_effect_and_can_be_reset() {
    let mut server = Server::start().await;
    let client = server.connect_with("application_name=test options='-c TimeZone=Asia/Kolkata'").await.expect("known");
    let instant = "select an_instant from every_type where a_bool";
    assert_eq!(value(&client, instant).await, "2026-01-01 15:30:00.123456+05:30");
    assert_eq!(value(&client, "show application_name").await, "test");
    client.batch_execute("set time zone 'UTC'; set search_path to bronze").await.expect("known");
    assert_eq!(
        value(&client, "select an_instant from gold.every_type where a_bool").await,
        "2026-01-01 10:00:00.123456+00"
    );
    assert_eq!(refusal(&client, "select * from top_songs").await, "42P01");
    assert_eq!(value(&client, "select current_schema").await, "bronze");
    client.batch_execute("discard all").await.expect("outside of a transaction");
    assert_eq!(value(&client, "select count(*) from top_songs").await, "3");
    // What came with the startup message is what a reset goes back to, and what a transaction had for itself ends with it.
    assert_eq!(value(&client, "show timezone").await, "Asia/Kolkata");
    client.batch_execute("set timezone to 'UTC'; set timezone to default").await.expect("known");
    assert_eq!(value(&client, "show timezone").await, "Asia/Kolkata");
    let local = "begin; set local my.own = 'x'; set local timezone to 'UTC'";
    client.batch_execute(&format!("{local}; commit")).await.expect("known");
    assert_eq!(value(&client, "show timezone").await, "Asia/Kolkata");
    assert_eq!(refusal(&client, "show my.own").await, "42704");
    for (sql, expected) in [
        ("show server_version", "16.6"),
        ("show transaction isolation level", "read committed"),
        ("show standard_conforming_strings", "on"),
        ("select current_setting('server_version_num')", "160006"),
        ("select current_database()", "lake"),
        ("select current_user", "ana"),
        ("select pg_catalog.pg_is_in_recovery()", "f"),
    ] {
        assert_eq!(value(&client, sql).await, expected, "{sql}");
    }
    assert!(value(&client, "select pg_catalog.version()").await.starts_with("PostgreSQL 16.6 "));
}

#[tokio::test]
async fn a_portal_gives_its_rows_in_portions() {
    let mut server = Server::start().await;
    let mut client = server.connect().await;
    let transaction = client.transaction().await.expect("a transaction");
    let portal = transaction.bind("select value from generate_series(1, 100000)", &[]).await.expect("it plans");
    let mut total = 0;
    for _ in 0..10 {
        let portion = transaction.query_portal(&portal, 10_000).await.expect("rows");
        assert_eq!(portion.len(), 10_000);
        total += portion.iter().map(|row| row.get::<_, i64>(0)).sum::<i64>();
    }
    assert!(transaction.query_portal(&portal, 10_000).await.expect("the end").is_empty());
    assert_eq!(total, 100_000 * 100_001 / 2);
    transaction.rollback().await.expect("the end");
    server.until_quiet().await;
}

#[tokio::test]
async fn a_long_result_streams() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    let no_parameters: [i64; 0] = [];
    let rows =
        client.query_raw("select value, 'x' from generate_series(1, 300000)", no_parameters).await.expect("it runs");
    let count = rows.try_fold(0, |count, _| async move { Ok(count + 1) }).await.expect("all rows");
    assert_eq!(count, 300_000);
}

#[tokio::test]
async fn a_cancel_request_stops_a_statement_and_not_its_connection() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    let cancel = client.cancel_token();
    let (result, ()) = tokio::join!(client.simple_query(SLOW), async {
        server.until_busy().await;
        cancel.cancel_query(NoTls).await.expect("the door takes it");
    });
    assert_eq!(state(&result.expect_err("it was cancelled")), "57014");
    server.until_quiet().await;
    assert_eq!(value(&client, "select 1").await, "1");

    client.batch_execute("set statement_timeout = '200ms'").await.expect("known");
    let error = client.query(SLOW, &[]).await.expect_err("out of time");
    assert_eq!(state(&error), "57014");
    assert_eq!(value(&client, "select 2").await, "2");
}

#[tokio::test]
async fn a_client_that_goes_takes_its_statement_with_it() {
    let mut server = Server::start().await;
    let config = format!("host=127.0.0.1 port={} user=ana dbname=lake", server.port);
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.expect("the door lets everybody in");
    let mut tasks = JoinSet::new();
    let socket = tasks.spawn(async move {
        let _ = connection.await;
    });
    tasks.spawn(async move {
        let _ = client.simple_query(SLOW).await;
    });
    server.until_busy().await;
    // The socket closes without a goodbye.
    socket.abort();
    server.until_quiet().await;
    let again = server.connect().await;
    assert_eq!(value(&again, "select 1").await, "1");
}

#[tokio::test]
async fn only_the_database_lake_exists() {
    let mut server = Server::start().await;
    let config = format!("host=127.0.0.1 port={} user=ana dbname=other", server.port);
    let error = tokio_postgres::connect(&config, NoTls).await.err().expect("no such database");
    assert_eq!(state(&error), "3D000");
    let error = server.connect_with("options='-c nonsense=1'").await.expect_err("no such setting");
    assert_eq!(state(&error), "42704");
}

#[tokio::test]
async fn psqls_lists_work() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    // What psql 15 sends for \dt.
    let tables = rows(
        &client,
        "SELECT n.nspname as \"Schema\",
           c.relname as \"Name\",
           CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' END as \"Type\",
           pg_catalog.pg_get_userbyid(c.relowner) as \"Owner\"
         FROM pg_catalog.pg_class c
              LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam
         WHERE c.relkind IN ('r','p','')
               AND n.nspname <> 'pg_catalog'
               AND n.nspname !~ '^pg_toast'
               AND n.nspname <> 'information_schema'
           AND pg_catalog.pg_table_is_visible(c.oid)
         ORDER BY 1,2;",
    )
    .await;
    let names: Vec<&str> = tables.iter().filter_map(|row| row[1].as_deref()).collect();
    assert!(names.contains(&"top_songs") && names.contains(&"events"), "{names:?}");
    let columns = rows(
        &client,
        "select a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) from pg_attribute a
         join pg_class c on c.oid = a.attrelid where c.relname = 'top_songs' and a.attnum > 0 order by a.attnum",
    )
    .await;
    assert_eq!(columns[3], [Some("total_plays".to_owned()), Some("bigint".to_owned())]);
    // What psql 15 sends for \\d top_songs: columns, then what a lake has none of.
    let columns = rows(
        &client,
        "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),
           (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid, true) FROM pg_catalog.pg_attrdef d
            WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef),
           a.attnotnull,
           (SELECT c.collname FROM pg_catalog.pg_collation c, pg_catalog.pg_type t
            WHERE c.oid = a.attcollation AND t.oid = a.atttypid AND a.attcollation <> t.typcollation) AS attcollation,
           a.attidentity, a.attgenerated
         FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = (select oid from pg_class where relname = 'top_songs' limit 1)
           AND a.attnum > 0 AND NOT a.attisdropped
         ORDER BY a.attnum",
    )
    .await;
    assert_eq!(columns.len(), 5);
    let policies = rows(
        &client,
        "SELECT pol.polname, CASE WHEN pol.polroles = '{0}' THEN NULL ELSE array(select rolname from pg_catalog.pg_roles
           where oid = any (pol.polroles) order by 1) END,
           pg_catalog.pg_get_expr(pol.polqual, pol.polrelid), pg_catalog.pg_get_expr(pol.polwithcheck, pol.polrelid)
         FROM pg_catalog.pg_policy pol WHERE pol.polrelid = '16394' ORDER BY 1",
    )
    .await;
    assert!(policies.is_empty());
    assert!(rows(&client, "show tables").await.len() >= 3);
}

/// The system tables, those of the doors included.
const SYSTEM: [&str; 7] =
    ["ingest_progress", "model_runs", "publications", "queries", "requests", "tables", "test_results"];

#[tokio::test]
async fn every_system_table_is_listed_and_selected_before_its_first_row() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    for sql in [
        "select table_name from information_schema.tables where table_schema = 'system' order by 1",
        "select tablename from pg_catalog.pg_tables where schemaname = 'system' order by 1",
        "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = 'system' and c.relkind = 'r' order by 1",
    ] {
        let names: Vec<String> = rows(&client, sql).await.into_iter().filter_map(|mut row| row.remove(0)).collect();
        assert_eq!(names, SYSTEM, "{sql}");
    }
    for name in SYSTEM {
        // Both protocols, and the columns that the catalogue promises.
        let columns = format!("select count(*) from information_schema.columns where table_name = '{name}'");
        let promised = value(&client, &columns).await;
        let prepared = client.prepare(&format!("select * from system.{name}")).await.expect(name);
        assert_eq!(prepared.columns().len().to_string(), promised, "{name}");
        client.query(&prepared, &[]).await.expect(name);
        rows(&client, &format!("select * from system.{name}")).await;
    }
}

#[tokio::test]
async fn statements_are_shown_while_they_run_and_after() {
    let mut server = Server::start().await;
    let (client, watcher) = (server.connect().await, server.connect().await);
    let shown = async |sql: &str| {
        let sql = format!(
            "select state, rows, bytes > 0, error, door, user_name, seconds >= 0 from system.queries where sql = '{sql}'"
        );
        let row = rows(&watcher, &sql).await.pop().unwrap_or_default();
        row.into_iter().map(|value| value.unwrap_or_else(|| "NULL".to_owned())).collect::<Vec<_>>().join(" ")
    };
    rows(&client, "select song_name from top_songs").await;
    assert_eq!(shown("select song_name from top_songs").await, "done 3 t NULL postgres ana t");
    assert_eq!(refusal(&client, "select 1 / (total_plays - total_plays) from top_songs").await, "22012");
    let failed = shown("select 1 / (total_plays - total_plays) from top_songs").await;
    assert!(failed.starts_with("failed 0 f ") && failed.to_lowercase().contains("divi"), "{failed}");
    let cancel = client.cancel_token();
    let (result, ()) = tokio::join!(client.simple_query(SLOW), async {
        server.until_busy().await;
        assert_eq!(shown(SLOW).await, "running 0 f NULL postgres ana t");
        cancel.cancel_query(NoTls).await.expect("asked");
    });
    assert_eq!(state(&result.expect_err("cancelled")), "57014");
    server.until_quiet().await;
    assert!(shown(SLOW).await.starts_with("cancelled 0 f the statement was cancelled"));
}

#[tokio::test]
async fn of_what_has_run_the_newest_thousand_are_remembered_and_the_beginning_of_long_texts() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    let long = format!("select '{}' as x", "ü".repeat(5_000));
    rows(&client, &long).await;
    let texts = "select max(character_length(sql)) from system.queries";
    assert_eq!(value(&client, texts).await, "1001", "the beginning, and a sign that there is more");
    for _ in 0..25 {
        let many = "select 1;".repeat(50);
        client.batch_execute(&many).await.expect("answered");
    }
    assert_eq!(value(&client, "select count(*) from system.queries").await, "1000");
    assert_eq!(value(&client, "select count(*) from system.queries where length(sql) > 1000").await, "0");
}

#[tokio::test]
async fn stopping_tells_the_clients() {
    let mut server = Server::start().await;
    let client = server.connect().await;
    let (result, ()) = tokio::join!(client.simple_query(SLOW), async {
        server.until_busy().await;
        server.token.cancel();
    });
    assert_eq!(state(&result.expect_err("the server stops")), "57P01");
    let ended =
        tokio::time::timeout(Duration::from_secs(5), async { while server.tasks.join_next().await.is_some() {} });
    ended.await.expect("the door ends");
    assert!(server.engine.running().is_empty());
}
