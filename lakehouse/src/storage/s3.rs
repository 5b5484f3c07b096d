//! A lake in a bucket: the store, the bucket if it is missing, and what the server says when it refuses.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer};
use object_store::client::{HttpConnector as _, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};
use url::Url;

use super::StorageOptions;
use crate::error::{Error, ErrorKind, Result};

/// How long a request is repeated before its caller hears of it. Short: every caller that can wait longer does so by
/// itself, and says meanwhile what it waits for. The pauses between are random, so that clients that were cut off together
/// do not come back together.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);
const RETRIES_MAX: usize = 4;
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Where an EC2 instance learns of its role: the first that is asked for.
const INSTANCE_METADATA: &str = "/latest/api/token ";
/// Our own word for that nobody answers there: no server has said it.
const NO_CREDENTIALS: &str = "NoCredentials";
/// Our own word for a certificate that is not accepted, and how the TLS library begins what it says of it.
const BAD_CERTIFICATE: &str = "BadCertificate";
const CERTIFICATE_REFUSED: &str = "invalid peer certificate: ";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One request, with the whole file that it may carry: on a slow line a shorter limit would be met each time anew.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(180);
/// The region that S3 means where none is named.
const DEFAULT_REGION: &str = "us-east-1";

/// A bucket, and what is needed to make it.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    store: Arc<AmazonS3>,
    name: String,
    /// The bucket's own URL, as a server of this kind wants it.
    url: String,
    region: String,
    client: ClientOptions,
}

impl Bucket {
    /// The bucket that the lake's URL names.
    pub(crate) fn new(lake: &Url, options: &StorageOptions) -> Result<Self> {
        let name = lake.host_str().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| {
            Error::new(ErrorKind::BadConfig, format!("{lake} names no bucket: write s3://bucket/path"))
        })?;
        let mut client = ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(REQUEST_TIMEOUT);
        for authority in authorities(options.ca_file.as_deref())? {
            client = client.with_root_certificate(authority);
        }
        let retry = RetryConfig {
            backoff: BackoffConfig { max_backoff: RETRY_PAUSE_MAX, ..BackoffConfig::default() },
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_TIMEOUT,
        };
        // The client's options come first: they would take back what a setting says, such as that plain HTTP will do.
        let mut builder = AmazonS3Builder::new().with_client_options(client.clone()).with_retry(retry);
        builder = builder.with_bucket_name(name);
        for (setting, value) in &options.settings {
            let key: AmazonS3ConfigKey = setting.parse().map_err(|source| {
                Error::with_source(
                    ErrorKind::BadConfig,
                    format!("\"{setting}\" is not a setting of an S3 store"),
                    source,
                )
            })?;
            builder = builder.with_config(key, value);
        }
        let store = builder.build().map_err(|source| {
            Error::with_source(ErrorKind::BadConfig, format!("the S3 settings for {lake} do not fit"), source)
        })?;
        let setting = |name: &str| options.settings.get(name).map(String::as_str);
        let region = setting("aws_region").unwrap_or(DEFAULT_REGION).to_owned();
        let endpoint = setting("aws_endpoint")
            .map_or_else(|| format!("https://s3.{region}.amazonaws.com"), |url| url.trim_end_matches('/').to_owned());
        let is_plain = endpoint.starts_with("http://");
        Ok(Self {
            store: Arc::new(store),
            url: format!("{endpoint}/{name}"),
            name: name.to_owned(),
            region,
            client: client.with_allow_http(is_plain),
        })
    }

    /// The store of what is in the bucket.
    pub(crate) fn store(&self) -> Arc<AmazonS3> {
        self.store.clone()
    }

    /// Makes the bucket. One that somebody else made in the meantime is as good.
    ///
    /// # Errors
    /// `BadConfig` if these credentials may not make it, `Unavailable` if the server does not answer.
    pub(crate) async fn make(&self) -> Result<()> {
        let doing = format!("cannot make the bucket {}", self.name);
        let failed = |source| Error::store(doing.clone(), source);
        let credential = self.store.credentials().get_credential().await.map_err(failed)?;
        let mut request = HttpRequest::new(HttpRequestBody::from(self.constraint().into_bytes()));
        *request.method_mut() = http::Method::PUT;
        *request.uri_mut() = self.url.parse().map_err(|source| {
            Error::with_source(ErrorKind::BadConfig, format!("{} is no address of a bucket", self.url), source)
        })?;
        AwsAuthorizer::new(&credential, "s3", &self.region).authorize(&mut request, None);
        let client = ReqwestConnector::default().connect(&self.client).map_err(failed)?;
        let unanswered = |source| Error::with_source(ErrorKind::Unavailable, doing.clone(), source);
        let answer = client.execute(request).await.map_err(unanswered)?;
        let status = answer.status();
        let body = answer.into_body().bytes().await.map_err(unanswered)?;
        let body = String::from_utf8_lossy(&body);
        let said = Refusal::find(&body);
        if status.is_success() || said.as_ref().is_some_and(|said| said.code == "BucketAlreadyOwnedByYou") {
            tracing::info!(bucket = self.name, "made the bucket");
            return Ok(());
        }
        Err(match said {
            Some(said) => said.into_error(&doing),
            None => Error::new(ErrorKind::Unavailable, format!("{doing}: the server answered {status} {body}")),
        })
    }

    /// Where the bucket is to lie, which S3 wants to hear for every region but its first.
    fn constraint(&self) -> String {
        if self.region == DEFAULT_REGION {
            return String::new();
        }
        format!(
            r#"<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><LocationConstraint>{}</LocationConstraint></CreateBucketConfiguration>"#,
            self.region
        )
    }
}

