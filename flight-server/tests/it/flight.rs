//! The Flight SQL door with a real client (arrow-flight's), over a real connection.

use std::sync::Arc;
use std::time::Duration;

use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    Any, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
    CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo, ProstMessageExt, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, Empty, FlightInfo, Ticket};
use datafusion::arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, NullArray, RecordBatch, StringArray};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::{DataType, Int64Type, Schema, SchemaRef, UInt32Type};
use datafusion::arrow::util::pretty::pretty_format_batches;
use flight_server::flight;
use flight_server::query::{Limits, QueryEngine};
use futures::TryStreamExt;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::lake::TestLake;

type Client = FlightSqlServiceClient<Channel>;

/// A door on a lake.
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
        let serving = flight::serve(listener, engine.clone(), flight::Options::default(), token.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serving.await.expect("the door serves") });
        Self { lake, engine, port, token, tasks }
    }

    /// A client that has not logged in.
    async fn client(&self) -> Client {
        let endpoint = Endpoint::try_from(format!("http://127.0.0.1:{}", self.port)).expect("a URL");
        FlightSqlServiceClient::new(endpoint.connect().await.expect("the door listens"))
    }

    async fn client_of(&self, user: &str) -> Client {
        let mut client = self.client().await;
        client.handshake(user, "").await.expect("loopback asks for no password");
        client
    }

    /// Waits until no statement runs.
    async fn until_quiet(&self) {
        let quiet = async {
            while !self.engine.running().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), quiet).await.expect("nothing runs on for a client that went");
    }

    async fn stop(mut self) {
        self.token.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("the door ends in peace");
        }
    }
}

/// All rows, after checking that the announced schema is the one that comes.
async fn fetch(client: &mut Client, info: FlightInfo) -> Result<RecordBatch, FlightError> {
    let announced: SchemaRef = Arc::new(info.clone().try_decode_schema().expect("an IPC schema"));
    let [endpoint] = &info.endpoint[..] else { panic!("one endpoint") };
    let mut stream = client.do_get(endpoint.ticket.clone().expect("a ticket")).await?;
    let mut batches = Vec::new();
    while let Some(batch) = stream.try_next().await? {
        assert_eq!(batch.schema(), announced);
        batches.push(batch);
    }
    assert_eq!(stream.schema(), Some(&announced), "a schema comes even before no rows");
    Ok(concat_batches(&announced, &batches)?)
}

async fn query(client: &mut Client, sql: &str) -> Result<RecordBatch, FlightError> {
    let info = client.execute(sql.to_owned(), None).await?;
    fetch(client, info).await
}

async fn text(client: &mut Client, sql: &str) -> String {
    pretty(&query(client, sql).await.expect(sql))
}

fn pretty(batch: &RecordBatch) -> String {
    let table = pretty_format_batches(std::slice::from_ref(batch)).expect("printable").to_string();
    let cells = |line: &str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join(" ");
    table.lines().filter(|line| line.starts_with('|')).map(cells).collect::<Vec<_>>().join("\n")
}

fn number(batch: &RecordBatch) -> i64 {
    batch.column(0).as_primitive::<Int64Type>().value(0)
}

/// The code and the message that the door answered with.
fn status_of(error: &FlightError) -> (Code, String) {
    match error {
        FlightError::Tonic(status) => (status.code(), status.message().to_owned()),
        other => panic!("no status in {other:?}"),
    }
}

fn parameters(columns: Vec<ArrayRef>) -> RecordBatch {
    let names = ["z", "a", "m"];
    RecordBatch::try_from_iter_with_nullable(names.into_iter().zip(columns).map(|(name, column)| (name, column, true)))
        .expect("columns of one length")
}

#[tokio::test]
async fn a_login_gives_a_token_and_none_is_needed() {
    let server = Server::start().await;
    let mut client = server.client().await;
    assert_eq!(text(&mut client, "select 1 as one").await, "one\n1");
    let payload = client.handshake("ana", "secret").await.expect("any password");
    assert_eq!(client.token().map(String::as_bytes), Some(&payload[..]), "header and payload carry the same token");
    assert_eq!(text(&mut client, "select song_name from top_songs order by 1 limit 1").await, "song_name\nGod's Plan");
    client.set_token("given-by-hand".to_owned());
    assert_eq!(text(&mut client, "select 1 as one").await, "one\n1");
    client.clear_token();
    client.set_header("authorization", "Digest nonsense");
    let refused = query(&mut client, "select 1").await.expect_err("not a scheme");
    assert_eq!(status_of(&refused).0, Code::Unauthenticated);
    server.stop().await;
}

