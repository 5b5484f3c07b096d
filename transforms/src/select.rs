//! `--select`: which models a command is about.
//!
//! A selector is a name, `tag:…` or `path:…`, with a `+` before it for all that it reads, and after it for all that reads it.

use std::collections::BTreeSet;

use crate::compile::{Compiled, Model};
use crate::error::{Error, ErrorKind, Result};
use crate::suggest;

/// The names of the models that are meant; no selector means all.
pub(crate) fn select(project: &Compiled, selectors: &[String]) -> Result<BTreeSet<String>> {
    let words: Vec<&str> = selectors.iter().flat_map(|selector| selector.split_whitespace()).collect();
    if words.is_empty() {
        return Ok(project.models.iter().map(|model| model.name.clone()).collect());
    }
    let mut selected = BTreeSet::new();
    for word in words {
        selected.extend(select_word(project, word)?);
    }
    Ok(selected)
}

fn select_word(project: &Compiled, word: &str) -> Result<BTreeSet<String>> {
    let (parents, rest) = word.strip_prefix('+').map_or((false, word), |rest| (true, rest));
    let (children, rest) = rest.strip_suffix('+').map_or((false, rest), |rest| (true, rest));
    let mut selected = matching(project, word, rest)?;
    let start = selected.clone();
    if parents {
        selected.extend(with_parents(project, start.clone()));
    }
    if children {
        selected.extend(with_children(project, start));
    }
    Ok(selected)
}

fn with_parents(project: &Compiled, mut names: BTreeSet<String>) -> BTreeSet<String> {
    // Backwards through the order: whoever reads a model is seen before the model itself.
    for model in project.models.iter().rev() {
        if names.contains(&model.name) {
            names.extend(model.parents.iter().cloned());
        }
    }
    names
}

fn with_children(project: &Compiled, mut names: BTreeSet<String>) -> BTreeSet<String> {
    for model in &project.models {
        if !model.parents.is_disjoint(&names) {
            names.insert(model.name.clone());
        }
    }
    names
}

fn matching(project: &Compiled, word: &str, selector: &str) -> Result<BTreeSet<String>> {
    if selector.is_empty()
        || selector.contains(['+', '@', ',', '*'])
        || selector.starts_with(|c: char| c.is_ascii_digit())
    {
        let message = format!(
            "the selector \"{word}\" is not supported: write a model's name, tag:NAME or path:FOLDER, with + before or after it"
        );
        return Err(Error::new(ErrorKind::BadConfig, message));
    }
    let (method, value) = selector.split_once(':').unwrap_or(("name", selector));
    let named = |fits: &dyn Fn(&Model) -> bool| -> BTreeSet<String> {
        project.models.iter().filter(|model| fits(model)).map(|model| model.name.clone()).collect()
    };
    let (found, hint) = match method {
        "name" => (
            named(&|model| model.name == value),
            suggest::hint(value, project.models.iter().map(|model| model.name.as_str())),
        ),
        "tag" => {
            let tags = project.models.iter().flat_map(|model| model.config.tags.iter().map(String::as_str));
            let tags: BTreeSet<&str> = tags.collect();
            (named(&|model| model.config.tags.iter().any(|tag| tag == value)), suggest::hint(value, tags))
        }
        "path" => {
            let folder = value.trim_end_matches('/');
            let below = |model: &Model| {
                model.path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            (named(&below), suggest::hint(value, project.models.iter().map(|model| model.path.as_str())))
        }
        _ => {
            let message =
                format!("the selector \"{word}\" is not supported: {}", suggest::hint(method, ["tag", "path"]));
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
    };
    if found.is_empty() {
        let message = format!("the selector \"{word}\" fits no model: {hint}");
        return Err(Error::new(ErrorKind::BadConfig, message));
    }
    Ok(found)
}
