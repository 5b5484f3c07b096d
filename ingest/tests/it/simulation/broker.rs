//! The broker: a topic whose partitions grow, with poison and holes in them, and a reader of it that gets some messages twice,
//! stumbles, and hands on what it has read under an assignment that is over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use ingest::consume::{Broker, Command, Options, Polled, Room, Sharing, Source};
use ingest::kafka::Watermarks;
use ingest::records::{Record, Records};
use ingest::topic::{FieldSpec, TopicSpec};
use ingest::{Error, ErrorKind, Result};
use lakehouse::TableName;

use super::group::Group;
use super::random::Random;
use super::store::Life;
use super::time::{Doing, Time, slot};

/// The topic that is simulated.
pub(crate) fn topic() -> TopicSpec {
    TopicSpec {
        name: "simulated".to_owned(),
        table: TableName::new("bronze", "simulated"),
        fields: vec![FieldSpec::string("id")],
        ..TopicSpec::spotify()
    }
}

/// A message, and what has to become of it.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) key: Option<String>,
    pub(crate) payload: Option<Vec<u8>>,
    timestamp_millis: i64,
    pub(crate) verdict: Verdict,
}

impl Message {
    fn record(&self, partition: i32, offset: i64) -> Record<'_> {
        Record {
            partition,
            offset,
            timestamp_millis: Some(self.timestamp_millis),
            key: self.key.as_deref().map(str::as_bytes),
            payload: self.payload.as_deref(),
            headers: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A row, with this message's id.
    Row,
    /// A letter, with this message's payload.
    Letter,
}

/// The id in the payload of a message that is fine.
pub(crate) fn id_of(partition: i32, offset: i64) -> String {
    format!("message {partition}-{offset}")
}

fn message(random: &mut Random, partition: i32, offset: i64) -> Message {
    let id = id_of(partition, offset);
    let (payload, verdict) = match random.within(0..=19) {
        0 => (None, Verdict::Letter),
        1 => (Some(Vec::new()), Verdict::Letter),
        2 => (Some(format!("{{\"id\":{offset}}}").into_bytes()), Verdict::Letter),
        3 => (Some(format!("not JSON, {id}").into_bytes()), Verdict::Letter),
        _ => (Some(format!("{{\"id\":\"{id}\",\"more\":{offset}}}").into_bytes()), Verdict::Row),
    };
    let key = random.happens(700).then(|| format!("key {offset}"));
    Message { key, payload, timestamp_millis: 1_700_000_000_000 + random.within(0..=9) as i64, verdict }
}

/// One partition: each offset from `low` on holds a message, or is a hole.
#[derive(Debug, Default, Clone)]
pub(crate) struct Partition {
    pub(crate) low: i64,
    pub(crate) slots: Vec<Option<Message>>,
}

impl Partition {
    pub(crate) fn end(&self) -> i64 {
        self.low + self.slots.len() as i64
    }

    /// The offsets that hold a message.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (i64, &Message)> {
        (self.low..).zip(&self.slots).filter_map(|(offset, slot)| Some((offset, slot.as_ref()?)))
    }

    fn at(&self, offset: i64) -> Option<&Message> {
        self.slots.get(usize::try_from(offset - self.low).ok()?)?.as_ref()
    }
}

/// The brokers and what they hold.
#[derive(Debug)]
pub(crate) struct Cluster {
    time: Arc<Time>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    partitions: Vec<Partition>,
    group: Group,
    random: Random,
}

