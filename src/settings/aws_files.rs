//! The files of AWS's own tools, `~/.aws/credentials` and `~/.aws/config`: one profile of them.
//!
//! Their format: <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>. What needs a program or a browser to get
//! credentials is refused by name, with what to do instead.

use std::collections::BTreeMap;

use crate::output::Fault;

/// The profile that is meant where none is named.
const DEFAULT: &str = "default";
/// What a profile can say of where its credentials come from, and what only AWS's own tools follow.
const UNSUPPORTED: [&str; 5] =
    ["credential_process", "sso_session", "sso_start_url", "source_profile", "credential_source"];

/// The settings of a section, or of a profile of both files.
type Section = BTreeMap<String, String>;

/// One of the two files, read.
#[derive(Debug, Default)]
pub(super) struct AwsFile {
    /// Its name, for messages.
    pub(super) name: String,
    pub(super) text: String,
}

/// What the two files say under one name.
#[derive(Debug, Default)]
pub(super) struct Profile {
    name: String,
    settings: Section,
}

impl Profile {
    /// The profile that somebody has named, or else the default one, which need not be there.
    pub(super) fn find(named: Option<&str>, credentials: &AwsFile, config: &AwsFile) -> anyhow::Result<Self> {
        let name = named.unwrap_or(DEFAULT);
        let (keys, others) = (sections(credentials)?, sections(config)?);
        let in_config = if name == DEFAULT { others.get(DEFAULT) } else { None };
        let in_config = in_config.or_else(|| others.get(&format!("profile {name}")));
        let found = [in_config, keys.get(name)];
        if named.is_some() && found == [None, None] {
            let message = format!(
                "AWS_PROFILE is \"{name}\", but neither {} nor {} has it: name one that is there, or add it with \
                 `aws configure --profile {name}`",
                credentials.name, config.name
            );
            return Err(Fault::usage(message).into());
        }
        // What both have is taken from the file of the keys.
        let settings = found.into_iter().flatten().flat_map(Clone::clone).collect();
        Ok(Self { name: name.to_owned(), settings })
    }

    /// One of its settings.
    pub(super) fn get(&self, name: &str) -> Option<&String> {
        self.settings.get(name).filter(|value| !value.is_empty())
    }

    /// The address that requests go to in place of AWS's own.
    pub(super) fn endpoint(&self) -> anyhow::Result<Option<&String>> {
        let endpoint = self.get("endpoint_url");
        if endpoint.is_none() && self.get("services").is_some() {
            let message = format!(
                "the AWS profile \"{}\" has addresses for single services, which are not read here: set \
                 AWS_ENDPOINT_URL_S3, or endpoint_url in the profile",
                self.name
            );
            return Err(Fault::usage(message).into());
        }
        Ok(endpoint)
    }

    /// How it gets at credentials, by the names of the store's settings; nothing where it says nothing of them.
    pub(super) fn credentials(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let names: &[&str] = if self.get("role_arn").is_some() {
            &["role_arn", "web_identity_token_file", "role_session_name"]
        } else {
            &["aws_access_key_id", "aws_secret_access_key", "aws_session_token"]
        };
        let is_complete = names[..2].iter().all(|name| self.get(name).is_some());
        if is_complete {
            let store_name = |name: &str| format!("aws_{}", name.trim_start_matches("aws_"));
            return Ok(names.iter().filter_map(|name| Some((store_name(name), self.get(name)?.clone()))).collect());
        }
        if let Some(way) = UNSUPPORTED.iter().find(|way| self.get(way).is_some()) {
            let message = format!(
                "the AWS profile \"{0}\" gets its credentials by {way}, which is not followed here: put what \
                 `aws configure export-credentials --profile {0} --format env` prints into the environment",
                self.name
            );
            return Err(Fault::usage(message).into());
        }
        match (self.get(names[0]), self.get(names[1])) {
            (None, None) => Ok(BTreeMap::new()),
            (given, _) => {
                let (given, missing) = if given.is_some() { (names[0], names[1]) } else { (names[1], names[0]) };
                Err(Fault::usage(format!("the AWS profile \"{}\" has {given}, but no {missing}", self.name)).into())
            }
        }
    }
}

