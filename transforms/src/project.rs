//! A project as its files say it: settings, sources, models' texts, descriptions and tests. Nothing is rendered here.

mod bundled;
pub(crate) mod yaml;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lakehouse::TableName;
use serde_json::Value;

use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result, fault_at};
use crate::suggest;
use yaml::{ModelProperties, ProjectFile, PropertiesFile};

/// The project's file of settings, in its root.
const PROJECT_FILE: &str = "dbt_project.yml";
/// A project larger than this is a wrong folder.
const FILES_MAX: usize = 10_000;

/// A set of models that belong together, in the layout of a dbt project.
#[derive(Debug, Clone)]
pub struct Project {
    name: String,
    /// Variables with the values that the project gives them.
    pub(crate) variables: BTreeMap<String, Value>,
    pub(crate) sources: Vec<Source>,
    /// In the order of their paths.
    pub(crate) models: Vec<ModelFile>,
}

/// A table that the project reads and does not build.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) source: String,
    pub(crate) name: String,
    pub(crate) table: TableName,
}

/// One model as its files say it.
#[derive(Debug, Clone)]
pub(crate) struct ModelFile {
    pub(crate) name: String,
    /// Relative to the project, with forward slashes.
    pub(crate) path: String,
    /// The folder just above the file, if it is not the models' own folder.
    pub(crate) layer: Option<String>,
    pub(crate) text: String,
    /// Settings from the project's file and from the properties; those in the model's text are not known yet.
    pub(crate) settings: Settings,
    pub(crate) properties: ModelProperties,
    /// The file that holds the properties; empty if there are none.
    pub(crate) properties_path: String,
}

impl Project {
    /// The project that comes with the program: the listening events.
    pub fn bundled() -> Self {
        let files = bundled::FILES.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        Self::from_files(files).expect("a test reads the very files that are built in")
    }