impl Cluster {
    pub(crate) fn new(time: Arc<Time>, seed: u64, partitions: usize, forgotten: u64) -> Self {
        let mut random = Random::about(seed, "topic", &[]);
        let partitions = (0..partitions)
            .map(|_| Partition { low: random.within(0..=7).saturating_sub(4) as i64, slots: Vec::new() })
            .collect();
        let group = Group::new(Random::about(seed, "group", &[]), forgotten);
        Self { time, state: Mutex::new(State { partitions, group, random }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Appends so many messages, each to any partition.
    pub(crate) fn produce(&self, count: u64) {
        let mut state = self.state();
        let State { partitions, random, .. } = &mut *state;
        for _ in 0..count {
            let index = random.within(0..=partitions.len() as u64 - 1) as usize;
            let partition = &mut partitions[index];
            while random.happens(80) {
                partition.slots.push(None);
            }
            partition.slots.push(Some(message(random, index as i32, partition.end())));
        }
    }

    /// Puts a message at the end of every partition that does not end with one.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        let State { partitions, random, .. } = &mut *state;
        for (index, partition) in partitions.iter_mut().enumerate() {
            if partition.slots.last().is_some_and(Option::is_none) {
                partition.slots.push(Some(message(random, index as i32, partition.end())));
            }
        }
    }

    /// Gives the topic one more partition.
    pub(crate) fn grow(&self) {
        let mut state = self.state();
        state.partitions.push(Partition::default());
        state.group.unbalance();
        self.time.note("topic", || format!("has {} partitions", state.partitions.len()));
    }

    pub(crate) fn partitions(&self) -> Vec<Partition> {
        self.state().partitions.clone()
    }

    /// What the group's coordinator does now and then.
    pub(crate) fn tick(&self) {
        let mut state = self.state();
        let partitions = state.partitions.len() as i32;
        state.group.tick(partitions, &self.time);
    }
}

/// The cluster as one life of a process reaches it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) life: Arc<Life>,
    /// So many questions of a thousand get no answer.
    pub(crate) unanswered: u64,
    /// So often of a thousand times the reader stumbles.
    pub(crate) stumbles: u64,
    questions: Mutex<Random>,
}

impl Connection {
    pub(crate) fn new(cluster: Arc<Cluster>, life: Arc<Life>, unanswered: u64, stumbles: u64) -> Self {
        let questions = Mutex::new(life.random("questions", &[]));
        Self { cluster, life, unanswered, stumbles, questions }
    }

    /// The way of a question to the broker.
    async fn ask(&self) -> Result<()> {
        let time = &self.life.time;
        let (delay, lost) = {
            let mut random = self.questions.lock().expect("no holder of this lock panics");
            (random.within(1..=30), random.happens(self.unanswered))
        };
        time.turn(slot(self.life.member, Doing::Asking), delay).await;
        if lost && !time.is_calm() {
            time.turn(slot(self.life.member, Doing::Asking), 2_000).await;
            return Err(Error::new(ErrorKind::Unavailable, "the simulated broker does not answer"));
        }
        Ok(())
    }
}

#[async_trait]
impl Broker for Connection {
    async fn partitions(&self, _: &str) -> Result<BTreeSet<i32>> {
        self.ask().await?;
        Ok((0..self.cluster.state().partitions.len() as i32).collect())
    }

    async fn cluster_id(&self) -> Option<String> {
        Some("simulated".to_owned())
    }

    async fn watermarks(&self, _: &str, partitions: &BTreeSet<i32>) -> Result<BTreeMap<i32, Watermarks>> {
        self.ask().await?;
        let state = self.cluster.state();
        let watermarks = |partition: &i32| {
            let found = &state.partitions[*partition as usize];
            (*partition, Watermarks { low: found.low, high: found.end() })
        };
        Ok(partitions.iter().map(watermarks).collect())
    }

    async fn ends(&self, _: &str, partitions: &BTreeSet<i32>) -> Result<BTreeMap<i32, i64>> {
        self.ask().await?;
        let state = self.cluster.state();
        Ok(partitions.iter().map(|partition| (*partition, state.partitions[*partition as usize].end())).collect())
    }

    async fn fingerprints(&self, _: &str, offsets: &BTreeMap<i32, i64>) -> Result<BTreeMap<i32, String>> {
        self.ask().await?;
        let state = self.cluster.state();
        let fingerprint = |(&partition, &offset): (&i32, &i64)| {
            let message = state.partitions[partition as usize].at(offset)?;
            Some((partition, message.record(partition, offset).fingerprint()))
        };
        Ok(offsets.iter().filter_map(fingerprint).collect())
    }