#[tokio::test]
async fn every_type_has_one_schema_wherever_it_is_announced() {
    let server = Server::start().await;
    let mut client = server.client_of("ana").await;
    let sql = "select * from every_type order by an_int nulls last";
    let info = client.execute(sql.to_owned(), None).await.expect("planned");
    let announced = info.clone().try_decode_schema().expect("a schema");
    let rows = fetch(&mut client, info).await.expect("rows of that schema");
    assert_eq!(rows.num_rows(), 2);
    let prepared = client.prepare(sql.to_owned(), None).await.expect("prepared");
    assert_eq!(prepared.dataset_schema().expect("a schema"), &announced);
    let request = CommandGetTables {
        table_name_filter_pattern: Some("every_type".to_owned()),
        include_schema: true,
        ..CommandGetTables::default()
    };
    let info = client.get_tables(request).await.expect("announced");
    let tables = fetch(&mut client, info).await.expect("one table");
    let bytes = tables.column(4).as_binary::<i32>().value(0);
    let listed = Schema::try_from(arrow_flight::IpcMessage(bytes.to_vec().into())).expect("a schema");
    assert_eq!(listed, announced);
    server.stop().await;
}

#[tokio::test]
async fn results_without_rows_and_wide_expressions_keep_their_schema() {
    let server = Server::start().await;
    let mut client = server.client_of("ana").await;
    for sql in [
        "select * from top_songs where false",
        "select count(*), sum(total_plays), max(song_name), now() from top_songs",
        "select make_array(1, 2) as list, named_struct('a', 1, 'b', 'x') as pair, arrow_cast('x', 'LargeUtf8') as large",
        "select arrow_cast(make_array('a'), 'LargeList(Utf8View)') as list, arrow_cast('v', 'Dictionary(Int32, Utf8)') as word",
        "select null as nothing, interval '1 day' as day, x'00ff' as bytes",
        "show tables",
        "explain select 1",
    ] {
        query(&mut client, sql).await.expect(sql);
    }
    server.stop().await;
}

#[tokio::test]
async fn parameters_are_ordered_nullable_and_many() {
    let server = Server::start().await;
    let mut client = server.client_of("ana").await;
    for sql in [
        "select song_name from top_songs where total_plays > ? and artist_name <> ? order by 1",
        "select song_name from top_songs where artist_name <> $2 and total_plays > $1 order by 1",
    ] {
        let mut prepared = client.prepare(sql.to_owned(), None).await.expect(sql);
        let fields: Vec<_> = prepared
            .parameter_schema()
            .expect("a schema")
            .fields()
            .iter()
            .map(|field| (field.name().clone(), field.data_type().clone()))
            .collect();
        assert_eq!(fields, [("$1".to_owned(), DataType::Int64), ("$2".to_owned(), DataType::Utf8)]);
        // Int32 values for a bigint are cast; each row is one run; a null compares to nothing.
        let plays: ArrayRef = Arc::new(Int32Array::from(vec![Some(10), None, Some(0)]));
        let artists: ArrayRef = Arc::new(StringArray::from(vec!["Dua Lipa", "Drake", "Drake"]));
        prepared.set_parameters(parameters(vec![plays, artists])).expect("kept");
        let info = prepared.execute().await.expect("planned");
        assert_eq!(pretty(&fetch(&mut client, info).await.expect("rows")), "song_name\nStronger\nLevitating\nStronger");
        prepared.close().await.expect("closed");
    }
    server.stop().await;
}

#[tokio::test]
async fn ten_parameters_are_taken_by_number_not_by_name() {
    let server = Server::start().await;
    let mut client = server.client_of("ana").await;
    let list = (1..=11).map(|number| format!("${number}::bigint")).collect::<Vec<_>>().join(" || ',' || ");
    let mut prepared = client.prepare(format!("select {list} as list"), None).await.expect("prepared");
    let names: Vec<String> = (1..=11).map(|number| format!("p{number}")).collect();
    let column = |number: i64| Arc::new(Int64Array::from(vec![number])) as ArrayRef;
    let columns = names.iter().zip(1..=11_i64).map(|(name, number)| (name.as_str(), column(number)));
    prepared.set_parameters(RecordBatch::try_from_iter(columns).expect("one row")).expect("kept");
    let info = prepared.execute().await.expect("planned");
    assert_eq!(pretty(&fetch(&mut client, info).await.expect("a row")), "list\n1,2,3,4,5,6,7,8,9,10,11");
    server.stop().await;
}

