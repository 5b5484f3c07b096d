//! The console as a browser, a supervisor and a scraper see it: HTTP over a real listener.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{Int64Array, RecordBatch, StringArray};
use flight_server::console::{self, Addresses};
use flight_server::query::{Limits, QueryEngine};
use lakehouse::{
    BUILD_REQUEST, Commit, DEFAULT_GROUP, Lake, Operation, PinnedTable, StageOptions, StorageOptions, SystemClock,
    TableName, TableSpec,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A console on a lake in memory, without anything in it yet.
struct Console {
    lake: Lake,
    port: u16,
    token: CancellationToken,
    tasks: JoinSet<()>,
}

struct Answer {
    status: u16,
    headers: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.body))
    }
}

impl Console {
    async fn start() -> Self {
        let url = "memory:///".parse().expect("a URL");
        let lake = Lake::open(&url, &StorageOptions::default(), Arc::new(SystemClock)).await.expect("a lake in memory");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let elsewhere = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let addresses = Addresses { flight: elsewhere(31337), postgres: elsewhere(5433), console: address };
        let state = console::State::new(QueryEngine::new(lake.clone(), Limits::default()), addresses, None);
        let token = CancellationToken::new();
        let serving = console::serve(listener, state, token.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serving.await.expect("the console serves") });
        Self { lake, port: address.port(), token, tasks }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n\r\n", self.port)).await
    }

    async fn ask(&self, request: &str) -> Answer {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).await.expect("the console listens");
        socket.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("it answers");
        let (headers, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = headers.split_whitespace().nth(1).and_then(|code| code.parse().ok()).expect("a status");
        Answer { status, headers: headers.to_lowercase(), body: body.to_owned() }
    }

    async fn post(&self, path: &str, headers: &str, body: &str) -> Answer {
        let length = body.len();
        let host = format!("Host: 127.0.0.1:{}\r\nContent-Length: {length}\r\nConnection: close\r\n", self.port);
        self.ask(&format!("POST {path} HTTP/1.1\r\n{host}{headers}\r\n{body}")).await
    }

    /// Writes one table whole, without publishing it.
    async fn write(&self, schema: &str, name: &str, batch: RecordBatch, info: Value) {
        let table = self.lake.table(&TableName::new(schema, name));
        let head = table.ensure(&TableSpec::new(batch.schema())).await.expect("a table");
        let adds = table.stage_batches(&head, vec![batch], &StageOptions::default()).await.expect("the schema fits");
        let info = info.as_object().cloned().unwrap_or_default();
        let commit = Commit { adds, removes: head.files.to_vec(), info, ..Commit::new(Operation::Overwrite) };
        table.replace(head.version, commit).await.expect("nobody else writes");
    }

    async fn publish(&self, names: &[&str]) {
        let mut tables = BTreeMap::new();
        for name in names {
            let name = TableName::new("gold", *name);
            let head = self.lake.table(&name).head().await.expect("written before");
            tables.insert(name, PinnedTable { table_id: head.table_id.clone(), version: head.version });
        }
        self.lake.publish(DEFAULT_GROUP, tables).await.expect("nobody else publishes");
    }

    async fn write_gold(&self, plays: i64) {
        let text = |values: &[&str]| Arc::new(StringArray::from(values.to_vec())) as _;
        let number = |values: &[i64]| Arc::new(Int64Array::from(values.to_vec())) as _;
        let songs = RecordBatch::try_from_iter([
            ("song_name", text(&["Stronger", "Levitating", "Physical"])),
            ("artist_name", text(&["Kanye West", "Dua Lipa", "Dua Lipa"])),
            ("total_plays", number(&[plays, 7, 2])),
            ("total_skips", number(&[1, 0, 3])),
        ])
        .expect("columns of one length");
        // Three rows of two users: users are counted, not rows.
        let engagement =
            RecordBatch::try_from_iter([("user_id", text(&["u1", "u2", "u1"])), ("plays", number(&[1, 1, 1]))])
                .expect("columns of one length");
        self.write("gold", "top_songs", songs, Value::Null).await;
        self.write("gold", "user_engagement", engagement, Value::Null).await;
    }

    async fn stop(mut self) {
        self.token.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("the console ends in peace");
        }
    }
}

fn words(values: &[&str]) -> RecordBatch {
    RecordBatch::try_from_iter([("event_id", Arc::new(StringArray::from(values.to_vec())) as _)]).expect("one column")
}

