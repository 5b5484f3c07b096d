//! Where the mirror is. Read for every command, and complained about only where it is needed.

use snowflake_adapter::{Options, Secret};
use url::Url;

use super::layers::{Layers, Setting};
use crate::output::Fault;

const URL: Setting = Setting { key: "snowflake.url", variables: &["LAKEBEAT_SNOWFLAKE_URL", "SNOWFLAKE_URL"] };
const ACCOUNT: Setting =
    Setting { key: "snowflake.account", variables: &["LAKEBEAT_SNOWFLAKE_ACCOUNT", "SNOWFLAKE_ACCOUNT"] };
const USER: Setting = Setting { key: "snowflake.user", variables: &["LAKEBEAT_SNOWFLAKE_USER", "SNOWFLAKE_USER"] };
const PASSWORD: Setting =
    Setting { key: "snowflake.password", variables: &["LAKEBEAT_SNOWFLAKE_PASSWORD", "SNOWFLAKE_PASSWORD"] };
const WAREHOUSE: Setting =
    Setting { key: "snowflake.warehouse", variables: &["LAKEBEAT_SNOWFLAKE_WAREHOUSE", "SNOWFLAKE_WAREHOUSE"] };
const ROLE: Setting = Setting { key: "snowflake.role", variables: &["LAKEBEAT_SNOWFLAKE_ROLE", "SNOWFLAKE_ROLE"] };
const DATABASE: Setting =
    Setting { key: "snowflake.database", variables: &["LAKEBEAT_SNOWFLAKE_DATABASE", "SNOWFLAKE_DATABASE"] };
/// Without the old name: in the replaced pipeline's settings that is the schema into which it loaded raw rows, and the
/// models' tables were in another.
const SCHEMA: Setting = Setting { key: "snowflake.schema", variables: &["LAKEBEAT_SNOWFLAKE_SCHEMA"] };

/// What has a key in `lakebeat.toml`.
pub(super) const ALL: &[&Setting] = &[&URL, &ACCOUNT, &USER, &PASSWORD, &WAREHOUSE, &ROLE, &DATABASE, &SCHEMA];

/// What is set of the mirror.
#[derive(Debug)]
pub(crate) struct SnowflakeSettings {
    url: Option<String>,
    account: Option<String>,
    user: Option<String>,
    password: Option<Secret>,
    warehouse: Option<String>,
    role: Option<String>,
    database: String,
    schema: String,
}

impl SnowflakeSettings {
    pub(super) fn read(layers: &Layers) -> anyhow::Result<Self> {
        let text = |setting: &Setting| layers.pick::<String>(("", None), setting);
        Ok(Self {
            url: text(&URL)?,
            account: text(&ACCOUNT)?,
            user: text(&USER)?,
            password: text(&PASSWORD)?.map(Secret::new),
            warehouse: text(&WAREHOUSE)?,
            role: text(&ROLE)?,
            database: text(&DATABASE)?.unwrap_or_else(|| "SPOTIFY_DB".to_owned()),
            schema: text(&SCHEMA)?.unwrap_or_else(|| "TRANSFORM".to_owned()),
        })
    }

    /// Whether somebody has named an account, or a service.
    pub(crate) fn is_set(&self) -> bool {
        self.account.is_some() || self.url.is_some()
    }

    /// What the mirror needs.
    pub(crate) fn options(&self) -> anyhow::Result<Options> {
        let missing = |name: &str| Fault::usage(format!("the Snowflake mirror needs {name}: set it, or {}", key(name)));
        let account = self.account.as_ref().ok_or_else(|| missing("SNOWFLAKE_ACCOUNT"))?;
        Ok(Options {
            url: match &self.url {
                Some(text) => Url::parse(text)
                    .map_err(|error| Fault::usage(format!("SNOWFLAKE_URL is \"{text}\", which is no URL: {error}")))?,
                None => snowflake_adapter::account_url(account)?,
            },
            account: account.clone(),
            user: self.user.clone().ok_or_else(|| missing("SNOWFLAKE_USER"))?,
            password: self.password.clone().ok_or_else(|| missing("SNOWFLAKE_PASSWORD"))?,
            warehouse: self.warehouse.clone(),
            role: self.role.clone(),
            database: self.database.clone(),
            schema: self.schema.clone(),
        })
    }
}

/// The same setting in the settings file.
fn key(name: &str) -> String {
    format!("{} in lakebeat.toml", name.to_lowercase().replacen('_', ".", 1))
}