#[tokio::test]
async fn a_parameter_that_the_statement_says_nothing_about_has_the_type_of_its_value() {
    let server = Server::start().await;
    let mut client = server.client_of("ana").await;
    let mut prepared = client.prepare("select ? as value".to_owned(), None).await.expect("prepared");
    for (value, expected) in [
        (Arc::new(Int64Array::from(vec![42])) as ArrayRef, DataType::Int64),
        (Arc::new(StringArray::from(vec!["x"])) as ArrayRef, DataType::Utf8),
        (Arc::new(NullArray::new(1)) as ArrayRef, DataType::Utf8),
    ] {
        prepared.set_parameters(parameters(vec![value])).expect("kept");
        let info = prepared.execute().await.expect("planned");
        let rows = fetch(&mut client, info).await.expect("a row");
        assert_eq!(rows.schema().field(0).data_type(), &expected);
    }
    server.stop().await;
}

#[tokio::test]
async fn wrong_bindings_are_refused_and_the_statement_lives() {
    let server = Server::start().await;
    let mut client = server.client_of("ana").await;
    let mut prepared = client.prepare("select ?::bigint + 1 as next".to_owned(), None).await.expect("prepared");
    let unbound = prepared.execute().await.expect_err("nothing is bound");
    assert_eq!(status_of(&unbound).0, Code::InvalidArgument);
    let one: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    prepared.set_parameters(parameters(vec![Arc::clone(&one), Arc::clone(&one)])).expect("kept");
    let (code, message) = status_of(&prepared.execute().await.expect_err("one too many"));
    assert_eq!((code, message.as_str()), (Code::InvalidArgument, "the statement has 1 parameters, and 2 were bound"));
    prepared.set_parameters(parameters(vec![one])).expect("kept");
    let info = prepared.execute().await.expect("planned");
    assert_eq!(number(&fetch(&mut client, info).await.expect("a row")), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_ticket_reads_the_publication_it_was_planned_on_and_the_next_statement_the_newest() {
    let server = Server::start().await;
    let mut client = server.client_of("ana").await;
    let sql = "select max(total_plays) as most from top_songs";
    let before = client.execute(sql.to_owned(), None).await.expect("planned");
    let mut prepared = client.prepare(sql.to_owned(), None).await.expect("prepared");
    let waiting = prepared.execute().await.expect("planned");
    server.lake.publish_songs(777).await;
    assert_eq!(number(&fetch(&mut client, before.clone()).await.expect("pinned")), 100);
    assert_eq!(number(&fetch(&mut client, before).await.expect("a read that was repeated")), 100);
    assert_eq!(number(&fetch(&mut client, waiting).await.expect("pinned")), 100);
    assert_eq!(number(&query(&mut client, sql).await.expect("newest")), 777);
    let again = prepared.execute().await.expect("planned anew");
    assert_eq!(number(&fetch(&mut client, again).await.expect("newest")), 777);
    server.stop().await;
}

#[tokio::test]
async fn handles_are_their_owners_alone() {
    let server = Server::start().await;
    let (mut ana, mut bob) = (server.client_of("ana").await, server.client_of("bob").await);
    let info = ana.execute("select 1 as one".to_owned(), None).await.expect("planned");
    let stolen = fetch(&mut bob, info.clone()).await.expect_err("not his");
    assert_eq!(status_of(&stolen).0, Code::PermissionDenied);
    fetch(&mut ana, info).await.expect("hers");
    for (handle, code) in [(vec![7_u8; 16], Code::NotFound), (b"guess".to_vec(), Code::InvalidArgument)] {
        let ticket = TicketStatementQuery { statement_handle: handle.into() }.as_any().encode_to_vec();
        let refused = ana.do_get(Ticket { ticket: ticket.into() }).await.map(|_| ()).expect_err("no such ticket");
        assert_eq!(status_of(&refused).0, code);
    }
    let mut prepared = ana.prepare("select 1 as one".to_owned(), None).await.expect("prepared");
    prepared.clone().close().await.expect("closed");
    assert_eq!(status_of(&prepared.execute().await.expect_err("closed")).0, Code::NotFound);
    server.stop().await;
}

#[tokio::test]
async fn trees_of_catalogs_schemas_and_tables_need_no_filter() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let info = client.get_catalogs().await.expect("announced");
    assert_eq!(pretty(&fetch(&mut client, info).await.expect("catalogs")), "catalog_name\nlake");
    let info = client.get_db_schemas(CommandGetDbSchemas::default()).await.expect("announced");
    let all = pretty(&fetch(&mut client, info).await.expect("schemas"));
    assert_eq!(all, "catalog_name db_schema_name\nlake bronze\nlake gold\nlake silver\nlake system");
    let filtered =
        CommandGetDbSchemas { catalog: Some("lake".to_owned()), db_schema_filter_pattern: Some("g%".to_owned()) };
    let info = client.get_db_schemas(filtered).await.expect("announced");
    assert_eq!(pretty(&fetch(&mut client, info).await.expect("schemas")), "catalog_name db_schema_name\nlake gold");
    let text = |value: &str| Some(value.to_owned());
    let head = "catalog_name db_schema_name table_name table_type";
    for (request, expected) in [
        (
            CommandGetTables { db_schema_filter_pattern: text("gold"), ..Default::default() },
            "\nlake gold every_type TABLE\nlake gold top_songs TABLE",
        ),
        (
            CommandGetTables { table_name_filter_pattern: text("top_son_s"), ..Default::default() },
            "\nlake gold top_songs TABLE",
        ),
        (
            CommandGetTables {
                table_name_filter_pattern: text("top%"),
                table_types: vec!["BASE TABLE".to_owned()],
                ..Default::default()
            },
            "\nlake gold top_songs TABLE",
        ),
        (
            CommandGetTables {
                table_name_filter_pattern: text("top%"),
                table_types: vec!["VIEW".to_owned()],
                ..Default::default()
            },
            "",
        ),
        (
            CommandGetTables { db_schema_filter_pattern: text("system"), ..Default::default() },
            "\nlake system ingest_progress TABLE\nlake system model_runs TABLE\nlake system publications TABLE\
             \nlake system queries TABLE\nlake system requests TABLE\nlake system tables TABLE\
             \nlake system test_results TABLE",
        ),
        (CommandGetTables { catalog: text("other"), ..Default::default() }, ""),
        (CommandGetTables { catalog: text(""), ..Default::default() }, ""),
    ] {
        let info = client.get_tables(request.clone()).await.expect("announced");
        let tables = pretty(&fetch(&mut client, info).await.expect("tables"));
        assert_eq!(tables, format!("{head}{expected}"), "{request:?}");
    }
    let info = client.get_table_types().await.expect("announced");
    assert_eq!(pretty(&fetch(&mut client, info).await.expect("types")), "table_type\nTABLE\nVIEW");
    server.stop().await;
}

#[tokio::test]
async fn what_drivers_ask_at_connect_is_answered() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let info = client
        .get_sql_info(vec![SqlInfo::FlightSqlServerReadOnly, SqlInfo::FlightSqlServerTransaction])
        .await
        .expect("announced");
    let some = fetch(&mut client, info).await.expect("two");
    assert_eq!(some.column(0).as_primitive::<UInt32Type>().values().to_vec(), vec![3, 8]);
    let info = client.get_sql_info(vec![]).await.expect("announced");
    assert!(fetch(&mut client, info).await.expect("all").num_rows() > 80);
    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo::default()).await.expect("announced");
    assert_eq!(fetch(&mut client, info).await.expect("types").num_columns(), 19);
    let table = || "top_songs".to_owned();
    for (info, columns) in [
        (client.get_primary_keys(CommandGetPrimaryKeys { table: table(), ..Default::default() }).await, 6),
        (client.get_exported_keys(CommandGetExportedKeys { table: table(), ..Default::default() }).await, 13),
        (client.get_imported_keys(CommandGetImportedKeys { table: table(), ..Default::default() }).await, 13),
        (client.get_cross_reference(CommandGetCrossReference::default()).await, 13),
    ] {
        let keys = fetch(&mut client, info.expect("announced")).await.expect("no keys");
        assert_eq!((keys.num_rows(), keys.num_columns()), (0, columns));
    }
    server.stop().await;
}

