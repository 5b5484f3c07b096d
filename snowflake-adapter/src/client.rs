//! Snowflake's HTTP protocol, as much of it as a mirror needs: log in, run a statement, upload a file, log out.
//!
//! Nothing is repeated here: whether a statement whose answer was lost may run again, only its sender knows. The paths and
//! the fields of the bodies are those that Snowflake's own open-source drivers use, such as
//! <https://github.com/snowflakedb/snowflake-connector-python>.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use url::{Host, Url};
use uuid::Uuid;

use crate::result::Rows;
use crate::{Error, ErrorKind, Options, Result, Secret};

/// Shows in Snowflake's query history which statements are ours.
const QUERY_TAG: &str = "lakebeat";
/// So long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// So long one request may take. Snowflake answers a statement that runs longer than 45 s with the place to ask again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// So long one statement may take, waiting for another one's lock included; Snowflake itself breaks off an idle
/// transaction that others wait for after five minutes.
const STATEMENT_TIME_MAX: Duration = Duration::from_secs(1_800);
/// So long logging out may take. What becomes of it changes nothing: a session without a client ends by itself.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The codes of "still running": ask again.
const RUNNING: [&str; 2] = ["333333", "333334"];
/// The pause before one asks again.
const RUNNING_PAUSE: Duration = Duration::from_millis(250);
/// The codes of something that is not there, or that the role may not see: Snowflake does not tell the two apart.
pub(crate) const NOT_THERE: [&str; 2] = ["002003", "002043"];
/// The codes of something that is there already: Snowflake's, and fakesnow's.
pub(crate) const ALREADY_THERE: [&str; 2] = ["002002", "002003"];
/// The codes of a session that is no more.
const SESSION_GONE: [&str; 4] = ["390103", "390104", "390111", "390112"];

/// The service of an account: `https://<account>.snowflakecomputing.com`. Host names have no underscores, so they become
/// hyphens there; a region behind the name (`xy12345.eu-central-1`) stays.
///
/// # Errors
/// `BadConfig` if no URL can be made of it.
pub fn account_url(account: &str) -> Result<Url> {
    let host = account.trim().trim_start_matches("https://").trim_end_matches('/');
    let host = host.trim_end_matches(".snowflakecomputing.com").replace('_', "-").to_lowercase();
    let is_name = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') && !part.starts_with('-')
    };
    let url = Url::parse(&format!("https://{host}.snowflakecomputing.com")).ok();
    url.filter(|_| host.split('.').all(is_name)).ok_or_else(|| {
        let message = format!("\"{account}\" is no Snowflake account: write it as organization-account");
        Error::new(ErrorKind::BadConfig, message)
    })
}

/// Knows where Snowflake is and who we are.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    options: Options,
}

/// A session, logged in.
#[derive(Debug)]
pub(crate) struct Session {
    http: reqwest::Client,
    url: Url,
    token: Secret,
    /// Statements sent so far.
    pub(crate) statements: u64,
}

impl Client {
    /// # Errors
    /// `BadConfig` if the URL would carry the password in the clear to another machine.
    pub(crate) fn new(options: &Options) -> Result<Self> {
        if !is_private(&options.url) {
            let message = format!("{} would send the password unencrypted: use https://", options.url);
            return Err(Error::new(ErrorKind::BadConfig, message));
        }
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("Lakebeat/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            // A password follows no sign to another place.
            .redirect(reqwest::redirect::Policy::none())
            .timeout(REQUEST_TIMEOUT);
        if is_loopback(&options.url) {
            http = http.no_proxy();
        }
        let http = http
            .build()
            .map_err(|source| Error::with_source(ErrorKind::BadConfig, "cannot set up TLS for Snowflake", source))?;
        Ok(Self { http, options: options.clone() })
    }

    /// Logs in. Database and schema are chosen afterwards: they need not be there yet.
    pub(crate) async fn login(&self) -> Result<Session> {
        let Options { url, account, user, password, warehouse, role, .. } = &self.options;
        let doing = format!("log in to Snowflake at {url} as {user}");
        let mut request = address(url, "session/v1/login-request", "request_id")?;
        for (name, value) in [("warehouse", warehouse), ("roleName", role)] {
            if let Some(value) = value {
                request.query_pairs_mut().append_pair(name, value);
            }
        }
        let body = json!({ "data": {
            "ACCOUNT_NAME": account,
            "LOGIN_NAME": user,
            "PASSWORD": password.reveal(),
            "CLIENT_APP_ID": "Lakebeat",
            "CLIENT_APP_VERSION": env!("CARGO_PKG_VERSION"),
            "CLIENT_ENVIRONMENT": { "APPLICATION": "Lakebeat", "OS": std::env::consts::OS },
            // An account may have other defaults; the mirror's statements count on these.
            "SESSION_PARAMETERS": { "QUERY_TAG": QUERY_TAG, "TIMEZONE": "UTC", "AUTOCOMMIT": true },
        }});
        let answer = ask(post(&self.http, request, &body).header(ACCEPT, "application/json"), &doing).await?;
        if !answer.success {
            let hint =
                "check SNOWFLAKE_ACCOUNT, SNOWFLAKE_USER and SNOWFLAKE_PASSWORD, and the warehouse and role if set";
            return Err(Error::new(ErrorKind::BadConfig, format!("cannot {doing}: {}; {hint}", answer.said())));
        }
        let token = answer.data.and_then(|data| data.token);
        let token =
            token.ok_or_else(|| Error::new(ErrorKind::Unavailable, format!("cannot {doing}: no token came")))?;
        Ok(Session { http: self.http.clone(), url: url.clone(), token: Secret::new(token), statements: 0 })
    }
}

impl Session {
    /// Runs one statement. `doing` says what for, in an error: "cannot <doing>: …".
    ///
    /// # Errors
    /// `BadConfig` for missing rights or objects, `BadData` for other refusals, `Unavailable` if no answer came: then
    /// nobody knows whether the statement ran.
    pub(crate) async fn run(&mut self, doing: &str, sql: &str) -> Result<Rows> {
        let data = self.answer(doing, sql).await?;
        Rows::decode(doing, data)
    }