/// The certificates in a file.
fn authorities(file: Option<&Path>) -> Result<Vec<Certificate>> {
    let Some(file) = file else { return Ok(Vec::new()) };
    let bad = |what: String| {
        let message = format!(
            "{} {what}: name a PEM file of certificates with AWS_CA_BUNDLE, or s3.ca_file in lakebeat.toml",
            file.display()
        );
        Error::new(ErrorKind::BadConfig, message)
    };
    let pem = std::fs::read(file).map_err(|error| bad(format!("cannot be read ({error})")))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| bad(format!("is no PEM file ({error})")))?;
    if found.is_empty() { Err(bad("holds no certificate".to_owned())) } else { Ok(found) }
}

/// What an S3 server says when it refuses: the code and the message of its XML answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    code: String,
    message: String,
}

impl Refusal {
    /// Looks for one in the text of an error, where `object_store` leaves the server's answer as it came.
    pub(crate) fn find(text: &str) -> Option<Self> {
        let between = |tag: &str| {
            let (_, rest) = text.split_once(&format!("<{tag}>"))?;
            rest.split_once(&format!("</{tag}>")).map(|(value, _)| unescape(value))
        };
        if let Some(code) = between("Code") {
            return Some(Self { code, message: between("Message").unwrap_or_default() });
        }
        if let Some((_, said)) = text.rsplit_once(CERTIFICATE_REFUSED) {
            return Some(Self {
                code: BAD_CERTIFICATE.to_owned(),
                message: said.lines().next().unwrap_or_default().to_owned(),
            });
        }
        if text.contains(INSTANCE_METADATA) {
            // Asked for a role when no key is set. Anywhere but on such an instance nobody answers there.
            return Some(Self {
                code: NO_CREDENTIALS.to_owned(),
                message: "no key is set, and no role of an EC2 instance can be asked for here".to_owned(),
            });
        }
        // How object_store tells of the redirect by which S3 answers a request for another region's bucket.
        text.contains("Received redirect without LOCATION").then(|| Self {
            code: "PermanentRedirect".to_owned(),
            message: "the bucket lies in another region".to_owned(),
        })
    }

    /// What it means for the caller; nothing where the HTTP status tells as much.
    pub(crate) fn kind(&self) -> Option<ErrorKind> {
        match self.code.as_str() {
            // An instance that has a role may be refused its credentials for a moment.
            NO_CREDENTIALS => None,
            _ if self.remedy().is_some() => Some(ErrorKind::BadConfig),
            "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded" | "QuotaExceeded" => Some(ErrorKind::StorageFull),
            _ => None,
        }
    }

    /// Whether it says that there is no such bucket.
    pub(crate) fn is_no_bucket(&self) -> bool {
        self.code == "NoSuchBucket"
    }