#[tokio::test]
async fn writes_and_mistakes_are_refused_with_the_right_code() {
    let server = Server::start().await;
    let mut client = server.client_of("ana").await;
    for (sql, code) in [
        ("selec 1", Code::InvalidArgument),
        ("select nothing from top_songs", Code::InvalidArgument),
        ("select * from nothing", Code::NotFound),
        ("delete from top_songs", Code::PermissionDenied),
        ("create table t as select 1", Code::PermissionDenied),
        ("copy top_songs to '/tmp/x.csv'", Code::PermissionDenied),
        ("select $1", Code::InvalidArgument),
        ("select 1 / 0", Code::InvalidArgument),
    ] {
        let refused = query(&mut client, sql).await.expect_err(sql);
        let (found, message) = status_of(&refused);
        assert_eq!(found, code, "{sql}: {message}");
        assert!(!message.is_empty(), "{sql}");
    }
    let refused =
        client.execute_update("insert into top_songs values (1)".to_owned(), None).await.expect_err("read-only");
    let (code, message) = status_of(&refused);
    assert_eq!(code, Code::Unimplemented);
    assert!(message.contains("only reads"), "{message}");
    assert_eq!(status_of(&client.begin_transaction().await.expect_err("no transactions")).0, Code::Unimplemented);
    assert_eq!(text(&mut client, "select 1 as one").await, "one\n1", "an error ends a statement and nothing else");
    server.stop().await;
}

