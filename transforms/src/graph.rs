//! The order in which models are built: each after all that it reads.

use std::collections::BTreeSet;

use crate::compile::Model;
use crate::error::{Error, Result, fault_at};

/// Puts the models in order; among those that could be next, the first by name is.
///
/// # Errors
/// `BadConfig` if they read one another in a circle, naming the circle.
pub(crate) fn in_order(mut waiting: Vec<Model>) -> Result<Vec<Model>> {
    waiting.sort_by(|left, right| left.name.cmp(&right.name));
    let mut done = BTreeSet::new();
    let mut ordered = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let Some(next) = waiting.iter().position(|model| model.parents.is_subset(&done)) else {
            return Err(circle(&waiting));
        };
        let model = waiting.remove(next);
        done.insert(model.name.clone());
        ordered.push(model);
    }
    Ok(ordered)
}

/// Every model that waits reads another that waits: going from one to the next comes back to where it was.
fn circle(waiting: &[Model]) -> Error {
    let mut way = vec![&waiting[0]];
    loop {
        let last = way[way.len() - 1];
        let next = waiting.iter().find(|model| last.parents.contains(&model.name)).expect("it waits for another one");
        if let Some(start) = way.iter().position(|model| model.name == next.name) {
            let names: Vec<&str> = way[start..].iter().chain([&next]).map(|model| model.name.as_str()).collect();
            let message = format!("models read one another in a circle ({}): take one ref out", names.join(" → "));
            return fault_at(&next.path, None, message);
        }
        way.push(next);
    }
}