    /// What a person has to do. Trying again helps with none of these.
    fn remedy(&self) -> Option<&'static str> {
        Some(match self.code.as_str() {
            "InvalidAccessKeyId" => "the access key is not known there: check MINIO_ACCESS_KEY or AWS_ACCESS_KEY_ID",
            "SignatureDoesNotMatch" => {
                "the secret key does not belong to the access key: check MINIO_SECRET_KEY or AWS_SECRET_ACCESS_KEY"
            }
            NO_CREDENTIALS => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or AWS_PROFILE"
            }
            BAD_CERTIFICATE => {
                "name the authority that signed it with AWS_CA_BUNDLE, or s3.ca_file in lakebeat.toml, and the server as \
                 its certificate does"
            }
            "ExpiredToken" | "InvalidToken" | "InvalidTokenId" | "InvalidClientTokenId" => {
                "the session's credentials are not valid (any more): get new ones and set AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
            }
            "AccessDenied" | "AllAccessDisabled" => {
                "these credentials lack the right: s3:ListBucket on the bucket and s3:GetObject, s3:PutObject and \
                 s3:DeleteObject on what is in it are needed, and s3:CreateBucket if it is to be made"
            }
            "AuthorizationHeaderMalformed"
            | "PermanentRedirect"
            | "IllegalLocationConstraintException"
            | "InvalidLocationConstraint"
            | "InvalidRegion"
            | "XMinioInvalidRegion" => "the region is wrong: set AWS_REGION, or s3.region in lakebeat.toml",
            "NoSuchBucket" => "the bucket is gone: make it, or name another with MINIO_BUCKET or --lake",
            "InvalidBucketName" => {
                "a bucket's name has 3 to 63 small letters, digits and dashes: name another with MINIO_BUCKET or --lake"
            }
            "BucketAlreadyExists" => {
                "somebody else owns a bucket of that name: name another with MINIO_BUCKET or --lake"
            }
            "RequestTimeTooSkewed" => "the clocks of this machine and of the store differ: set the right time",
            _ => return None,
        })
    }

    pub(crate) fn into_error(self, doing: &str) -> Error {
        let kind = self.kind().unwrap_or(ErrorKind::Unavailable);
        Error::with_source(kind, doing, self.to_string())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code.as_str() {
            NO_CREDENTIALS => {}
            BAD_CERTIFICATE => f.write_str("the S3 server's certificate is not accepted: ")?,
            code => write!(f, "the S3 server says {code}: ")?,
        }
        f.write_str(self.message.trim_end_matches('.'))?;
        match self.remedy() {
            Some(remedy) => write!(f, " ({remedy})"),
            None => Ok(()),
        }
    }
}

/// The five entities of XML.
fn unescape(text: &str) -> String {
    let mut text = text.to_owned();
    for (entity, character) in
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#39;", "'"), ("&amp;", "&")]
    {
        text = text.replace(entity, character);
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, kind: Option<ErrorKind>, expected: Expect) {
        let found = Refusal::find(text);
        assert_eq!(found.as_ref().and_then(Refusal::kind), kind, "{found:?}");
        expected.assert_eq(&found.map_or_else(|| "nothing".to_owned(), |refusal| refusal.to_string()));
    }

    #[test]
    fn what_the_server_says_and_what_to_do() {
        let body = |code: &str, message: &str| {
            format!(
                "status code: 403 Forbidden: <?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            )
        };
        check(
            &body("InvalidAccessKeyId", "The Access Key Id you provided does not exist in our records."),
            Some(ErrorKind::BadConfig),
            expect![
                "the S3 server says InvalidAccessKeyId: The Access Key Id you provided does not exist in our records (the access key is not known there: check MINIO_ACCESS_KEY or AWS_ACCESS_KEY_ID)"
            ],
        );
        check(
            &body("AuthorizationHeaderMalformed", "expecting &#39;eu-central-1&#39;"),
            Some(ErrorKind::BadConfig),
            expect![
                "the S3 server says AuthorizationHeaderMalformed: expecting 'eu-central-1' (the region is wrong: set AWS_REGION, or s3.region in lakebeat.toml)"
            ],
        );
        check(
            &body("XMinioStorageFull", "full"),
            Some(ErrorKind::StorageFull),
            expect!["the S3 server says XMinioStorageFull: full"],
        );
        check(&body("SlowDown", "later"), None, expect!["the S3 server says SlowDown: later"]);
        check("connection refused", None, expect!["nothing"]);
    }
}