#[tokio::test]
async fn rows_of_any_size_come_in_messages_that_clients_accept() {
    let server = Server::start().await;
    // Its limit is gRPC's default of 4 MB. All the weight is in the last rows.
    let mut client = server.client_of("ana").await;
    let sql = "select value, repeat('x', case when value > 990 then 900000 else 1 end) as long from generate_series(1, 1000) order by value";
    let rows = query(&mut client, sql).await.expect("messages below the limit");
    assert_eq!(rows.num_rows(), 1000);
    let last = rows.column(1).as_string::<i32>().value(999);
    assert_eq!(last.len(), 900_000);
    server.stop().await;
}

const ENDLESS: &str = "select a.value from generate_series(1, 1000000) a cross join generate_series(1, 1000000) b";

#[tokio::test]
async fn a_statement_is_cancelled_by_its_flight_info() {
    let server = Server::start().await;
    let mut client = server.client_of("ana").await;
    let info = client.execute(ENDLESS.to_owned(), None).await.expect("planned");
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().expect("a ticket")).await.expect("started");
    stream.try_next().await.expect("rows").expect("at least one batch");
    let request = CancelFlightInfoRequest { info: Some(info) };
    let action = Action { r#type: "CancelFlightInfo".to_owned(), body: request.encode_to_vec().into() };
    let result = client.do_action(action).await.expect("taken").message().await.expect("answered").expect("one result");
    let result = CancelFlightInfoResult::decode(result.body).expect("a result");
    assert_eq!(result.status, CancelStatus::Cancelled as i32);
    let ended = loop {
        match stream.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it cannot have come to its end"),
            Err(error) => break error,
        }
    };
    assert!(ended.to_string().contains("cancelled"), "{ended}");
    server.until_quiet().await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_leaves_nothing_running() {
    let server = Server::start().await;
    let mut client = server.client_of("ana").await;
    let info = client.execute(ENDLESS.to_owned(), None).await.expect("planned");
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().expect("a ticket")).await.expect("started");
    stream.try_next().await.expect("rows").expect("at least one batch");
    drop(stream);
    drop(client);
    server.until_quiet().await;
    server.stop().await;
}

#[tokio::test]
async fn stopping_the_door_does_not_wait_for_endless_statements() {
    let server = Server::start().await;
    let mut client = server.client_of("ana").await;
    let info = client.execute(ENDLESS.to_owned(), None).await.expect("planned");
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().expect("a ticket")).await.expect("started");
    stream.try_next().await.expect("rows").expect("at least one batch");
    tokio::time::timeout(Duration::from_secs(4), server.stop()).await.expect("the drain is bounded");
}

/// A session message with one map entry, `name` to a text or to nothing, as `Flight.proto` has it.
fn option(name: &str, text: Option<&str>) -> bytes::Bytes {
    fn field(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).expect("short");
        [&[(tag << 3) | 2, length], content].concat()
    }
    let value = text.map_or_else(Vec::new, |text| field(1, text.as_bytes()));
    field(1, &[field(1, name.as_bytes()), field(2, &value)].concat()).into()
}

