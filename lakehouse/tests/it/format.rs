//! Lakes that an older release wrote are read, audited and committed to as they are.

use std::path::{Path, PathBuf};

use lakehouse::{Commit, DEFAULT_GROUP, Operation, TableName};
use url::Url;

use crate::support::{numbers, open};

/// A copy of a lake that release 0.1.0 left behind: some events of the bundled pipeline, a dead letter, and what was built of them.
fn of_0_1_0() -> (tempfile::TempDir, Url) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1"), folder.path());
    let url = Url::from_directory_path(folder.path()).expect("an absolute path");
    (folder, url)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the folder is made");
    for entry in std::fs::read_dir(from).expect("the folder is read") {
        let path: PathBuf = entry.expect("the folder is read").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, target).expect("the file is copied");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_of_format_1_is_read_audited_and_committed_to() {
    let (folder, url) = of_0_1_0();
    let mark = std::fs::read_to_string(folder.path().join("_lakebeat.json")).expect("read");
    assert!(mark.contains(r#""format":1"#), "{mark}");
    let lake = open(&url).await;
    let report = lake.verify().await.expect("audited");
    assert!(report.is_whole(), "{report}");
    let rows: u64 = report.partitions.iter().map(|partition| partition.rows).sum();
    let letters: u64 = report.partitions.iter().map(|partition| partition.dead_letters).sum();
    assert!(rows > 0 && letters > 0, "{report}");
    let progress = lake.ingest_progress().await.expect("read");
    assert_eq!(progress.iter().map(|one| one.next_offset as u64).sum::<u64>(), rows + letters);

    let publication = lake.newest_publication(DEFAULT_GROUP).await.expect("read").expect("published");
    let context = lake.session_factory().at_publication(Some(&publication)).await.expect("opened");
    let counted = "select sum(plays + pauses + skips + playlist_adds) from user_engagement";
    let distinct = "select count(*) from spotify_silver";
    assert_eq!(numbers(&context, counted).await, numbers(&context, distinct).await);

    let silver = lake.table(&TableName::new("silver", "spotify_silver"));
    let head = silver.head().await.expect("there");
    let commit = Commit::new(Operation::Write);
    assert_eq!(silver.replace(head.version, commit).await.expect("answered").committed(), Some(head.version + 1));
    assert!(open(&url).await.verify().await.expect("audited").is_whole());
    assert_eq!(
        std::fs::read_to_string(folder.path().join("_lakebeat.json")).expect("read"),
        mark,
        "it stays what it was"
    );
}
