//! When ingest stops, when it does not, and what it says.

use std::time::{Duration, Instant};

use ingest::ErrorKind;
use ingest::consume::{Options, Stop};
use ingest::kafka::{self, Properties};

use crate::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_not_taken_for_the_old_one() {
    let mut scene = Scene::new(1).await;
    scene.simulate(50, 0.0).await;
    scene.ingest_to_end().await.expect("a first time");
    let before = scene.places().await;

    scene.with_empty_broker().await;
    scene.simulate(20, 0.0).await;
    let error = scene.ingest_to_end().await.expect_err("the ledger is ahead");
    assert_eq!(error.kind(), ErrorKind::BadData);
    assert!(error.to_string().contains("offsets 20..50"), "{error}");

    scene.simulate(30, 0.0).await;
    let error = scene.ingest_to_end().await.expect_err("all is there, but it is another topic");
    assert_eq!(error.kind(), ErrorKind::BadData);
    assert!(error.to_string().contains("the message at offset 49 is another"), "{error}");

    scene.simulate(30, 0.0).await;
    scene.ingest_to_end().await.expect_err("and stays another");
    assert_eq!(scene.places().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_it_commits_what_it_has_and_ends_soon() {
    let mut scene = Scene::new(2).await;
    let options =
        Options { flush_interval: Duration::from_secs(600), flush_rows: 1_000_000, ..scene.options(Stop::Never) };
    let mut ingest = scene.start_ingest(options).await;
    ingest.until(|progress| !progress.partitions.is_empty()).await;
    let delivered = scene.simulate(300, 0.1).await;
    ingest.until(|progress| progress.lag == 300).await;
    // Not committed, but taken: no condition tells from outside, and a message that is not yet taken is only later.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    let summary = ingest.stop().await.expect("a quiet end");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!((summary.rows + summary.dead_letters, summary.commits), (300, 1));
    scene.assert_accounted(&delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_while_nothing_arrives() {
    let mut scene = Scene::new(2).await;
    scene.simulate(100, 0.0).await;
    scene.ingest_to_end().await.expect("all of it");
    let version = scene.lake().await.table(&scene.topic.table).head().await.expect("a table").version;
    let mut ingest = scene.start_ingest(scene.options(Stop::Never)).await;
    ingest.until(|progress| progress.partitions.len() == 2).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ingest.progress.borrow().lag, 0);
    let summary = ingest.stop().await.expect("a quiet end");
    assert_eq!(summary.commits, 0);
    assert_eq!(scene.lake().await.table(&scene.topic.table).head().await.expect("a table").version, version);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_named() {
    let mut scene = Scene::new(1).await;
    scene.topic.name = "nowhere".to_owned();
    let error = scene.ingest_to_end().await.expect_err("there is no such topic");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_told_to_kafka_for_lag_tools() {
    let mut scene = Scene::new(2).await;
    scene.simulate(200, 0.0).await;
    let mut ingest = scene.start_ingest(scene.options(Stop::Never)).await;
    ingest.until(|progress| progress.events == 200).await;
    let check = kafka::check(&scene.brokers(), &Properties::new()).await.expect("a broker");
    assert_eq!(check.topics.get(&scene.topic.name), Some(&2));
    let (brokers, topic) = (scene.brokers(), scene.topic.name.clone());
    let committed = tokio::task::spawn_blocking(move || committed(&brokers, &topic, 200));
    assert_eq!(committed.await.expect("no panic"), 200);
    ingest.stop().await.expect("a quiet end");
}

/// The sum of the group's offsets once it is `wanted`, or at last.
fn committed(brokers: &str, topic: &str, wanted: i64) -> i64 {
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    let mut config = rdkafka::ClientConfig::new();
    let consumer: BaseConsumer =
        config.set("bootstrap.servers", brokers).set("group.id", "lakebeat").create().expect("a consumer");
    let mut sum = 0;
    for _ in 0..50 {
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_range(topic, 0, 1);
        let list = consumer.committed_offsets(list, Duration::from_secs(5)).expect("an answer");
        sum = list.elements().iter().filter_map(|element| element.offset().to_raw()).filter(|&offset| offset > 0).sum();
        if sum == wanted {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    sum
}
