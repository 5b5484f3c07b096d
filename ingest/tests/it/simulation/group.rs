//! The group's coordinator, of the eager kind: it takes all partitions back, waits until they are let go of, but not for ever,
//! and shares them out anew. Who did not let go in time, or is forgotten for no reason, goes on as a stale owner until told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ingest::consume::{Polled, Revocation};

use super::random::Random;
use super::time::Time;

/// The group. Members are known by the number of their life, which is never used again.
#[derive(Debug)]
pub(crate) struct Group {
    members: BTreeMap<u64, Member>,
    /// Whether partitions have to be shared out anew.
    unbalanced: bool,
    /// Until when partitions may be let go of, while they are being taken back.
    deadline: Option<u64>,
    /// So often of a thousand times an owner is taken for dead that is not.
    forgotten: u64,
    random: Random,
}

#[derive(Debug)]
struct Member {
    name: String,
    standing: Standing,
    /// What it has not yet heard.
    inbox: VecDeque<Polled>,
}

/// How a member stands with the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It has nothing and waits for partitions.
    Waiting,
    /// It has what it was given.
    Owning,
    /// It was asked to let go.
    LettingGo,
    /// Its partitions are others' by now, and it does not know before this time.
    Stale { told_at: u64 },
    /// It was told that its partitions are others'.
    Told,
    /// It was not heard of any more, and has until this time to come back, which it won't.
    Silent { until: u64 },
}

impl Group {
    pub(crate) fn new(random: Random, forgotten: u64) -> Self {
        Self { members: BTreeMap::new(), unbalanced: false, deadline: None, forgotten, random }
    }

    pub(crate) fn join(&mut self, id: u64, name: String) {
        self.members.insert(id, Member { name, standing: Standing::Waiting, inbox: VecDeque::new() });
        self.unbalanced = true;
    }

    /// Partitions were added: the members see that.
    pub(crate) fn unbalance(&mut self) {
        self.unbalanced = true;
    }

    /// What a member hears next.
    pub(crate) fn hear(&mut self, id: u64) -> Option<Polled> {
        self.members.get_mut(&id)?.inbox.pop_front()
    }

    /// A member has let go of all that it had.
    pub(crate) fn let_go(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id) else { return };
        self.unbalanced |= !matches!(member.standing, Standing::LettingGo | Standing::Waiting);
        member.standing = Standing::Waiting;
    }

    /// A member says good-bye.
    pub(crate) fn leave(&mut self, id: u64) {
        self.unbalanced |= self.members.remove(&id).is_some();
    }

    /// A member is gone without a word.
    pub(crate) fn lose(&mut self, id: u64, time: &Time) {
        let until = time.now() + self.random.within(0..=10_000);
        if let Some(member) = self.members.get_mut(&id) {
            member.standing = Standing::Silent { until };
        }
    }

    /// What the coordinator does now and then.
    pub(crate) fn tick(&mut self, partitions: i32, time: &Time) {
        let now = time.now();
        let before = self.members.len();
        self.members.retain(|_, member| !matches!(member.standing, Standing::Silent { until } if until <= now));
        self.unbalanced |= self.members.len() < before;
        for member in self.members.values_mut() {
            if matches!(member.standing, Standing::Stale { told_at } if told_at <= now || time.is_calm()) {
                member.inbox.push_back(Polled::Revoked(Revocation::Lost));
                member.standing = Standing::Told;
                time.note("group", || format!("{} is told that its partitions are lost", member.name));
            }
        }
        if !time.is_calm() && self.deadline.is_none() {
            self.unbalanced |= self.random.happens(6);
            if self.random.happens(self.forgotten) {
                self.forget_somebody(time);
            }
        }
        if self.unbalanced && self.deadline.is_none() {
            self.take_back(time);
        }
        let all_let_go = self.members.values().all(|member| member.standing != Standing::LettingGo);
        if self.deadline.is_some_and(|deadline| all_let_go || deadline <= now) {
            self.share_out(partitions, time);
        }
    }

    /// A network that is cut, a machine that stands still: the group takes an owner for dead, and it is not.
    fn forget_somebody(&mut self, time: &Time) {
        let owners: Vec<u64> = self.ids(|standing| standing == Standing::Owning);
        if owners.is_empty() {
            return;
        }
        let id = self.random.one_of(&owners);
        let told_at = time.now() + self.random.within(0..=8_000);
        let member = self.members.get_mut(&id).expect("it is one of them");
        member.standing = Standing::Stale { told_at };
        time.note("group", || format!("{} is taken for dead", member.name));
        self.unbalanced = true;
    }

    fn take_back(&mut self, time: &Time) {
        for member in self.members.values_mut().filter(|member| member.standing == Standing::Owning) {
            member.inbox.push_back(Polled::Revoked(Revocation::Asked));
            member.standing = Standing::LettingGo;
        }
        self.unbalanced = false;
        self.deadline = Some(time.now() + self.random.within(200..=4_000));
        time.note("group", || "all partitions are taken back".to_owned());
    }

    fn share_out(&mut self, partitions: i32, time: &Time) {
        self.deadline = None;
        let told_at = time.now() + self.random.within(0..=8_000);
        for member in self.members.values_mut().filter(|member| member.standing == Standing::LettingGo) {
            member.standing = Standing::Stale { told_at };
            time.note("group", || format!("{} did not let go in time", member.name));
        }
        let waiting = self.ids(|standing| standing == Standing::Waiting);
        if waiting.is_empty() {
            return;
        }
        let mut shares: BTreeMap<u64, BTreeSet<i32>> = waiting.iter().map(|id| (*id, BTreeSet::new())).collect();
        let first = self.random.next() as usize;
        for partition in 0..partitions {
            let id = waiting[(first + partition as usize) % waiting.len()];
            shares.entry(id).or_default().insert(partition);
        }
        for (id, share) in shares {
            let member = self.members.get_mut(&id).expect("it is one of them");
            time.note("group", || format!("{} gets {share:?}", member.name));
            member.inbox.push_back(Polled::Assigned(share));
            member.standing = Standing::Owning;
        }
    }

    fn ids(&self, wanted: impl Fn(Standing) -> bool) -> Vec<u64> {
        self.members.iter().filter(|(_, member)| wanted(member.standing)).map(|(id, _)| *id).collect()
    }
}
