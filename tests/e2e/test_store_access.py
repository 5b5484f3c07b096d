"""How a store is reached: a certificate of its own, the files of AWS's tools, and the roles of machines, containers and pods."""

import json
import ssl
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from messages import simulate
from minio_server import SecureMinio
from program import check_refused, run, run_ok
from secure_kafka import authority

WRONG = 2


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    server = SecureMinio(tmp_path_factory.mktemp("secure") / "minio").start()
    yield server
    server.end()


def test_a_store_with_an_authority_of_its_own(secure, tmp_path, kafka, place, seed):
    simulate(kafka.address, tmp_path, 50, seed, topic=place)
    env = secure.environment(place)
    ingest = ("ingest", "--until-end", "--json", "--brokers", kafka.address, "--topic", place)
    unknown = run(*ingest, cwd=tmp_path, env=env)
    check_refused(unknown, WRONG, f"s3://{place}", "certificate is not accepted", "AWS_CA_BUNDLE", "s3.ca_file")
    another = {"AWS_CA_BUNDLE": str(authority(tmp_path / "another") / "ca.pem")}
    check_refused(run(*ingest, cwd=tmp_path, env=env | another), WRONG, "certificate is not accepted")

    # The bucket is made on the same way.
    ended = run_ok(*ingest, cwd=tmp_path, env=env | {"AWS_CA_BUNDLE": str(secure.authority)})
    assert ended.json["rows"] + ended.json["dead_letters"] == 50
    (tmp_path / "lakebeat.toml").write_text(f'[s3]\nca_file = "{secure.authority}"\n')
    assert run_ok("verify", "--json", cwd=tmp_path, env=env).json["faults"] == []


def test_plain_http_to_a_store_with_tls(secure, tmp_path, place):
    env = secure.environment(place) | {"MINIO_ENDPOINT": secure.endpoint.replace("https", "http")}
    ended = run("table", "ls", cwd=tmp_path, env=env)
    assert ended.status != 0 and "HTTPS" in ended.err, ended


# The files of AWS's own tools.


@pytest.fixture
def profiles(minio, place, tmp_path):
    """A home folder with both files: keys in the default profile, and a session's keys and an address in another."""
    minio.make_bucket(place)
    limited = minio.limited_to(place)
    home = tmp_path / "home"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws" / "credentials").write_text(
        f"""\
[default]
aws_access_key_id = {minio.access_key}
aws_secret_access_key = {minio.secret_key}

[session]
aws_access_key_id={limited["MINIO_ACCESS_KEY"]}
aws_secret_access_key={limited["MINIO_SECRET_KEY"]}
aws_session_token={limited["LAKEBEAT_S3_SESSION_TOKEN"]}

[stale]
aws_access_key_id=planted-key
aws_secret_access_key=planted-secret
"""
    )
    (home / ".aws" / "config").write_text(
        f"""\
[profile session]
region = us-east-1
endpoint_url = {minio.endpoint}
s3 =
    max_concurrent_requests = 20

[profile sso]
sso_session = work
sso_account_id = 1

[sso-session work]
sso_start_url = https://example.com/start
"""
    )
    return {"HOME": str(home), "LAKEBEAT_LAKE": f"s3://{place}"}


def test_keys_from_the_default_profile(minio, profiles, tmp_path):
    run_ok("table", "ls", cwd=tmp_path, env=profiles | {"AWS_ENDPOINT_URL": minio.endpoint})


def test_keys_region_and_address_from_a_profile(profiles, tmp_path):
    run_ok("table", "ls", cwd=tmp_path, env=profiles | {"AWS_PROFILE": "session"})


def test_files_elsewhere(profiles, tmp_path):
    (tmp_path / "home" / ".aws").rename(tmp_path / "home" / "elsewhere")
    env = profiles | {"AWS_PROFILE": "session", "AWS_SHARED_CREDENTIALS_FILE": "~/elsewhere/credentials"}
    run_ok("table", "ls", cwd=tmp_path, env=env | {"AWS_CONFIG_FILE": str(tmp_path / "home" / "elsewhere" / "config")})


def test_the_environment_wins_over_a_profile(minio, profiles, tmp_path):
    env = profiles | {"AWS_PROFILE": "stale", "AWS_ENDPOINT_URL": minio.endpoint}
    ended = run("table", "ls", cwd=tmp_path, env=env)
    check_refused(ended, WRONG, "InvalidAccessKeyId")
    assert "planted-secret" not in ended.err
    keys = {"AWS_ACCESS_KEY_ID": minio.access_key, "AWS_SECRET_ACCESS_KEY": minio.secret_key}
    run_ok("table", "ls", cwd=tmp_path, env=env | keys)


