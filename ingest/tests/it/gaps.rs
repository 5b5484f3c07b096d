//! What is gone is told, and gone on without when somebody says so; and the ledger is set by hand.

use std::collections::BTreeSet;

use ingest::ErrorKind;
use ingest::consume::{self, Options, Position, ResetOptions, ResetReport, Stop};
use ingest::kafka::Properties;
use lakehouse::PartitionReport;

use crate::scene::Scene;

impl Scene {
    async fn accepting(&self, gaps: &[&str]) -> ingest::Result<consume::Summary> {
        let accepted_gaps = gaps.iter().map(|gap| gap.parse().expect("a gap")).collect();
        self.run_to_end(Options { accepted_gaps, ..self.options(Stop::AtEnd) }).await
    }

    async fn reset(&self, partitions: &[i32], to: Position) -> ingest::Result<ResetReport> {
        let options = ResetOptions {
            brokers: self.brokers(),
            properties: Properties::new(),
            topic: self.topic.clone(),
            partitions: partitions.iter().copied().collect(),
            to,
        };
        consume::reset(&self.lake().await, &options).await
    }

    /// The audit of a lake that has to be whole.
    async fn audit(&self) -> Vec<PartitionReport> {
        let report = self.lake().await.verify().await.expect("an audit");
        assert!(report.is_whole(), "{report}");
        report.partitions
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_read_from_its_beginning_once_that_is_accepted() {
    let mut scene = Scene::new(2).await;
    scene.simulate(60, 0.1).await;
    scene.ingest_to_end().await.expect("a first time");
    let old = scene.audit().await;
    scene.with_empty_broker().await;
    scene.simulate(40, 0.1).await;

    let error = scene.ingest_to_end().await.expect_err("another topic").to_string();
    let flags: Vec<String> = old.iter().map(|one| format!("spotify_events:{}:0-{}", one.partition, one.to)).collect();
    for flag in &flags {
        assert!(error.contains(&format!("--accept-gap {flag}")), "{error}");
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    scene.accepting(&flags[..1]).await.expect_err("one of two is not enough");
    let summary = scene.accepting(&flags).await.expect("accepted");
    assert_eq!(summary.rows + summary.dead_letters, 40);

    let new = scene.audit().await;
    for (old, new) in old.iter().zip(&new) {
        assert_eq!((new.incarnation, old.incarnation), (1, 0));
    }
    let taken: u64 = new.iter().map(|one| one.rows + one.dead_letters).sum();
    assert_eq!(taken, 100, "what was read before stays");
    // It is in the ledger: nobody has to say it again, and saying it again does nothing.
    scene.simulate(30, 0.0).await;
    let summary = scene.ingest_to_end().await.expect("goes on");
    assert_eq!(summary.rows, 30);
    scene.accepting(&flags).await.expect("nothing to accept");
    assert_eq!(scene.audit().await.iter().map(|one| one.messages).sum::<u64>(), 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_set_back_reads_again_and_doubles_nothing() {
    let mut scene = Scene::new(2).await;
    let delivered = scene.simulate(400, 0.2).await;
    scene.ingest_to_end().await.expect("a first time");
    let report = scene.reset(&[1], Position::Offset(30)).await.expect("set back");
    let [one] = report.moves.as_slice() else { panic!("{report}") };
    assert_eq!((one.partition, one.to), (1, 30));
    assert_eq!(report.rows_taken_out + report.dead_letters_taken_out, (one.from - 30) as u64, "{report}");
    let audit = scene.audit().await;
    assert_eq!((audit[1].to, audit[1].messages), (30, 30));
    let again = scene.reset(&[1], Position::Offset(30)).await.expect("nothing to do");
    assert!(again.moves.is_empty(), "{again}");

    let rest = scene.ingest_to_end().await.expect("the rest");
    assert_eq!(rest.rows + rest.dead_letters, (one.from - 30) as u64);
    scene.assert_accounted(&delivered).await;
    scene.reset(&[], Position::Earliest).await.expect("all of it");
    assert_eq!(scene.places().await, (Vec::new(), Vec::new()));
    scene.ingest_to_end().await.expect("all of it once more");
    scene.assert_accounted(&delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_writes_between_the_two_commits_of_a_reset() {
    let mut scene = Scene::new(2).await;
    let delivered = scene.simulate(400, 0.3).await;
    scene.ingest_to_end().await.expect("a first time");
    // What stands where the letters' next commit should go lets it fail, as a store that goes away would.
    let letters = scene.lake().await.table(&scene.topic.dead_letters).head().await.expect("letters");
    let entry = format!("bronze/dead_letters/_delta_log/{:020}.json", letters.version + 1);
    let obstacle = scene.lake_folder().join(entry);
    std::fs::create_dir(&obstacle).expect("a folder");
    let error = scene.reset(&[1], Position::Offset(30)).await.expect_err("the letters stay");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let error = scene.ingest_to_end().await.expect_err("the letters are not what the ledger says");
    assert!(error.to_string().contains("partition 1 is being reset"), "{error}");
    std::fs::remove_dir(&obstacle).expect("gone");
    // The next one goes to another place, and first ends what that one began.
    scene.reset(&[1], Position::Offset(60)).await.expect("forward from there");
    scene.reset(&[1], Position::Offset(30)).await.expect("and back");
    scene.ingest_to_end().await.expect("the rest");
    scene.assert_accounted(&delivered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_set_forward_records_the_gap() {
    let mut scene = Scene::new(1).await;
    scene.simulate(50, 0.0).await;
    scene.ingest_to_end().await.expect("a first time");
    scene.simulate(50, 0.0).await;
    let report = scene.reset(&[], Position::Offset(70)).await.expect("set forward");
    assert_eq!((report.moves[0].from, report.moves[0].to, report.rows_taken_out), (50, 70, 0));
    let rest = scene.ingest_to_end().await.expect("the rest");
    assert_eq!(rest.rows, 30);
    let audit = scene.audit().await;
    assert_eq!((audit[0].rows, audit[0].skipped, audit[0].to), (80, 20, 100));
    // Back into the gap: what was given up is read after all.
    scene.reset(&[], Position::Offset(60)).await.expect("set back");
    scene.ingest_to_end().await.expect("the rest");
    let audit = scene.audit().await;
    assert_eq!((audit[0].rows, audit[0].skipped), (90, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_ledger_is_set_beside_a_writer_or_to_where_nothing_is() {
    let mut scene = Scene::new(1).await;
    scene.simulate(50, 0.0).await;
    let mut ingest = scene.start_ingest(scene.options(Stop::Never)).await;
    ingest.until(|progress| progress.events == 50).await;
    let error = scene.reset(&[], Position::Earliest).await.expect_err("somebody writes");
    assert_eq!(error.kind(), ErrorKind::BadConfig);
    assert!(error.to_string().contains("process "), "{error}");
    ingest.stop().await.expect("a quiet end");
    for (partitions, to, told) in
        [(&[][..], Position::Offset(51), "0..50"), (&[3], Position::Earliest, "no partition 3")]
    {
        let error = scene.reset(partitions, to).await.expect_err("nothing is there");
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        assert!(error.to_string().contains(told), "{error}");
    }
    // Nor on the table of another topic.
    let ours = std::mem::replace(&mut scene.topic.name, "another".to_owned());
    scene.make_topic().await;
    for refused in [scene.reset(&[], Position::Earliest).await.map(drop), scene.ingest_to_end().await.map(drop)] {
        let error = refused.expect_err("the table of another topic");
        assert_eq!(error.kind(), ErrorKind::BadConfig);
        assert!(error.to_string().contains(&format!("holds the messages of topic {ours}")), "{error}");
    }
    scene.topic.name = ours;
    // Nor is it set on another topic, whose messages would be taken for those that were read.
    scene.with_empty_broker().await;
    scene.simulate(80, 0.0).await;
    for to in [Position::Earliest, Position::Latest] {
        let error = scene.reset(&[], to).await.expect_err("another topic");
        assert_eq!(error.kind(), ErrorKind::BadData);
        assert!(error.to_string().contains("is not the one that was read before"), "{error}");
    }
    let places: BTreeSet<_> = scene.places().await.0.into_iter().collect();
    assert_eq!(places.len(), 50);
}
