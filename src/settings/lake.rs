//! Where the lake lies, and by which credentials it is reached.

use std::collections::BTreeMap;
use std::path::Path;

use lakehouse::StorageOptions;
use url::Url;

use super::aws_files::{AwsFile, Profile};
use super::layers::{Layers, Setting};
use crate::output::Fault;

const LAKE: Setting = Setting { key: "lake", variables: &["LAKEBEAT_LAKE"] };
const ENDPOINT: Setting = Setting {
    key: "s3.endpoint",
    variables: &["LAKEBEAT_S3_ENDPOINT", "MINIO_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"],
};
/// Only these say that the lake is a bucket: an address for AWS's own tools must not move it.
const MINIO_ENDPOINT: Setting = Setting { key: "s3.endpoint", variables: &["LAKEBEAT_S3_ENDPOINT", "MINIO_ENDPOINT"] };
const BUCKET: Setting = Setting { key: "s3.bucket", variables: &["LAKEBEAT_S3_BUCKET", "MINIO_BUCKET"] };
const REGION: Setting = Setting {
    key: "s3.region",
    variables: &["LAKEBEAT_S3_REGION", "MINIO_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"],
};
const ACCESS_KEY: Setting =
    Setting { key: "s3.access_key", variables: &["LAKEBEAT_S3_ACCESS_KEY", "MINIO_ACCESS_KEY"] };
const SECRET_KEY: Setting =
    Setting { key: "s3.secret_key", variables: &["LAKEBEAT_S3_SECRET_KEY", "MINIO_SECRET_KEY"] };
const SESSION_TOKEN: Setting = Setting { key: "s3.session_token", variables: &["LAKEBEAT_S3_SESSION_TOKEN"] };
const CA_FILE: Setting = Setting { key: "s3.ca_file", variables: &["LAKEBEAT_S3_CA_FILE", "AWS_CA_BUNDLE"] };