fn ingested(rows: u64, letters: u64) -> Value {
    let range = |partition: i32, from: i64, to: i64, end_offset: i64| {
        json!({ "partition": partition, "from": from, "to": to, "rows": rows, "dead_letters": letters, "holes": 0,
                "end_offset": end_offset, "fingerprint": "" })
    };
    json!({ "ingest": { "topic": "events", "cluster_id": "", "ranges": [range(0, 0, 10, 12), range(1, 0, 5, 8)] } })
}

#[tokio::test]
async fn before_the_first_build_the_page_waits_and_says_so() {
    let console = Console::start().await;
    let ready = console.get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert_eq!(
        ready.json(),
        json!({ "ready": false, "reason": "there is no publication yet: waiting for the first build" })
    );
    assert_eq!(console.get("/healthz").await.status, 200);
    let dashboard = console.get("/api/v1/dashboard").await;
    assert_eq!(dashboard.status, 200);
    assert_eq!(dashboard.json(), json!({ "publication": null, "totals": null, "top_songs": [] }));
    let status = console.get("/api/v1/status").await.json();
    assert_eq!(status["publication"], Value::Null);
    assert_eq!(
        status["ingest"],
        json!({ "rows": 0, "dead_letters": 0, "lag": 0, "waiting_for": null, "partitions": [] })
    );
    let page = console.get("/").await;
    assert_eq!(page.status, 200);
    for id in ["total-plays", "total-skips", "total-users", "total-artists", "top-songs", "ingest-lag"] {
        assert!(page.body.contains(&format!("id=\"{id}\"")), "{id}");
    }
    console.stop().await;
}

#[tokio::test]
async fn totals_are_of_the_newest_publication_and_users_are_counted_once() {
    let console = Console::start().await;
    console.write_gold(90).await;
    console.publish(&["top_songs", "user_engagement"]).await;
    let dashboard = console.get("/api/v1/dashboard").await.json();
    assert_eq!(dashboard["totals"], json!({ "plays": 99, "skips": 4, "users": 2, "artists": 2 }));
    let songs: Vec<&str> = dashboard["top_songs"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|song| song["song_name"].as_str())
        .collect();
    assert_eq!(songs, ["Stronger", "Levitating", "Physical"]);
    // What is written and not published is not shown; what is published is shown at once.
    console.write_gold(1).await;
    assert_eq!(console.get("/api/v1/dashboard").await.json()["totals"]["plays"], 99);
    console.publish(&["top_songs", "user_engagement"]).await;
    let dashboard = console.get("/api/v1/dashboard").await.json();
    assert_eq!((&dashboard["totals"]["plays"], &dashboard["publication"]["id"]), (&json!(10), &json!(2)));
    assert_eq!(console.get("/readyz").await.json(), json!({ "ready": true, "publication": 2 }));
    console.stop().await;
}

#[tokio::test]
async fn a_lake_without_the_bundled_models_is_no_fault() {
    let console = Console::start().await;
    console.write("gold", "other", words(&["a"]), Value::Null).await;
    console.publish(&["other"]).await;
    let dashboard = console.get("/api/v1/dashboard").await;
    assert_eq!((dashboard.status, &dashboard.json()["totals"]), (200, &Value::Null));
    assert!(
        dashboard.json()["notice"].as_str().is_some_and(|notice| notice.contains("gold.top_songs")),
        "{}",
        dashboard.body
    );
    console.stop().await;
}

#[tokio::test]
async fn status_and_metrics_show_ingest_tables_and_queries() {
    let console = Console::start().await;
    console.write("bronze", "events", words(&["a", "b", "c"]), ingested(3, 1)).await;
    console.write("bronze", "dead_letters", words(&["x"]), ingested(0, 1)).await;
    console.write_gold(5).await;
    console.publish(&["top_songs", "user_engagement"]).await;
    let status = console.get("/api/v1/status").await.json();
    assert_eq!(
        (&status["ingest"]["rows"], &status["ingest"]["dead_letters"], &status["ingest"]["lag"]),
        (&json!(3), &json!(1), &json!(5))
    );
    assert_eq!(status["ingest"]["partitions"].as_array().map(Vec::len), Some(2));
    assert_eq!(status["publication"]["versions"], json!({ "gold.top_songs": 1, "gold.user_engagement": 1 }));
    let tables = status["tables"].as_array().expect("a list");
    let songs = tables.iter().find(|table| table["name"] == "gold.top_songs").expect("listed");
    assert_eq!((&songs["rows"], &songs["files"]), (&json!(3), &json!(1)));
    assert_eq!(status["addresses"]["postgres"], "postgresql://127.0.0.1:5433/lake");

    console.get("/api/v1/dashboard").await;
    let metrics = console.get("/metrics").await;
    assert!(metrics.headers.contains("content-type: text/plain; version=0.0.4"), "{}", metrics.headers);
    for line in [
        "# TYPE lakebeat_ingest_events_total counter",
        "lakebeat_ingest_events_total 4",
        "lakebeat_ingest_dead_letters_total 1",
        "lakebeat_ingest_lag{topic=\"events\",partition=\"1\"} 3",
        "lakebeat_ingest_next_offset{topic=\"events\",partition=\"0\"} 10",
        "lakebeat_publication_id 1",
        "lakebeat_table_rows{table=\"gold.top_songs\"} 3",
        "lakebeat_queries_total{door=\"console\",outcome=\"done\"} 2",
        "lakebeat_queries_in_flight{door=\"console\"} 0",
    ] {
        assert!(metrics.body.lines().any(|found| found == line), "{line}\n{}", metrics.body);
    }
    console.stop().await;
}