/// The sections of a file by name. The lines below a setting that is a list of its own are indented; none of them is of use
/// here. No line's text gets into a message: it may be a secret.
fn sections(file: &AwsFile) -> anyhow::Result<BTreeMap<String, Section>> {
    let mut sections = BTreeMap::new();
    let mut current: Option<&mut Section> = None;
    for (line, number) in file.text.lines().zip(1..) {
        let is_indented = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || is_indented || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some((name, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let name = name.replace(['"', '\''], "").split_whitespace().collect::<Vec<_>>().join(" ");
            current = Some(sections.entry(name).or_insert_with(Section::new));
        } else if let (Some((name, value)), Some(section)) = (line.split_once('='), current.as_deref_mut()) {
            let value = value.split(" #").next().unwrap_or_default();
            section.insert(name.trim().to_lowercase(), value.trim().to_owned());
        } else {
            let message = format!("line {number} of {} is neither a [section] nor a setting = of one", file.name);
            return Err(Fault::usage(message).into());
        }
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const CREDENTIALS: &str = "\
# keys
[default]
aws_access_key_id = AKIA # mine
aws_secret_access_key=x/y+z=
[ half ]
aws_secret_access_key = planted
[both]
aws_access_key_id = of-keys
aws_secret_access_key = s
aws_session_token = t
";
    const CONFIG: &str = "\
[default]
region = eu-central-1
s3 =
    addressing_style = path
    region = nonsense
[profile both]
aws_access_key_id = of-config
REGION = us-west-2
endpoint_url = https://s3.example.com
[profile \"two words\"]
region = eu-north-1
[profile sso]
sso_session = work
sso_account_id = 1
[profile role]
role_arn = arn:aws:iam::1:role/r
source_profile = default
[profile pod]
role_arn = arn:aws:iam::1:role/r
web_identity_token_file = /token
[profile tool]
credential_process = /bin/planted
[sso-session work]
sso_start_url = https://example.com
";

    fn file(name: &str, text: &str) -> AwsFile {
        AwsFile { name: name.to_owned(), text: text.to_owned() }
    }

    fn check(named: Option<&str>, expected: Expect) {
        let profile = Profile::find(named, &file("~/credentials", CREDENTIALS), &file("~/config", CONFIG));
        let shown = profile.and_then(|profile| {
            let region = profile.get("region").map_or("-", String::as_str);
            let words = profile.credentials()?.into_iter().map(|(name, value)| format!(" {name}={value}"));
            Ok(format!("{region}{}", words.collect::<String>()))
        });
        expected.assert_eq(&shown.unwrap_or_else(|error| error.to_string()));
    }

    #[test]
    fn keys_and_regions_of_profiles() {
        check(None, expect!["eu-central-1 aws_access_key_id=AKIA aws_secret_access_key=x/y+z="]);
        check(Some("both"), expect!["us-west-2 aws_access_key_id=of-keys aws_secret_access_key=s aws_session_token=t"]);
        check(Some("two words"), expect!["eu-north-1"]);
        check(Some("pod"), expect!["- aws_role_arn=arn:aws:iam::1:role/r aws_web_identity_token_file=/token"]);
    }

    #[test]
    fn what_is_not_followed_is_named() {
        check(
            Some("sso"),
            expect![[
                r#"the AWS profile "sso" gets its credentials by sso_session, which is not followed here: put what `aws configure export-credentials --profile sso --format env` prints into the environment"#
            ]],
        );
        check(
            Some("role"),
            expect![[
                r#"the AWS profile "role" gets its credentials by source_profile, which is not followed here: put what `aws configure export-credentials --profile role --format env` prints into the environment"#
            ]],
        );
        check(
            Some("tool"),
            expect![[
                r#"the AWS profile "tool" gets its credentials by credential_process, which is not followed here: put what `aws configure export-credentials --profile tool --format env` prints into the environment"#
            ]],
        );
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        check(Some("half"), expect![[r#"the AWS profile "half" has aws_secret_access_key, but no aws_access_key_id"#]]);
        check(
            Some("none"),
            expect![[
                r#"AWS_PROFILE is "none", but neither ~/credentials nor ~/config has it: name one that is there, or add it with `aws configure --profile none`"#
            ]],
        );
        for text in ["key = planted", "[default]\nplanted"] {
            let error = sections(&file("~/credentials", text)).expect_err("no such line");
            let shown = error.to_string();
            assert!(shown.contains(" of ~/credentials is neither") && !shown.contains("planted"), "{shown}");
        }
    }
}
