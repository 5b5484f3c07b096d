//! The embedded broker under a real client, and under requests that no client should send.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ingest::broker::{self, Options};
use lakehouse::{ErrorKind, Result, SystemClock};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const TOPIC: &str = "songs";
const PATIENCE: Duration = Duration::from_secs(20);

/// A broker that runs in this process.
struct Running {
    address: SocketAddr,
    token: CancellationToken,
    tasks: JoinSet<Result<()>>,
}

impl Running {
    async fn start(folder: &Path) -> Self {
        let options = Options::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), folder);
        let token = CancellationToken::new();
        let (ready, address) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(broker::run(options, Arc::new(SystemClock), ready, token.clone()));
        let address = timeout(PATIENCE, address).await.expect("in time").expect("the broker serves");
        Self { address, token, tasks }
    }

    async fn stop(mut self) -> Duration {
        let started = Instant::now();
        self.token.cancel();
        let ended = timeout(PATIENCE, self.tasks.join_next()).await.expect("in time");
        ended.expect("one task").expect("no panic").expect("no error");
        started.elapsed()
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.address.to_string()).set("message.timeout.ms", "10000");
        config
    }

    async fn create_topic(&self, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> = self.config().create().expect("an admin client");
        let topic = NewTopic::new(TOPIC, partitions, TopicReplication::Fixed(1));
        let results = admin.create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
        results[0].as_ref().expect("created");
    }

    async fn produce(&self, payload: Option<&str>, headers: Option<OwnedHeaders>) -> i64 {
        let producer: FutureProducer = self.config().set("enable.idempotence", "true").create().expect("a producer");
        let mut record = FutureRecord::<str, str>::to(TOPIC).partition(0).key("key");
        record.payload = payload;
        record.headers = headers;
        producer.send(record, PATIENCE).await.expect("acknowledged").offset
    }

    fn consumer(&self) -> BaseConsumer {
        self.config().set("group.id", "readers").set("enable.auto.commit", "false").create().expect("a consumer")
    }

    /// The records of partition 0 from an offset on.
    fn read(&self, from: i64, count: usize) -> Vec<rdkafka::message::OwnedMessage> {
        let consumer = self.consumer();
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(TOPIC, 0, Offset::Offset(from)).expect("an offset");
        consumer.assign(&partitions).expect("assigned");
        let mut messages = Vec::new();
        while messages.len() < count {
            let message = consumer.poll(PATIENCE).expect("in time").expect("a message");
            messages.push(message.detach());
        }
        messages
    }

    /// Sends bytes as they are and returns what comes back until the broker closes or says nothing for a while.
    fn send_raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).expect("connected");
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("set");
        stream.write_all(bytes).expect("sent");
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut chunk) {
            answer.extend_from_slice(&chunk[..read]);
        }
        answer
    }
}

/// A request frame without a client's name.
fn frame(api_key: i16, api_version: i16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(api_key.to_be_bytes());
    frame.extend(api_version.to_be_bytes());
    frame.extend(7_i32.to_be_bytes());
    frame.extend((-1_i16).to_be_bytes());
    frame.extend(body);
    let mut sized = i32::try_from(frame.len()).expect("short").to_be_bytes().to_vec();
    sized.extend(frame);
    sized
}