#[tokio::test]
async fn only_gets_that_name_this_machine_are_answered() {
    let console = Console::start().await;
    let unknown = console.get("/no/such/page").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["error"].is_string());
    let request = |method: &str, host: &str| {
        format!("{method} /api/v1/status HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    };
    assert_eq!(console.ask(&request("GET", "localhost:1234")).await.status, 200);
    let rebound = console.ask(&request("GET", "evil.example")).await;
    assert_eq!(rebound.status, 403);
    assert!(rebound.json()["error"].as_str().is_some_and(|error| error.contains("Host")));
    assert_eq!(console.ask(&request("POST", "localhost")).await.status, 405);
    assert_eq!(console.ask(&request("PUT", "localhost")).await.status, 405);
    let page = console.get("/").await;
    for header in
        ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff", "x-frame-options: deny"]
    {
        assert!(page.headers.contains(header), "{}", page.headers);
    }
    // The page asks nobody else for anything.
    let links = page.body.replace("http://www.w3.org/2000/svg", "");
    assert!(!links.contains("http://") && !links.contains("https://"));
    for asset in ["/assets/console.css", "/assets/console.js"] {
        assert_eq!(console.get(asset).await.status, 200);
    }
    console.stop().await;
}

#[tokio::test]
async fn a_build_is_asked_for_and_its_answer_is_waited_for() {
    let console = Console::start().await;
    // Nobody is there who builds.
    let asked = console.post("/api/v1/runs", "", r#"{"wait_seconds": 0}"#).await;
    assert_eq!((asked.status, &asked.json()["state"]), (202, &json!("asked")), "{}", asked.body);
    let place = format!("/api/v1/runs/{}", asked.json()["id"].as_str().expect("an id"));
    assert!(asked.headers.contains(&format!("location: {place}")), "{}", asked.headers);

    // Somebody comes who does, and who waits for one more.
    let lake = console.lake.clone();
    let building = async move {
        let mut requests = lake.requests();
        for publication in [7, 8] {
            let request = loop {
                match requests.take(BUILD_REQUEST, "a builder").await.expect("looked") {
                    Some(request) => break request,
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            let answer = json!({ "publication": publication, "arguments": request.arguments });
            requests.finish(&request, Ok(answer)).await.expect("it is ours");
        }
    };
    let (answered, ()) = tokio::join!(console.post("/api/v1/runs", "", r#"{"full_refresh": true}"#), building);
    let answer = answered.json();
    assert_eq!((answered.status, &answer["state"], &answer["answer"]["publication"]), (200, &json!("done"), &json!(8)));
    assert_eq!(answer["answer"]["arguments"], json!({ "full_refresh": true }));
    let first = console.get(&place).await;
    assert_eq!((first.status, &first.json()["answer"]["publication"]), (200, &json!(7)));
    assert_eq!(console.get("/api/v1/runs/nosuch").await.status, 404);
    console.stop().await;
}

#[tokio::test]
async fn another_page_or_a_body_with_a_mistake_asks_for_nothing() {
    let console = Console::start().await;
    for (headers, body, status) in [
        ("Origin: http://evil.example\r\n", "", 403),
        ("Origin: null\r\n", "", 403),
        ("", r#"{"full": true}"#, 400),
        ("", "full_refresh", 400),
    ] {
        let refused = console.post("/api/v1/runs", headers, body).await;
        assert_eq!(refused.status, status, "{headers}{body}: {}", refused.body);
        assert!(refused.json()["error"].is_string());
    }
    assert!(console.lake.tables().await.expect("listed").is_empty());
    let own = format!("Origin: http://127.0.0.1:{}\r\n", console.port);
    assert_eq!(console.post("/api/v1/runs", &own, r#"{"wait_seconds": 0}"#).await.status, 202);
    console.stop().await;
}