    fn read(&self, options: &Options) -> Result<Box<dyn Source>> {
        // Lives of all members have numbers of their own.
        let id = self.life.number * 16 + self.life.member;
        if options.sharing == Sharing::Group {
            self.cluster.state().group.join(id, self.life.name());
        }
        let reader = Reader {
            id,
            cluster: self.cluster.clone(),
            life: self.life.clone(),
            stumbles: self.stumbles,
            due: None,
            place: Mutex::default(),
            random: self.life.random("reader", &[]),
        };
        Ok(Box::new(reader))
    }
}

/// Reads the topic.
struct Reader {
    id: u64,
    cluster: Arc<Cluster>,
    life: Arc<Life>,
    stumbles: u64,
    /// When it reads on, if it waits.
    due: Option<u64>,
    place: Mutex<Place>,
    random: Random,
}

/// Where a reader is.
#[derive(Debug, Default)]
struct Place {
    epoch: u64,
    /// The next offset of each partition that it reads.
    next: BTreeMap<i32, i64>,
    /// The partitions whose end was told.
    exhausted: BTreeSet<i32>,
    /// What it has read and not handed on.
    ready: VecDeque<Polled>,
}

impl Reader {
    /// One look at what there is.
    fn look(&mut self) {
        let mut state = self.cluster.state();
        let place = self.place.get_mut().expect("no holder of this lock panics");
        if let Some(heard) = state.group.hear(self.id) {
            self.life.time.note(&self.life.name(), || format!("hears {heard:?}"));
            place.ready.push_back(heard);
            return;
        }
        if place.next.is_empty() {
            return;
        }
        if !self.life.time.is_calm() && self.random.happens(self.stumbles) {
            place.stumble(&mut self.random);
            return;
        }
        place.read(&state.partitions, &mut self.random);
    }
}

impl Place {
    fn stumble(&mut self, random: &mut Random) {
        match random.within(0..=9) {
            0 => self.ready.push_back(Polled::OutOfRange { epoch: self.epoch }),
            1 | 2 => self.ready.push_back(Polled::Trouble("a simulated broker was away".to_owned())),
            _ => {
                // Some messages are delivered again.
                for next in self.next.values_mut() {
                    *next -= random.within(0..=6) as i64;
                }
            }
        }
    }

    fn read(&mut self, partitions: &[Partition], random: &mut Random) {
        let mut records = Records::default();
        for (&partition, next) in &mut self.next {
            // A broker answers for some partitions now and for others later.
            if random.happens(600) {
                continue;
            }
            let log = &partitions[partition as usize];
            *next = (*next).max(log.low);
            let upto = log.end().min(*next + random.within(0..=4) as i64);
            while *next < upto {
                if let Some(message) = log.at(*next) {
                    records.push(&message.record(partition, *next));
                }
                *next += 1;
                self.exhausted.remove(&partition);
            }
        }
        if !records.is_empty() {
            self.ready.push_back(Polled::Records { epoch: self.epoch, records, room: Room::default() });
        }
        for (&partition, &next) in &self.next {
            if next == partitions[partition as usize].end() && self.exhausted.insert(partition) {
                self.ready.push_back(Polled::Exhausted { epoch: self.epoch, partition });
            }
        }
    }
}

#[async_trait]
impl Source for Reader {
    async fn next(&mut self) -> Option<Polled> {
        loop {
            let place = self.place.get_mut().expect("no holder of this lock panics");
            if let Some(polled) = place.ready.pop_front() {
                return Some(polled);
            }
            let due = match self.due {
                Some(due) => due,
                None => {
                    let delay = self.random.within(1..=80);
                    *self.due.insert(self.life.time.due(slot(self.life.member, Doing::Reading), delay))
                }
            };
            self.life.time.until(due).await;
            self.due = None;
            self.look();
        }
    }

    fn ask(&self, command: Command) {
        let mut place = self.place.lock().expect("no holder of this lock panics");
        match command {
            Command::Assign { epoch, offsets } => {
                // What waits in `ready` was read under the old assignment, and is handed on all the same.
                place.epoch = epoch;
                place.next = offsets;
                place.exhausted.clear();
            }
            Command::Unassign => {
                place.next.clear();
                self.cluster.state().group.let_go(self.id);
            }
            Command::Commit(_) => {}
        }
    }

    async fn end(self: Box<Self>) {
        self.cluster.state().group.leave(self.id);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Nothing, if it has left before.
        self.cluster.state().group.lose(self.id, &self.life.time);
    }
}