#[tokio::test(flavor = "multi_thread")]
async fn records_offsets_and_groups_survive_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = Running::start(folder.path()).await;
    running.create_topic(3).await;
    let headers = OwnedHeaders::new().insert(Header { key: "origin", value: Some("test") });
    assert_eq!(running.produce(Some("first"), Some(headers)).await, 0);
    assert_eq!(running.produce(None, None).await, 1);
    assert_eq!(running.produce(Some(""), None).await, 2);
    let mut committed = TopicPartitionList::new();
    committed.add_partition_offset(TOPIC, 0, Offset::Offset(2)).expect("an offset");
    running.consumer().commit(&committed, CommitMode::Sync).expect("committed");
    assert!(running.stop().await < Duration::from_secs(2));

    let running = Running::start(folder.path()).await;
    let consumer = running.consumer();
    assert_eq!(consumer.fetch_watermarks(TOPIC, 0, PATIENCE).expect("an answer"), (0, 3));
    assert_eq!(consumer.fetch_watermarks(TOPIC, 1, PATIENCE).expect("an answer"), (0, 0));
    let mut asked = TopicPartitionList::new();
    asked.add_partition(TOPIC, 0);
    let committed = consumer.committed_offsets(asked, PATIENCE).expect("an answer");
    assert_eq!(committed.elements()[0].offset(), Offset::Offset(2));
    assert_eq!(running.produce(Some("fourth"), None).await, 3);
    let messages = running.read(0, 4);
    let payloads: Vec<_> = messages.iter().map(|message| message.payload()).collect();
    // A tombstone stays a tombstone, and an empty payload stays an empty payload.
    assert_eq!(payloads, [Some(&b"first"[..]), None, Some(&b""[..]), Some(&b"fourth"[..])]);
    let header = messages[0].headers().expect("headers").get(0);
    assert_eq!((header.key, header.value), ("origin", Some(&b"test"[..])));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_id_request_without_an_id_no_longer_stops_the_broker() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = Running::start(folder.path()).await;
    running.create_topic(1).await;
    // Version 0: a null transactional id and a timeout, and no producer id.
    let answer = running.send_raw(&frame(22, 0, &[0xff, 0xff, 0, 0, 0x27, 0x10]));
    assert_eq!(answer.len(), 4 + 4 + 4 + 2 + 8 + 2, "throttle time, code, id and epoch");
    assert_eq!(&answer[12..14], [0, 0], "no error");
    assert_eq!(running.produce(Some("after"), None).await, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_harms_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = Running::start(folder.path()).await;
    running.create_topic(1).await;
    running.send_raw(b"GET / HTTP/1.1\r\n\r\n");
    running.send_raw(&[0xff; 8]);
    // Every request number, with a body that is cut off or full of large numbers.
    for api_key in -1..80 {
        for version in 0..3 {
            running.send_raw_briefly(&frame(api_key, version, &[]));
            running.send_raw_briefly(&frame(api_key, version, &[0x7f; 40]));
        }
    }
    assert_eq!(running.produce(Some("after"), None).await, 0);
    assert_eq!(running.read(0, 1).len(), 1);
    running.stop().await;
}

impl Running {
    /// Sends bytes and goes away at once.
    fn send_raw_briefly(&self, bytes: &[u8]) {
        let mut stream = TcpStream::connect(self.address).expect("connected");
        stream.write_all(bytes).expect("sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_message_is_kept_and_an_unawaited_one_is_not_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = Running::start(folder.path()).await;
    running.create_topic(1).await;
    // Format 0: checksum, magic, attributes, key, value. The broker does not look at the checksum.
    let mut message = vec![0, 0, 0, 0, 0, 0];
    message.extend([0, 0, 0, 1, b'k', 0, 0, 0, 3, b'o', b'l', b'd']);
    let mut set = vec![0; 8];
    set.extend(i32::try_from(message.len()).expect("short").to_be_bytes());
    set.extend(message);
    let produce = |acks: i16| {
        let mut body = acks.to_be_bytes().to_vec();
        body.extend(1_000_i32.to_be_bytes());
        body.extend([0, 0, 0, 1, 0, 5]);
        body.extend(TOPIC.as_bytes());
        body.extend([0, 0, 0, 1, 0, 0, 0, 0]);
        body.extend(i32::try_from(set.len()).expect("short").to_be_bytes());
        body.extend(&set);
        frame(0, 1, &body)
    };
    assert!(!running.send_raw(&produce(1)).is_empty());
    assert!(running.send_raw(&produce(0)).is_empty());
    let messages = running.read(0, 2);
    assert_eq!(messages[1].payload(), Some(&b"old"[..]));
    assert_eq!(messages[1].key(), Some(&b"k"[..]));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_and_a_taken_folder_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = Running::start(folder.path()).await;
    let start = async |listen: SocketAddr, folder: &Path| {
        let (ready, _) = oneshot::channel();
        let options = Options::new(listen, folder);
        broker::run(options, Arc::new(SystemClock), ready, CancellationToken::new()).await.expect_err("refused")
    };
    let other = tempfile::tempdir().expect("a folder");
    let error = start(running.address, other.path()).await;
    assert_eq!(error.kind(), ErrorKind::BadConfig);
    assert!(error.to_string().contains("--kafka-port"), "{error}");
    let error = start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), folder.path()).await;
    assert_eq!(error.kind(), ErrorKind::BadConfig);
    assert!(error.to_string().contains("--data-dir"), "{error}");
    running.stop().await;
}
