//! The end of a build: one publication for each group of models in which something changed.

use std::collections::{BTreeMap, BTreeSet};

use lakehouse::{Changes, PinnedTable, Publication, TableName};

use super::Pass;
use crate::compile::Model;
use crate::error::Result;
use crate::report::{BuildReport, HeldGroup, ModelStatus};

impl Pass<'_> {
    /// Publishes every group that has no fault and something new.
    pub(super) async fn publish(&self, report: &mut BuildReport) -> Result<()> {
        report.held.clear();
        let selected = |model: &&Model| self.plan.selected.contains(&model.name);
        let groups: BTreeSet<&str> = self.plan.project.models.iter().filter(selected).map(Model::group).collect();
        for group in groups {
            let because = self.faults(group);
            if !because.is_empty() {
                tracing::warn!(group, because = because.join(", "), "the group keeps its last publication");
                report.held.push(HeldGroup { group: group.to_owned(), because });
                continue;
            }
            let unpublished = self.unpublished_inputs(group).await?;
            if !unpublished.is_empty() {
                tracing::warn!(group, because = unpublished.join(", "), "the group keeps its last publication");
                report.held.push(HeldGroup { group: group.to_owned(), because: unpublished });
                continue;
            }
            if let Some(publication) = self.publish_group(group).await? {
                // Once a second while events come in: what `up` shows of it is the newest gold in its status.
                tracing::debug!(publication = publication.id, group, "published");
                report.publications.push(publication);
            }
        }
        Ok(())
    }

    /// The models and tests at fault; what was only skipped or held because of them is no cause.
    fn faults(&self, group: &str) -> Vec<String> {
        let of_group = |model: &str| self.plan.project.find(model).is_some_and(|model| model.group() == group);
        let runs: Vec<_> = self.runs.iter().filter(|run| run.status.is_fault() && of_group(&run.model)).collect();
        let tests = self.tests.iter().filter(|test| test.status.is_fault() && of_group(&test.model));
        let failed = runs.iter().filter(|run| run.status == ModelStatus::Failed).map(|run| run.model.clone());
        let causes: Vec<String> = failed.chain(tests.map(|test| test.test.clone())).collect();
        // Where another group's fault reaches into this one, there is nothing else to name.
        if causes.is_empty() { runs.iter().map(|run| run.model.clone()).collect() } else { causes }
    }

    /// What selected models have read of other models that were left out: it may be further than what is published, and
    /// would come to light half, or untested.
    async fn unpublished_inputs(&self, group: &str) -> Result<Vec<String>> {
        let project = self.plan.project;
        let is_selected = |model: &Model| self.plan.selected.contains(&model.name);
        let mut found = BTreeSet::new();
        for model in project.models.iter().filter(|model| model.group() == group && is_selected(model)) {
            for name in &model.inputs {
                let Some(parent) = project.builder_of(name).filter(|parent| !is_selected(parent)) else { continue };
                let Some(view) = self.views.get(name) else { continue };
                let published = self.plan.lake.newest_publication(parent.group()).await?;
                let last = published.map(|last| last.tables).unwrap_or_default();
                let read = PinnedTable { table_id: view.base.table_id.clone(), version: view.base.version };
                if self.is_newer(name, &read, &last).await? {
                    found.insert(format!("{name} is newer than published: select +{}", model.name));
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    async fn publish_group(&self, group: &str) -> Result<Option<Publication>> {
        let last = self.plan.lake.newest_publication(group).await?;
        let last_tables = last.map(|last| last.tables).unwrap_or_default();
        let mut models = BTreeMap::new();
        let mut inputs = BTreeMap::new();
        for model in self.plan.project.models.iter().filter(|model| model.group() == group) {
            let names = std::iter::once(&model.table).chain(&model.inputs);
            for name in names {
                let pins = if *name == model.table { &mut models } else { &mut inputs };
                // A table that this build was not about stays as it was published, or unpublished.
                let pin = self.pin_of(model, name).or_else(|| last_tables.get(name).cloned());
                pins.extend(pin.map(|pin| (name.clone(), pin)));
            }
        }
        if !self.is_news(&models, &last_tables).await? {
            return Ok(None);
        }
        let mut tables = inputs;
        tables.extend(models);
        Ok(Some(self.plan.lake.publish(group, tables).await?))
    }

    fn pin_of(&self, model: &Model, name: &TableName) -> Option<PinnedTable> {
        if !self.plan.selected.contains(&model.name) {
            return None;
        }
        let base = &self.views.get(name)?.base;
        let version = self.committed.get(name).copied().unwrap_or(base.version);
        Some(PinnedTable { table_id: base.table_id.clone(), version })
    }

    /// Whether a reader would see anything new. A version that only moved a cursor, or put small files together, waits
    /// for the next one that brings rows.
    async fn is_news(
        &self,
        models: &BTreeMap<TableName, PinnedTable>,
        last: &BTreeMap<TableName, PinnedTable>,
    ) -> Result<bool> {
        for (name, pin) in models {
            if self.is_newer(name, pin, last).await? {
                return Ok(true);
            }
        }
        // A model that was taken out of the project leaves the publication too.
        let gone = |name: &TableName| self.plan.project.builder_of(name).is_none() && !self.is_input(name);
        Ok(last.keys().any(gone))
    }

    /// Whether one table has other rows than were last published of it.
    async fn is_newer(
        &self,
        name: &TableName,
        pin: &PinnedTable,
        last: &BTreeMap<TableName, PinnedTable>,
    ) -> Result<bool> {
        let Some(published) = last.get(name) else { return Ok(true) };
        if published.table_id != pin.table_id || published.version > pin.version {
            return Ok(true);
        }
        if published.version == pin.version {
            return Ok(false);
        }
        let changes = self.plan.lake.table(name).changes(Some(published.version), pin.version).await?;
        Ok(!matches!(changes, Changes::Appended { files } if files.is_empty()))
    }

    fn is_input(&self, name: &TableName) -> bool {
        self.plan.project.models.iter().any(|model| model.inputs.contains(name))
    }
}