    /// Reads the project in `folder`.
    ///
    /// # Errors
    /// `BadConfig`, naming file and line, for what is wrong or not supported.
    pub fn load(folder: &Path) -> Result<Self> {
        if !folder.join(PROJECT_FILE).is_file() {
            let message = format!("{} is not a project: there is no {PROJECT_FILE} in it", folder.display());
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
        let mut files = BTreeMap::new();
        read_folder(folder, "", &mut files)?;
        Self::from_files(files)
    }

    /// What the project calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts a project together from its files by path.
    pub(crate) fn from_files(files: BTreeMap<String, String>) -> Result<Self> {
        let project: ProjectFile = yaml::parse(PROJECT_FILE, files.get(PROJECT_FILE).map_or("", String::as_str))?;
        refuse_unsupported(&project, &files)?;
        let mut sources = Vec::new();
        let mut properties = BTreeMap::new();
        let mut models = Vec::new();
        for (path, text) in &files {
            let Some(folder) = project.model_folder(path) else { continue };
            if path.ends_with(".yml") || path.ends_with(".yaml") {
                let file: PropertiesFile = yaml::parse(path, text)?;
                sources.extend(file.sources(path)?);
                for model in file.models {
                    let name = model.name.clone();
                    if let Some((_, first)) = properties.insert(name.clone(), (model, path.clone())) {
                        let message = format!("model \"{name}\" is described here and in {first}: keep one");
                        return Err(fault_at(path, yaml::line_of(text, &name), message));
                    }
                }
            } else if path.ends_with(".sql") {
                models.push(model_file(&project, folder, path, text)?);
            }
        }
        for model in &mut models {
            if let Some((described, path)) = properties.remove(&model.name) {
                model.settings.extend(&described.config, &path);
                model.properties = described;
                model.properties_path = path;
            }
        }
        if let Some((name, (_, path))) = properties.into_iter().next() {
            let hint = suggest::hint(&name, models.iter().map(|model| model.name.as_str()));
            let line = yaml::line_of(&files[&path], &name);
            return Err(fault_at(&path, line, format!("there is no model \"{name}\" to describe: {hint}")));
        }
        refuse_same_names(&models)?;
        Ok(Self { name: project.name, variables: project.vars, sources, models })
    }
}

fn model_file(project: &ProjectFile, folder: &str, path: &str, text: &str) -> Result<ModelFile> {
    let within: Vec<&str> = path[folder.len()..].trim_start_matches('/').split('/').collect();
    let (file, folders) = within.split_last().expect("a split has at least one part");
    let name = file.trim_end_matches(".sql").to_owned();
    if TableName::new("gold", &name).to_string().parse::<TableName>().is_err() {
        let message = "a model's file name becomes a table's name: use lower case letters, digits and underscores";
        return Err(fault_at(path, None, message));
    }
    Ok(ModelFile {
        name,
        path: path.to_owned(),
        layer: folders.last().map(|folder| (*folder).to_owned()),
        text: text.to_owned(),
        settings: project.settings_for(folders)?,
        properties: ModelProperties::default(),
        properties_path: String::new(),
    })
}

fn refuse_same_names(models: &[ModelFile]) -> Result<()> {
    let mut paths: BTreeMap<&str, &str> = BTreeMap::new();
    for model in models {
        if let Some(first) = paths.insert(&model.name, &model.path) {
            let message = format!("there is a model of this name in {first}: rename one of them");
            return Err(fault_at(&model.path, None, message));
        }
    }
    Ok(())
}

/// What a project may hold and this one cannot run is named, never passed over.
fn refuse_unsupported(project: &ProjectFile, files: &BTreeMap<String, String>) -> Result<()> {
    const NOT_SUPPORTED: [(&str, &str, &str); 5] = [
        ("macros", ".sql", "macros are"),
        ("snapshots", ".sql", "snapshots are"),
        ("seeds", ".csv", "seeds are"),
        ("tests", ".sql", "singular tests are"),
        ("models", ".py", "Python models are"),
    ];
    for path in files.keys() {
        if matches!(path.as_str(), "packages.yml" | "dependencies.yml") {
            return Err(fault_at(path, None, "packages are not supported: copy what the models need into the project"));
        }
        for (folder, ending, what) in NOT_SUPPORTED {
            if path.starts_with(&format!("{folder}/")) && path.ends_with(ending) && !path.contains("/.") {
                return Err(fault_at(
                    path,
                    None,
                    format!("{what} not supported yet: take the file out of the project"),
                ));
            }
        }
    }
    if project.name.is_empty() {
        return Err(fault_at(PROJECT_FILE, None, "the project needs a name"));
    }
    Ok(())
}

fn read_folder(folder: &Path, prefix: &str, files: &mut BTreeMap<String, String>) -> Result<()> {
    const SKIPPED: [&str; 4] = ["target", "dbt_packages", "logs", "node_modules"];
    const TEXTS: [&str; 5] = ["sql", "yml", "yaml", "csv", "py"];
    let cannot_read = |source: std::io::Error, path: &Path| {
        Error::with_source(ErrorKind::BadConfig, format!("cannot read {}", path.display()), source)
    };
    for entry in fs::read_dir(folder).map_err(|source| cannot_read(source, folder))? {
        let entry = entry.map_err(|source| cannot_read(source, folder))?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || SKIPPED.contains(&name.as_str()) {
            continue;
        }
        let relative = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        // `is_dir` of the entry itself: a symbolic link to a folder could lead round in a circle.
        if entry.file_type().map_err(|source| cannot_read(source, &path))?.is_dir() {
            read_folder(&path, &relative, files)?;
        } else if path.extension().is_some_and(|ending| TEXTS.iter().any(|text| ending == *text)) {
            let text = fs::read_to_string(&path).map_err(|source| cannot_read(source, &path))?;
            files.insert(relative, text);
        }
        if files.len() > FILES_MAX {
            let message =
                format!("more than {FILES_MAX} files below {}: is this the project's folder?", folder.display());
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
    }
    Ok(())
}
