//! What the audit says of a lake that somebody, or something, has damaged: each damage is planted in the store behind its back.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt as _;
use lakehouse::{DEFAULT_GROUP, Lake, PinnedTable, SystemClock, TableName, TableVersion};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore as _, ObjectStoreExt as _, PutPayload};
use url::Url;

use crate::support::{commit_of, replace_all};

/// A lake with one table of gold, which was rewritten some times and published each time.
struct Damaged {
    store: Arc<InMemory>,
    lake: Lake,
}

impl Damaged {
    async fn whole() -> Self {
        let store = Arc::new(InMemory::new());
        let lake = open(&store).await;
        let damaged = Self { store, lake };
        for upto in [3, 6, 9] {
            damaged.rebuild(0..upto).await;
        }
        assert_eq!(damaged.faults().await, "");
        damaged
    }

    async fn rebuild(&self, ids: std::ops::Range<i64>) {
        let PinnedTable { table_id, version } = replace_all(&self.lake.table(&name()), ids).await;
        self.publish(&table_id, version).await;
    }

    async fn append(&self, id: i64) {
        let table = self.lake.table(&name());
        let version = table.head().await.expect("there").version;
        let commit = commit_of(&table, [id], "a", id).await;
        assert!(table.append(version, commit).await.expect("committed").committed().is_some());
    }

    async fn publish(&self, table_id: &str, version: u64) {
        let pin = PinnedTable { table_id: table_id.to_owned(), version };
        self.lake.publish(DEFAULT_GROUP, BTreeMap::from([(name(), pin)])).await.expect("published");
    }

    async fn version(&self, version: u64) -> Arc<TableVersion> {
        self.lake.table(&name()).at(version).await.expect("there")
    }

    /// The object of the first file of that version.
    async fn file(&self, version: u64) -> Path {
        let path = self.version(version).await.files[0].path.clone();
        Path::from_iter("lake/gold/one".split('/').chain(path.split('/')))
    }

    async fn read(&self, path: &Path) -> Vec<u8> {
        self.store.get(path).await.expect("there").bytes().await.expect("read").to_vec()
    }

    async fn write(&self, path: &Path, bytes: Vec<u8>) {
        self.store.put(path, PutPayload::from(bytes)).await.expect("written");
    }

    async fn edit_entry(&self, version: u64, edit: impl FnOnce(String) -> String) {
        let path = entry(version);
        let text = String::from_utf8(self.read(&path).await).expect("JSON");
        let edited = edit(text.clone());
        assert_ne!(edited, text, "something is damaged");
        self.write(&path, edited.into_bytes()).await;
    }

    /// What the audit says, read anew as another process would, without the ids that differ from run to run.
    async fn faults(&self) -> String {
        let report = open(&self.store).await.verify().await.expect("audited");
        let mut said: Vec<_> = report.faults.iter().map(|fault| format!("{fault}\n")).collect();
        said.sort_by_key(|fault| fault.rsplit(".parquet").next().map(str::to_owned));
        let said = said.concat();
        let mut plain = String::new();
        for piece in said.split_inclusive(".zstd.parquet") {
            match piece.rfind("part-").filter(|_| piece.ends_with(".zstd.parquet")) {
                Some(at) => plain += &format!("{}part", &piece[..at]),
                None => plain += piece,
            }
        }
        plain
    }
}

async fn open(store: &Arc<InMemory>) -> Lake {
    let url = Url::parse("memory:///lake/").expect("valid URL");
    Lake::open_on(store.clone(), &url, Arc::new(SystemClock)).await.expect("opens")
}

fn name() -> TableName {
    TableName::new("gold", "one")
}