// What follows are AWS's own names, which have no key in our file.
const AWS_ACCESS_KEY: Setting = Setting { key: "", variables: &["AWS_ACCESS_KEY_ID"] };
const AWS_SECRET_KEY: Setting = Setting { key: "", variables: &["AWS_SECRET_ACCESS_KEY"] };
const AWS_SESSION_TOKEN: Setting = Setting { key: "", variables: &["AWS_SESSION_TOKEN"] };
const AWS_PROFILE: Setting = Setting { key: "", variables: &["AWS_PROFILE"] };
const AWS_CREDENTIALS_FILE: Setting = Setting { key: "", variables: &["AWS_SHARED_CREDENTIALS_FILE"] };
const AWS_CONFIG_FILE: Setting = Setting { key: "", variables: &["AWS_CONFIG_FILE"] };
const HOME: Setting = Setting { key: "", variables: &["HOME"] };
/// Where an instance is asked for its role, and a token for the credentials of one, if not at the usual addresses.
const METADATA_ENDPOINT: Setting = Setting { key: "", variables: &["AWS_EC2_METADATA_SERVICE_ENDPOINT"] };
const STS_ENDPOINT: Setting = Setting { key: "", variables: &["AWS_ENDPOINT_URL_STS"] };
/// A role in place of keys: that of a Kubernetes service account, or of a container.
const AWS_ROLES: [Setting; 6] = [
    Setting { key: "", variables: &["AWS_WEB_IDENTITY_TOKEN_FILE"] },
    Setting { key: "", variables: &["AWS_ROLE_ARN"] },
    Setting { key: "", variables: &["AWS_ROLE_SESSION_NAME"] },
    Setting { key: "", variables: &["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] },
    Setting { key: "", variables: &["AWS_CONTAINER_CREDENTIALS_FULL_URI"] },
    Setting { key: "", variables: &["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] },
];
/// Without the second the store passes over the first, and asks for another role.
const BOTH_OR_NONE: [[&str; 2]; 2] = [
    ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"],
    ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"],
];

/// What has a key in `lakebeat.toml`.
pub(super) const ALL: &[&Setting] =
    &[&LAKE, &ENDPOINT, &BUCKET, &REGION, &ACCESS_KEY, &SECRET_KEY, &SESSION_TOKEN, &CA_FILE];

/// The lake's URL: what is set, or the bucket of the replaced pipeline's settings, or a folder in the data folder.
pub(super) fn read(flag: Option<&String>, layers: &Layers, data_dir: &Path) -> anyhow::Result<(Url, StorageOptions)> {
    let set: Option<String> = layers.pick(("--lake", flag), &LAKE)?;
    let url = match set {
        Some(text) => lake_url(&text)?,
        None if pick(layers, &MINIO_ENDPOINT)?.is_some() => bucket_url(layers)?,
        None => folder_url(&data_dir.join("lake"))?,
    };
    with_storage(url, layers)
}

/// Another lake than the one that is worked on. A bucket of it is reached by the same settings.
pub(super) fn other(text: &str, layers: &Layers) -> anyhow::Result<(Url, StorageOptions)> {
    with_storage(lake_url(text)?, layers)
}

fn with_storage(url: Url, layers: &Layers) -> anyhow::Result<(Url, StorageOptions)> {
    let mut storage = StorageOptions::default();
    if matches!(url.scheme(), "s3" | "s3a") {
        let profile = profile(layers)?;
        storage.settings = s3_settings(layers, &profile)?;
        storage.ca_file = pick(layers, &CA_FILE)?.or(profile.get("ca_bundle").cloned()).map(Into::into);
    }
    Ok((url, storage))
}

fn pick(layers: &Layers, setting: &Setting) -> anyhow::Result<Option<String>> {
    layers.pick(("", None), setting)
}

fn bucket_url(layers: &Layers) -> anyhow::Result<Url> {
    let bucket = pick(layers, &BUCKET)?.ok_or_else(|| {
        Fault::usage("MINIO_ENDPOINT is set, but no bucket: set MINIO_BUCKET, or the lake with --lake s3://bucket")
    })?;
    // As a name before as a URL: one that no URL can hold would be complained about as a URL.
    check_bucket(&bucket)?;
    Ok(Url::parse(&format!("s3://{bucket}"))?)
}

/// What S3 takes for a name. Asking the server for another one only gets an answer that says less.
fn check_bucket(name: &str) -> anyhow::Result<()> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_valid = (3..=63).contains(&name.len())
        && name.starts_with(is_plain)
        && name.ends_with(is_plain)
        && name.chars().all(|c| is_plain(c) || matches!(c, '-' | '.'));
    if is_valid {
        return Ok(());
    }
    let message = format!(
        "no bucket can be called \"{name}\": it has 3 to 63 small letters, digits, dashes and dots, and begins and ends \
         with a letter or digit; name another with MINIO_BUCKET or --lake"
    );
    Err(Fault::usage(message).into())
}

/// The store's settings, by the names that `object_store` knows.
fn s3_settings(layers: &Layers, profile: &Profile) -> anyhow::Result<BTreeMap<String, String>> {
    let mut settings = credentials(layers, profile)?;
    let is_without = !settings.contains_key("aws_access_key_id")
        && !AWS_ROLES.iter().any(|role| settings.contains_key(&store_name(role)));
    // Without any of these the store asks for the role of the EC2 instance, which a server of one's own has not.
    if is_without && pick(layers, &MINIO_ENDPOINT)?.is_some() {
        let message =
            "the lake is in a bucket, but there are no credentials: set MINIO_ACCESS_KEY and MINIO_SECRET_KEY";
        return Err(Fault::usage(message).into());
    }
    let mut set = |name: &str, value: String| settings.insert(name.to_owned(), value);
    let region = pick(layers, &REGION)?.or(profile.get("region").cloned());
    set("aws_region", region.unwrap_or_else(|| "us-east-1".to_owned()));
    for (name, setting) in [("aws_metadata_endpoint", &METADATA_ENDPOINT), ("aws_endpoint_url_sts", &STS_ENDPOINT)] {
        if let Some(address) = pick(layers, setting)? {
            set(name, address.trim_end_matches('/').to_owned());
        }
    }
    if let Some(endpoint) = pick(layers, &ENDPOINT)?.or(profile.endpoint()?.cloned()) {
        let endpoint = endpoint_url(&endpoint)?;
        set("aws_allow_http", (endpoint.scheme() == "http").to_string());
        set("aws_virtual_hosted_style_request", "false".to_owned());
        set("aws_endpoint", endpoint.as_str().trim_end_matches('/').to_owned());
    }
    Ok(settings)
}

/// The profile of AWS's own tools that is named, or else their default one. A server of one's own is not asked with keys of
/// somebody's AWS account that happen to lie there: its own are set, or a profile is named.
fn profile(layers: &Layers) -> anyhow::Result<Profile> {
    let named = pick(layers, &AWS_PROFILE)?;
    let is_with_own_keys = pick(layers, &ACCESS_KEY)?.is_some() || pick(layers, &SECRET_KEY)?.is_some();
    if is_with_own_keys || (named.is_none() && pick(layers, &MINIO_ENDPOINT)?.is_some()) {
        return Ok(Profile::default());
    }
    let credentials = aws_file(layers, &AWS_CREDENTIALS_FILE, "credentials")?;
    Profile::find(named.as_deref(), &credentials, &aws_file(layers, &AWS_CONFIG_FILE, "config")?)
}

/// One that a variable names has to be there; the one in the home folder need not.
fn aws_file(layers: &Layers, setting: &Setting, name: &str) -> anyhow::Result<AwsFile> {
    let home = pick(layers, &HOME)?.unwrap_or_default();
    let (path, may_be_missing) = match pick(layers, setting)? {
        Some(set) => (set.strip_prefix("~/").map_or_else(|| set.clone(), |rest| format!("{home}/{rest}")), false),
        None if home.is_empty() => return Ok(AwsFile { name: format!("~/.aws/{name}"), ..AwsFile::default() }),
        None => (format!("{home}/.aws/{name}"), true),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(AwsFile { name: path, text }),
        Err(error) if may_be_missing && error.kind() == std::io::ErrorKind::NotFound => {
            Ok(AwsFile { name: path, ..AwsFile::default() })
        }
        Err(error) => {
            Err(Fault::usage(format!("cannot read {path}: {error}; {} names another", setting.variables[0])).into())
        }
    }
}

/// `host:port` is how MinIO's own clients write it.
fn endpoint_url(text: &str) -> anyhow::Result<Url> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let bad = |why: &str| {
        let message = format!(
            "the store's address is \"{text}\": {why}; write http://host:port or https://host:port (MINIO_ENDPOINT, \
             AWS_ENDPOINT_URL, or endpoint_url of a profile)"
        );
        Fault::usage(message)
    };
    let url = Url::parse(&full).map_err(|error| bad(&error.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Fault::usage(
            "MINIO_ENDPOINT holds a user or a password: set MINIO_ACCESS_KEY and MINIO_SECRET_KEY",
        )
        .into());
    }
    match url.scheme() {
        "http" | "https" if url.path() == "/" => Ok(url),
        "http" | "https" => Err(bad("a path has no place in it, the bucket is set with MINIO_BUCKET").into()),
        other => Err(bad(&format!("{other}:// is not what an S3 server speaks")).into()),
    }
}

/// Our key and secret, or else AWS's, in the order of AWS's own tools. Never one of each: they would not fit.
fn credentials(layers: &Layers, profile: &Profile) -> anyhow::Result<BTreeMap<String, String>> {
    let ours = [("MINIO_ACCESS_KEY", &ACCESS_KEY), ("MINIO_SECRET_KEY", &SECRET_KEY)];
    let of_aws = [("AWS_ACCESS_KEY_ID", &AWS_ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", &AWS_SECRET_KEY)];
    let mut settings = BTreeMap::new();
    for (pair, token) in [(ours, &SESSION_TOKEN), (of_aws, &AWS_SESSION_TOKEN)] {
        let [(access_name, access), (secret_name, secret)] = pair;
        let (access, secret) = match (pick(layers, access)?, pick(layers, secret)?) {
            (None, None) => continue,
            (Some(access), Some(secret)) => (access, secret),
            (Some(_), None) => return Err(without(access_name, secret_name)),
            (None, Some(_)) => return Err(without(secret_name, access_name)),
        };
        settings.insert("aws_access_key_id".to_owned(), access);
        settings.insert("aws_secret_access_key".to_owned(), secret);
        settings.extend(pick(layers, token)?.map(|token| ("aws_session_token".to_owned(), token)));
        return Ok(settings);
    }
    settings = profile.credentials()?;
    if !settings.is_empty() {
        return Ok(settings);
    }
    for role in &AWS_ROLES {
        settings.extend(pick(layers, role)?.map(|value| (store_name(role), value)));
    }
    let is_set = |name: &str| settings.contains_key(&name.to_lowercase());
    match BOTH_OR_NONE.iter().find(|[given, needed]| is_set(given) && !is_set(needed)) {
        Some([given, missing]) => Err(without(given, missing)),
        None => Ok(settings),
    }
}

fn without(given: &str, missing: &str) -> anyhow::Error {
    Fault::usage(format!("{given} is set, but {missing} is not: set both")).into()
}

/// The store calls a setting as AWS calls the variable, in small letters.
fn store_name(setting: &Setting) -> String {
    setting.variables[0].to_lowercase()
}

/// A URL, or a folder's path.
fn lake_url(text: &str) -> anyhow::Result<Url> {
    if text.contains("://") {
        let url = Url::parse(text).map_err(|error| Fault::usage(format!("the lake \"{text}\" is no URL: {error}")))?;
        if matches!(url.scheme(), "s3" | "s3a") {
            check_bucket(url.host_str().unwrap_or_default())?;
        }
        return Ok(url);
    }
    folder_url(Path::new(text))
}

fn folder_url(path: &Path) -> anyhow::Result<Url> {
    let absolute = std::path::absolute(path)?;
    Url::from_directory_path(&absolute)
        .map_err(|()| Fault::usage(format!("{} cannot be a lake's folder", absolute.display())).into())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// The settings of an s3:// lake as `name=value` words; `variables` as they stand in the environment.
    fn check(variables: &[(&str, &str)], expected: Expect) {
        let layers = Layers::of_environment(variables);
        let shown = match read(None, &layers, Path::new("/data")) {
            Ok((url, storage)) => {
                let settings = storage.settings.iter().map(|(name, value)| format!(" {name}={value}"));
                let ca_file = storage.ca_file.iter().map(|path| format!(" ca_file={}", path.display()));
                format!("{url}{}", settings.chain(ca_file).collect::<String>())
            }
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn a_bucket_of_minio() {
        let minio = [("MINIO_ENDPOINT", "localhost:9002/"), ("MINIO_BUCKET", "spotify")];
        let keys = [("MINIO_ACCESS_KEY", "admin"), ("MINIO_SECRET_KEY", "secret")];
        check(
            &[&minio[..], &keys[..]].concat(),
            expect![
                "s3://spotify aws_access_key_id=admin aws_allow_http=true aws_endpoint=http://localhost:9002 aws_region=us-east-1 aws_secret_access_key=secret aws_virtual_hosted_style_request=false"
            ],
        );
        // The keys of somebody's AWS account, which are there as well, are not for this store.
        let aws = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_SESSION_TOKEN", "y")];
        check(
            &[&minio[..], &keys[..], &aws[..]].concat(),
            expect![
                "s3://spotify aws_access_key_id=admin aws_allow_http=true aws_endpoint=http://localhost:9002 aws_region=us-east-1 aws_secret_access_key=secret aws_virtual_hosted_style_request=false"
            ],
        );
        check(
            &minio,
            expect!["the lake is in a bucket, but there are no credentials: set MINIO_ACCESS_KEY and MINIO_SECRET_KEY"],
        );
        check(
            &[&minio[..], &keys[..1]].concat(),
            expect!["MINIO_ACCESS_KEY is set, but MINIO_SECRET_KEY is not: set both"],
        );
        check(
            &minio[..1],
            expect!["MINIO_ENDPOINT is set, but no bucket: set MINIO_BUCKET, or the lake with --lake s3://bucket"],
        );
    }

    #[test]
    fn a_bucket_of_aws() {
        let lake = ("LAKEBEAT_LAKE", "s3://mine/lake");
        let region = ("AWS_DEFAULT_REGION", "eu-central-1");
        check(
            &[lake, region, ("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_SESSION_TOKEN", "y")],
            expect![
                "s3://mine/lake aws_access_key_id=AKIA aws_region=eu-central-1 aws_secret_access_key=x aws_session_token=y"
            ],
        );
        check(
            &[lake, ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")],
            expect![
                "s3://mine/lake aws_region=us-east-1 aws_role_arn=arn:aws:iam::1:role/r aws_web_identity_token_file=/token"
            ],
        );
        check(
            &[lake, ("AWS_PROFILE", "work")],
            expect![[
                r#"AWS_PROFILE is "work", but neither ~/.aws/credentials nor ~/.aws/config has it: name one that is there, or add it with `aws configure --profile work`"#
            ]],
        );
        check(
            &[lake, ("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/keys")],
            expect![
                "cannot read /nowhere/keys: No such file or directory (os error 2); AWS_SHARED_CREDENTIALS_FILE names another"
            ],
        );
        check(
            &[lake, ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials")],
            expect![
                "AWS_CONTAINER_CREDENTIALS_FULL_URI is set, but AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE is not: set both"
            ],
        );
        // The role of the machine, through an address within a network of one's own, with an authority of its own.
        check(
            &[lake, ("AWS_ENDPOINT_URL_S3", "https://s3.example.com/"), ("AWS_CA_BUNDLE", "/ca.pem")],
            expect![
                "s3://mine/lake aws_allow_http=false aws_endpoint=https://s3.example.com aws_region=us-east-1 aws_virtual_hosted_style_request=false ca_file=/ca.pem"
            ],
        );
        // An address for AWS's own tools does not move the lake.
        check(&[("AWS_ENDPOINT_URL", "http://localhost:4566")], expect!["file:///data/lake/"]);
    }
}