def test_a_server_of_ones_own_is_not_asked_with_keys_that_happen_to_lie_there(minio, profiles, tmp_path, place):
    env = {"HOME": profiles["HOME"], "MINIO_ENDPOINT": minio.endpoint, "MINIO_BUCKET": place}
    check_refused(run("table", "ls", cwd=tmp_path, env=env), WRONG, "MINIO_ACCESS_KEY")


@pytest.mark.parametrize(("profile", "said"), [("sso", "sso_session"), ("nobody", "/.aws/config")])
def test_a_profile_that_does_not_do(profiles, tmp_path, profile, said):
    check_refused(run("table", "ls", cwd=tmp_path, env=profiles | {"AWS_PROFILE": profile}), WRONG, profile, said)


# Roles.

TOKEN, ROLE = "a-token-of-the-machine", "a-role"


class Roles(BaseHTTPRequestHandler):
    """Gives credentials to machines, containers and pods as AWS does, each in its own way. They are in `server.keys`."""

    def do_PUT(self):
        wanted = "X-aws-ec2-metadata-token-ttl-seconds" in self.headers and self.path == "/latest/api/token"
        self.answer(TOKEN if wanted else None)

    def do_GET(self):
        role = "/latest/meta-data/iam/security-credentials/"
        if self.path == "/container" and self.headers["Authorization"] == TOKEN:
            self.answer(json.dumps(self.fields()))
        elif self.path == role and self.headers["X-aws-ec2-metadata-token"] == TOKEN:
            self.answer(ROLE)
        elif self.path == role + ROLE and self.headers["X-aws-ec2-metadata-token"] == TOKEN:
            self.answer(json.dumps(self.fields()))
        else:
            self.answer(None)

    def do_POST(self):
        asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        wanted = {"Action": "AssumeRoleWithWebIdentity", "RoleArn": ROLE, "WebIdentityToken": TOKEN}
        fields = self.fields() | {"SessionToken": self.fields()["Token"]}
        fields = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items() if name != "Token")
        result = "AssumeRoleWithWebIdentityResult"
        body = f"<Response><{result}><Credentials>{fields}</Credentials></{result}></Response>"
        self.answer(body if wanted.items() <= asked.items() else None)

    def fields(self):
        keys = self.server.keys
        return {
            "AccessKeyId": keys["MINIO_ACCESS_KEY"],
            "SecretAccessKey": keys["MINIO_SECRET_KEY"],
            "Token": keys["LAKEBEAT_S3_SESSION_TOKEN"],
            "Expiration": "2099-01-01T00:00:00Z",
        }

    def answer(self, body):
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body or "")))
        self.end_headers()
        self.wfile.write((body or "").encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def roles(tmp_path):
    """Starts a server of roles for a store and a bucket; returns its address, and the environment of whoever asks it."""
    servers = []

    def start(store, bucket, tls=None):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Roles)
        server.keys = store.limited_to(bucket)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        (tmp_path / "token").write_text(TOKEN)
        env = {"HOME": str(tmp_path), "LAKEBEAT_LAKE": f"s3://{bucket}", "AWS_ENDPOINT_URL": store.endpoint}
        return f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}", env

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_role_of_a_machine(minio, place, roles, tmp_path):
    minio.make_bucket(place)
    address, env = roles(minio, place)
    run_ok("table", "ls", cwd=tmp_path, env=env | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": address})


def test_a_machine_without_a_role(minio, place, roles, tmp_path):
    address, env = roles(minio, place)
    ended = run("table", "ls", cwd=tmp_path, env=env | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{address}/nowhere"})
    check_refused(ended, 3, f"s3://{place}", "AWS_ACCESS_KEY_ID")


def test_the_role_of_a_container(minio, place, roles, tmp_path):
    minio.make_bucket(place)
    address, env = roles(minio, place)
    env |= {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{address}/container"}
    check_refused(run("table", "ls", cwd=tmp_path, env=env), WRONG, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
    env |= {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token")}
    run_ok("table", "ls", cwd=tmp_path, env=env)


def test_the_role_of_a_pod(secure, minio, place, roles, tmp_path):
    """Its token is exchanged for credentials; that goes by TLS alone, with the same authorities as to the store."""
    minio.make_bucket(place)
    address, env = roles(minio, place, tls=secure.certificate)
    env |= {"AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token")}
    check_refused(run("table", "ls", cwd=tmp_path, env=env), WRONG, "AWS_ROLE_ARN")
    env |= {"AWS_ROLE_ARN": ROLE, "AWS_ENDPOINT_URL_STS": address, "AWS_CA_BUNDLE": str(secure.authority)}
    run_ok("table", "ls", cwd=tmp_path, env=env)