fn entry(version: u64) -> Path {
    Path::from(format!("lake/gold/one/_delta_log/{version:020}.json"))
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_gone_or_altered_are_named() {
    let damaged = Damaged::whole().await;
    damaged.store.delete(&damaged.file(3).await).await.expect("deleted");
    // One of a version that only a publication needs.
    let truncated = damaged.file(1).await;
    let bytes = damaged.read(&truncated).await;
    damaged.write(&truncated, bytes[..bytes.len() / 2].to_vec()).await;
    let turned = damaged.file(2).await;
    let mut bytes = damaged.read(&turned).await;
    bytes[20] ^= 1;
    damaged.write(&turned, bytes).await;
    expect_test::expect![[r#"
        gold.one: file day=__HIVE_DEFAULT_PARTITION__/part has 505 bytes, but 1011 were written
        gold.one: file day=__HIVE_DEFAULT_PARTITION__/part is gone
        gold.one: file day=__HIVE_DEFAULT_PARTITION__/part is not what was written: its checksum differs
    "#]]
    .assert_eq(&damaged.faults().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_a_checksum_is_read_to_its_end() {
    let damaged = Damaged::whole().await;
    damaged.edit_entry(3, |text| text.replace("lakebeat.crc32", "somebody.else")).await;
    assert_eq!(damaged.faults().await, "");
    let file = damaged.file(3).await;
    let mut bytes = damaged.read(&file).await;
    bytes[4..60].fill(0xff);
    damaged.write(&file, bytes).await;
    let faults = damaged.faults().await;
    assert!(faults.starts_with("gold.one: file ") && faults.contains(" cannot be read to its end: "), "{faults}");
    damaged.write(&file, b"no Parquet at all".to_vec()).await;
    assert!(damaged.faults().await.contains(" bytes, but "), "the log knows its size");
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_that_are_not_true_are_told() {
    let damaged = Damaged::whole().await;
    damaged
        .edit_entry(3, |text| {
            let wrong = |line: &str| match line.contains("day/1") {
                true => line.replace(r#"\"numRecords\":3"#, r#"\"numRecords\":4"#),
                false => line.replace(r#"\"id\":8"#, r#"\"id\":2"#),
            };
            text.lines().map(wrong).collect::<Vec<_>>().join("\n")
        })
        .await;
    expect_test::expect![[r#"
        gold.one: file day=__HIVE_DEFAULT_PARTITION__/part has 8 as its greatest id, but the log says 2
        gold.one: file day=day%2F1/part holds 3 rows, but the log says 4
    "#]]
    .assert_eq(&damaged.faults().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_holes_or_nonsense_in_it_is_told() {
    let damaged = Damaged::whole().await;
    damaged.store.delete(&entry(1)).await.expect("deleted");
    damaged.store.delete(&entry(2)).await.expect("deleted");
    expect_test::expect![[r#"
        gold.one: log entries 1 to 2 are gone
    "#]]
    .assert_eq(&damaged.faults().await);
    let damaged = Damaged::whole().await;
    damaged.edit_entry(2, |text| text[..text.len() / 2].to_owned()).await;
    let faults = damaged.faults().await;
    assert!(faults.starts_with("gold.one: log entry 2 of gold.one is damaged"), "{faults}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_says_otherwise_than_the_log_is_told() {
    let damaged = Damaged::whole().await;
    for id in 0..100 {
        damaged.append(id).await;
    }
    damaged.lake.settle().await;
    assert_eq!(damaged.faults().await, "");
    // The checkpoint of version 100 knows the file of version 50.
    damaged
        .edit_entry(50, |text| {
            text.lines().filter(|line| !line.starts_with(r#"{"add""#)).collect::<Vec<_>>().join("\n")
        })
        .await;
    expect_test::expect![[r#"
        gold.one: the checkpoint names file day=day%2F1/part, but the log does not
    "#]]
    .assert_eq(&damaged.faults().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn publications_that_find_nothing_are_told() {
    let damaged = Damaged::whole().await;
    let id = damaged.version(3).await.table_id.clone();
    damaged.publish(&id, 99).await;
    damaged.publish("another", 2).await;
    expect_test::expect![[r#"
        gold.one: publication 4 names version 99, but the newest is 3
        gold.one: publication 5 names another table that had this name
    "#]]
    .assert_eq(&damaged.faults().await);
    let objects: Vec<ObjectMeta> =
        damaged.store.list(Some(&Path::from("lake/gold"))).try_collect().await.expect("listed");
    for object in objects {
        damaged.store.delete(&object.location).await.expect("deleted");
    }
    expect_test::expect![[r#"
        gold.one: the table is gone, but publication 5 names it
    "#]]
    .assert_eq(&damaged.faults().await);
}