    /// The same, but a refusal with one of these codes is no error.
    pub(crate) async fn run_unless(&mut self, codes: &[&str], doing: &str, sql: &str) -> Result<Option<Rows>> {
        match self.ask_for(doing, sql).await? {
            Ok(data) => Rows::decode(doing, data).map(Some),
            Err(refused) if codes.contains(&refused.code()) => Ok(None),
            Err(refused) => Err(refusal(doing, &refused)),
        }
    }

    /// Uploads a file to a stage under `path` (`STAGE/folder/file`).
    pub(crate) async fn put(&mut self, doing: &str, path: &str, bytes: Bytes) -> Result<()> {
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
        // The path on this side is only a name: the bytes come from memory.
        let sql = format!("PUT 'file:///lakebeat/{file}' @{folder}/ AUTO_COMPRESS = FALSE OVERWRITE = TRUE");
        let data = self.answer(doing, &sql).await?;
        let url = upload_url(doing, data)?;
        let sent = self.http.put(url).header(CONTENT_TYPE, "application/octet-stream").body(bytes).send().await;
        let answer = sent.map_err(|source| unanswered(doing, source))?;
        if answer.status().is_success() {
            return Ok(());
        }
        let message = format!("cannot {doing}: the stage's store answered {}", answer.status());
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    /// Logs out, which rolls back what is open. Best effort.
    pub(crate) async fn close(self) {
        let Ok(mut url) = self.url.join("session") else { return };
        url.query_pairs_mut().append_pair("delete", "true");
        let request = self.authorized(post(&self.http, url, &json!({}))).timeout(CLOSE_TIMEOUT);
        if let Err(error) = request.send().await {
            tracing::debug!(%error, "not logged out");
        }
    }

    async fn answer(&mut self, doing: &str, sql: &str) -> Result<Data> {
        self.ask_for(doing, sql).await?.map_err(|refused| refusal(doing, &refused))
    }

    /// Sends a statement and waits for its end: what it yields, or Snowflake's refusal.
    async fn ask_for(&mut self, doing: &str, sql: &str) -> Result<Result<Data, Answer>> {
        self.statements += 1;
        tracing::debug!(sql, "statement");
        let body = json!({ "sqlText": sql, "sequenceId": self.statements, "asyncExec": false });
        let url = address(&self.url, "queries/v1/query-request", "requestId")?;
        let started = Instant::now();
        let mut answer = ask(self.authorized(post(&self.http, url, &body)), doing).await?;
        while RUNNING.contains(&answer.code()) {
            if started.elapsed() > STATEMENT_TIME_MAX {
                let message = format!("cannot {doing}: no end after {STATEMENT_TIME_MAX:?}");
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
            tokio::time::sleep(RUNNING_PAUSE).await;
            let place = answer.data.and_then(|data| data.get_result_url).unwrap_or_default();
            // Always on the host that has our token, whatever the answer says.
            let url = self.url.join(&place).ok().filter(|url| url.origin() == self.url.origin());
            let url = url.ok_or_else(|| {
                Error::new(ErrorKind::BadData, format!("cannot {doing}: it runs, but \"{place}\" is no place to ask"))
            })?;
            answer = ask(self.authorized(self.http.get(url)), doing).await?;
        }
        Ok(if answer.success { Ok(answer.data.unwrap_or_default()) } else { Err(answer) })
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        request
            .header(ACCEPT, "application/snowflake")
            .header(AUTHORIZATION, format!("Snowflake Token=\"{}\"", self.token.reveal()))
    }
}

/// What every answer is wrapped in.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    success: bool,
    code: Option<Value>,
    message: Option<String>,
    data: Option<Data>,
}

/// The contents of an answer; which of them are there, the request says.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Data {
    token: Option<String>,
    get_result_url: Option<String>,
    stage_info: Option<StageInfo>,
    encryption_material: Option<Value>,
    pub(crate) rowtype: Vec<RowType>,
    pub(crate) rowset: Option<Vec<Vec<Option<String>>>>,
    #[serde(rename = "rowsetBase64")]
    pub(crate) rowset_base64: Option<String>,
    pub(crate) chunks: Option<Vec<Value>>,
}

/// A column of a result.
#[derive(Debug, Deserialize)]
pub(crate) struct RowType {
    pub(crate) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StageInfo {
    location_type: String,
    presigned_url: Option<String>,
}

impl Answer {
    /// The code; all that matter here are written as texts.
    fn code(&self) -> &str {
        self.code.as_ref().and_then(Value::as_str).unwrap_or_default()
    }

