"""A real MinIO (scripts/setup-minio.sh): for the tests and for the bench."""

import json
import shutil
import ssl
import subprocess
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree

from pyarrow import fs

from lake import Lake
from program import CACHE, Server, free_ports
from secure_kafka import authority, certificate
from waiting import wait_for

PROGRAM = CACHE / "minio" / "bin" / "minio"
ACCESS_KEY, SECRET_KEY = "lakebeat-tests", "not-a-secret-at-all"
REGION = "us-east-1"


class MinioServer(Server):
    """Its objects lie in a folder, and are there again after a stop and a start."""

    def __init__(self, folder, access_key=ACCESS_KEY, secret_key=SECRET_KEY):
        folder.mkdir(parents=True)
        self.port, page = free_ports(2)
        self.endpoint = f"http://127.0.0.1:{self.port}"
        # Whom a client trusts that asks whether it is ready.
        self.trust = None
        self.access_key, self.secret_key = access_key, secret_key
        self.data = folder / "data"
        listen = ["--address", f"127.0.0.1:{self.port}", "--console-address", f"127.0.0.1:{page}"]
        env = {"MINIO_ROOT_USER": access_key, "MINIO_ROOT_PASSWORD": secret_key}
        super().__init__("server", *listen, self.data, cwd=folder, env=env, binary=PROGRAM, name="minio")

    def start(self, seconds=60):
        """Starts it, and waits until it answers."""
        super().start()
        wait_for("MinIO answers", self._is_ready, seconds=seconds, alive=self)
        return self

    def _is_ready(self):
        with urllib.request.urlopen(f"{self.endpoint}/minio/health/ready", timeout=2, context=self.trust) as answer:
            return answer.status == 200

    def environment(self, bucket):
        """The settings that put a lake into a bucket, by the names of the pipeline that Lakebeat replaces."""
        return {
            "MINIO_ENDPOINT": self.endpoint,
            "MINIO_ACCESS_KEY": self.access_key,
            "MINIO_SECRET_KEY": self.secret_key,
            "MINIO_BUCKET": bucket,
        }

    def lake(self, bucket):
        """The lake in a bucket, as other engines read it."""
        options = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
        }
        return Lake(f"s3://{bucket}", options)

    def files(self):
        """Arrow's own view of the buckets."""
        return fs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{self.port}", scheme="http", region=REGION, allow_bucket_creation=True,
            allow_bucket_deletion=True,
            access_key=self.access_key, secret_key=self.secret_key,
        )  # fmt: skip

    def make_bucket(self, bucket):
        self.files().create_dir(bucket)
        return bucket

    def objects(self, bucket):
        """The names of all objects in a bucket."""
        found = self.files().get_file_info(fs.FileSelector(bucket, recursive=True))
        return sorted(one.path.removeprefix(f"{bucket}/") for one in found if one.is_file)

    def newest_commit(self, bucket, table):
        """The name of the newest entry in a table's log, or None. Seen on the server's disk, where each object is a folder:
        that takes no answer of a server that is stopped or stalls, and costs nothing."""
        log = self.data / bucket / table / "_delta_log"
        return max((entry.name for entry in log.glob("*.json")), default=None)

    def limited_to(self, bucket):
        """Credentials that may do everything in `bucket` and nothing anywhere else, as settings of the program."""
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Action": ["s3:*"],
                    "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
                }
            ],
        }
        form = {"Action": "AssumeRole", "Version": "2011-06-15", "Policy": json.dumps(policy)}
        answer = subprocess.run(
            ["curl", "--silent", "--fail-with-body", "--user", f"{self.access_key}:{self.secret_key}",
             "--aws-sigv4", f"aws:amz:{REGION}:sts", "--data", urllib.parse.urlencode(form), self.endpoint],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        found = {field.tag.split("}")[-1]: field.text for field in ElementTree.fromstring(answer).iter()}
        return {
            "MINIO_ENDPOINT": self.endpoint,
            "MINIO_ACCESS_KEY": found["AccessKeyId"],
            "MINIO_SECRET_KEY": found["SecretAccessKey"],
            "LAKEBEAT_S3_SESSION_TOKEN": found["SessionToken"],
        }


class SecureMinio(MinioServer):
    """Behind TLS, with a certificate that an authority of its own has signed."""

    def __init__(self, folder):
        super().__init__(folder)
        self.endpoint = f"https://127.0.0.1:{self.port}"
        self.authority = authority(folder / "authority") / "ca.pem"
        self.trust = ssl.create_default_context(cafile=self.authority)
        self.certificate = certificate(folder, self.authority.parent)
        certificates = folder / "certificates"
        certificates.mkdir()
        shutil.copy(folder / "server.pem", certificates / "public.crt")
        shutil.copy(folder / "server.key", certificates / "private.key")
        self.args += ["--certs-dir", str(certificates)]