async fn act(client: &mut Client, name: &str, body: bytes::Bytes) -> Result<Vec<u8>, FlightError> {
    let mut results = client.do_action(Action { r#type: name.to_owned(), body }).await?;
    let result = results.message().await?;
    Ok(result.map(|result| result.body.to_vec()).unwrap_or_default())
}

#[tokio::test]
async fn a_session_keeps_its_schema_until_it_is_closed() {
    let server = Server::start().await;
    let mut client = server.client_of("ana").await;
    let sql = "select count(*) as events from events";
    assert_eq!(number(&query(&mut client, sql).await.expect("bronze is on the usual path")), 2);
    let set = act(&mut client, "SetSessionOptions", option("schema", Some("bronze"))).await.expect("taken");
    assert!(set.is_empty(), "no errors");
    let options = act(&mut client, "GetSessionOptions", bytes::Bytes::new()).await.expect("answered");
    let shown = String::from_utf8_lossy(&options).into_owned();
    assert!(shown.contains("bronze, gold, silver"), "{shown}");
    for (name, value) in [
        ("schema", Some("nowhere")),
        ("TimeZone", Some("Mars/Olympus")),
        ("catalog", Some("other")),
        ("no such option", None),
    ] {
        let errors = act(&mut client, "SetSessionOptions", option(name, value)).await.expect("answered");
        assert!(String::from_utf8_lossy(&errors).contains(name), "{name} is named among the errors");
    }
    act(&mut client, "SetSessionOptions", option("TimeZone", Some("Europe/Berlin"))).await.expect("taken");
    assert_eq!(act(&mut client, "CloseSession", bytes::Bytes::new()).await.expect("closed"), [8, 1]);
    let options = act(&mut client, "GetSessionOptions", bytes::Bytes::new()).await.expect("answered");
    assert!(!String::from_utf8_lossy(&options).contains("Europe/Berlin"));
    let unknown = act(&mut client, "NoSuchAction", bytes::Bytes::new()).await.expect_err("unknown");
    assert_eq!(status_of(&unknown).0, Code::Unimplemented);
    server.stop().await;
}

#[tokio::test]
async fn sixty_four_clients_at_once_are_served() {
    let server = Server::start().await;
    let mut clients = JoinSet::new();
    for number in 0..64_i64 {
        let mut client = server.client_of(&format!("user{number}")).await;
        clients.spawn(async move {
            let rows =
                query(&mut client, &format!("select {number} + count(*) as sum from top_songs")).await.expect("served");
            assert_eq!(self::number(&rows), number + 3);
        });
    }
    while let Some(done) = clients.join_next().await {
        done.expect("no client fails");
    }
    server.stop().await;
}

#[tokio::test]
async fn junk_on_the_wire_is_an_invalid_argument() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let refused =
        client.do_get(Ticket { ticket: b"\xff\xff\xff".to_vec().into() }).await.map(|_| ()).expect_err("no message");
    assert_eq!(status_of(&refused).0, Code::InvalidArgument);
    let unknown = Any { type_url: "type.example/nothing".to_owned(), value: bytes::Bytes::new() }.encode_to_vec();
    let refused = client.do_get(Ticket { ticket: unknown.into() }).await.map(|_| ()).expect_err("no command");
    assert_eq!(status_of(&refused).0, Code::Unimplemented);
    server.stop().await;
}

#[tokio::test]
async fn a_schema_can_be_asked_for_alone_and_only_real_actions_are_listed() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let sql = "select song_name, total_plays from top_songs";
    let info = client.execute(sql.to_owned(), None).await.expect("planned");
    let descriptor = info.flight_descriptor.clone().expect("the command comes back");
    let schema = client.inner_mut().get_schema(descriptor).await.expect("answered").into_inner();
    assert_eq!(schema.schema, info.schema);
    let actions = client.inner_mut().list_actions(Empty {}).await.expect("answered").into_inner();
    let names: Vec<String> = actions.map_ok(|action| action.r#type).try_collect().await.expect("a list");
    assert!(
        names.contains(&"CancelFlightInfo".to_owned()) && !names.contains(&"BeginTransaction".to_owned()),
        "{names:?}"
    );
    server.stop().await;
}