    fn said(&self) -> String {
        let message = self.message.as_deref().unwrap_or("no reason was given");
        match self.code() {
            "" => message.to_owned(),
            code => format!("{message} (code {code})"),
        }
    }
}

/// Whether nobody on the way can read what is sent there.
fn is_private(url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn address(base: &Url, path: &str, id: &str) -> Result<Url> {
    let mut url = base
        .join(path)
        .map_err(|source| Error::with_source(ErrorKind::BadConfig, format!("{base} is no place to ask"), source))?;
    url.query_pairs_mut().append_pair(id, &Uuid::new_v4().to_string());
    Ok(url)
}

fn post(http: &reqwest::Client, url: Url, body: &Value) -> RequestBuilder {
    http.post(url).header(CONTENT_TYPE, "application/json").body(body.to_string())
}

async fn ask(request: RequestBuilder, doing: &str) -> Result<Answer> {
    let response = request.send().await.map_err(|source| unanswered(doing, source))?;
    let status = response.status();
    let url = response.url().clone();
    let bytes = body(response, doing).await?;
    let answer: Option<Answer> = serde_json::from_slice(&bytes).ok();
    match answer {
        Some(answer) if status.is_success() => Ok(answer),
        // A session that is no more is said so with a status of its own by some.
        Some(answer) if status.as_u16() == 401 && SESSION_GONE.contains(&answer.code()) => Ok(answer),
        answer => {
            let said = answer.map_or_else(String::new, |answer| format!(": {}", answer.said()));
            let (kind, hint) = match status.as_u16() {
                401 | 403 | 404 => (ErrorKind::BadConfig, ": are SNOWFLAKE_ACCOUNT and SNOWFLAKE_URL right?"),
                200 => (ErrorKind::BadConfig, ", which is no answer of Snowflake: is SNOWFLAKE_URL right?"),
                _ => (ErrorKind::Unavailable, ""),
            };
            let place = url.origin().ascii_serialization();
            Err(Error::new(kind, format!("cannot {doing}: {place} answered {status}{said}{hint}")))
        }
    }
}

async fn body(response: Response, doing: &str) -> Result<Bytes> {
    response.bytes().await.map_err(|source| unanswered(doing, source))
}

fn unanswered(doing: &str, source: reqwest::Error) -> Error {
    // The address can carry a signature.
    let source = source.without_url();
    Error::with_source(
        ErrorKind::Unavailable,
        format!("cannot {doing}: Snowflake does not answer"),
        Causes::of(&source),
    )
}

/// An error of the network with what lies beneath it, which it does not print by itself.
#[derive(Debug)]
struct Causes(String);

impl Causes {
    fn of(error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(beneath) = cause {
            text = format!("{text}: {beneath}");
            cause = beneath.source();
        }
        Self(text)
    }
}

impl std::fmt::Display for Causes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Causes {}

/// What Snowflake's refusal of a statement means.
fn refusal(doing: &str, answer: &Answer) -> Error {
    let (kind, hint) = match answer.code() {
        code if SESSION_GONE.contains(&code) => (ErrorKind::Unavailable, "the session has ended; try again"),
        "000606" => (ErrorKind::BadConfig, "name a warehouse with SNOWFLAKE_WAREHOUSE"),
        code if NOT_THERE.contains(&code) => {
            (ErrorKind::BadConfig, "make it, or give the role of SNOWFLAKE_ROLE the rights to it")
        }
        "003001" => (ErrorKind::BadConfig, "give the role the rights, or name another with SNOWFLAKE_ROLE"),
        _ => (ErrorKind::BadData, "Snowflake's query history has the statement, under the tag lakebeat"),
    };
    Error::new(kind, format!("cannot {doing}: {}; {hint}", answer.said()))
}

/// Where a file goes. Only a store that takes a plain PUT is served so far.
fn upload_url(doing: &str, data: Data) -> Result<Url> {
    let StageInfo { location_type, presigned_url } = data.stage_info.unwrap_or_default();
    let encrypted = data.encryption_material.is_some_and(|material| !material.is_null());
    let url = presigned_url.filter(|url| !url.is_empty() && location_type == "GCS" && !encrypted);
    let url = url.and_then(|url| Url::parse(&url).ok()).filter(is_private);
    url.ok_or_else(|| {
        let sealed = if encrypted { " with client-side encryption" } else { "" };
        let message = format!(
            "cannot {doing}: this account's stages are on {location_type}{sealed}, where this version cannot upload yet; \
             only stages that hand out presigned URLs are supported"
        );
        Error::new(ErrorKind::BadConfig, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_of_an_account() {
        for (account, url) in [
            ("myorg-account1", "https://myorg-account1.snowflakecomputing.com/"),
            ("MyOrg-My_Account", "https://myorg-my-account.snowflakecomputing.com/"),
            ("xy12345.eu-central-1", "https://xy12345.eu-central-1.snowflakecomputing.com/"),
            ("https://xy12345.snowflakecomputing.com/", "https://xy12345.snowflakecomputing.com/"),
        ] {
            assert_eq!(account_url(account).expect("valid").as_str(), url);
        }
        for wrong in ["", "a b", "a/b", "a@b", "a..b", "-a"] {
            assert_eq!(account_url(wrong).expect_err(wrong).kind(), ErrorKind::BadConfig);
        }
    }

    fn options(url: &str) -> Options {
        Options {
            url: url.parse().expect("a URL"),
            account: "a".to_owned(),
            user: "u".to_owned(),
            password: Secret::new("hunter2"),
            warehouse: None,
            role: None,
            database: "d".to_owned(),
            schema: "s".to_owned(),
        }
    }

    #[test]
    fn a_password_goes_nowhere_in_the_clear() {
        for url in ["http://127.0.0.1:8", "http://localhost:8", "http://[::1]:8", "https://a.snowflakecomputing.com"] {
            let client = Client::new(&options(url)).expect(url);
            assert!(!format!("{client:?}").contains("hunter2"));
        }
        for url in ["http://a.snowflakecomputing.com", "http://10.0.0.1", "ftp://127.0.0.1", "http://localhost.evil"] {
            let error = Client::new(&options(url)).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::BadConfig);
        }
    }

    #[test]
    fn what_a_refusal_means() {
        let kind = |code: &str| {
            let text =
                format!(r#"{{"success": false, "code": "{code}", "message": "no", "data": {{"sqlState": "1"}}}}"#);
            refusal("load", &serde_json::from_str(&text).expect("an answer")).kind()
        };
        assert_eq!(kind("390112"), ErrorKind::Unavailable);
        assert_eq!(kind("003001"), ErrorKind::BadConfig);
        assert_eq!(kind("000606"), ErrorKind::BadConfig);
        assert_eq!(kind("002003"), ErrorKind::BadConfig);
        assert_eq!(kind("100038"), ErrorKind::BadData);
    }

    #[test]
    fn stages_that_are_not_served_are_refused_by_name() {
        let place = |text: &str| upload_url("upload", serde_json::from_str(text).expect("an answer"));
        let gcs = r#"{"stageInfo": {"locationType": "GCS", "presignedUrl": "https://x.test/a?sig=1"}}"#;
        assert_eq!(place(gcs).expect("served").as_str(), "https://x.test/a?sig=1");
        for (text, word) in [
            (r#"{"stageInfo": {"locationType": "S3", "location": "b/p", "creds": {"AWS_KEY_ID": "k"}}}"#, "on S3,"),
            (
                r#"{"stageInfo": {"locationType": "AZURE"}, "encryptionMaterial": {"smkId": 1}}"#,
                "on AZURE with client-side",
            ),
            (r#"{"stageInfo": {"locationType": "GCS", "presignedUrl": ""}}"#, "on GCS,"),
            (r#"{"stageInfo": {"locationType": "GCS", "presignedUrl": "http://x.test/a"}}"#, "on GCS,"),
        ] {
            let error = place(text).expect_err("not served");
            assert_eq!(error.kind(), ErrorKind::BadConfig);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
