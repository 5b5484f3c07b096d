"""A real Kafka behind TLS and logins, with an authority and a certificate of its own."""

import subprocess

from kafka_server import KafkaServer
from program import free_ports

USER, PASSWORD = "ingest", "planted-pA55/wort"
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

_LISTENERS = """
listeners=PLAINTEXT://127.0.0.1:@PORT@,CONTROLLER://127.0.0.1:@CONTROLLER@,\
SSL://127.0.0.1:{tls},SASL_SSL://127.0.0.1:{sasl_tls},SASL_PLAINTEXT://127.0.0.1:{sasl}
advertised.listeners=PLAINTEXT://127.0.0.1:@PORT@,\
SSL://127.0.0.1:{tls},SASL_SSL://127.0.0.1:{sasl_tls},SASL_PLAINTEXT://127.0.0.1:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,\
SSL:SSL,SASL_SSL:SASL_SSL,SASL_PLAINTEXT:SASL_PLAINTEXT
inter.broker.listener.name=PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_plaintext.sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
"""


class SecureKafka(KafkaServer):
    """Listens five times: without anything (`address`), with TLS (`tls`), with TLS and a login (`sasl_tls`), with a PLAIN
    login alone (`sasl`), and for itself."""

    def __init__(self, folder):
        folder.mkdir(parents=True)
        self.authority = authority(folder / "authority")
        ports = free_ports(3)
        self.tls, self.sasl_tls, self.sasl = (f"127.0.0.1:{port}" for port in ports)
        settings = _LISTENERS.format(
            tls=ports[0], sasl_tls=ports[1], sasl=ports[2], user=USER, password=PASSWORD,
            keystore=certificate(folder, self.authority),
        )  # fmt: skip
        scram = [f"{mechanism}=[name={USER},password={PASSWORD}]" for mechanism in MECHANISMS if mechanism != "PLAIN"]
        super().__init__(folder, extra=settings.splitlines(), scram=scram)

    def login(self, mechanism, **changed):
        """The environment of a client that logs in so."""
        login = {
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": mechanism,
            "KAFKA_SASL_USERNAME": USER,
            "KAFKA_SASL_PASSWORD": PASSWORD,
            "KAFKA_SSL_CA_LOCATION": str(self.authority / "ca.pem"),
        }
        return login | changed


def authority(folder):
    """A folder with the key and the certificate of somebody who signs others."""
    folder.mkdir()
    _openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2", "-subj", f"/CN=authority {folder.name}",
        "-keyout", "ca.key", "-out", "ca.pem", cwd=folder,
    )  # fmt: skip
    return folder


def certificate(folder, signed_by):
    """A file with a server's key and certificates, as Kafka reads it."""
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    _openssl(
        "req", "-newkey", "rsa:2048", "-noenc", "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr",
        cwd=folder,
    )  # fmt: skip
    _openssl(
        "x509", "-req", "-in", "server.csr", "-CA", signed_by / "ca.pem", "-CAkey", signed_by / "ca.key",
        "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "server.pem", cwd=folder,
    )  # fmt: skip
    parts = [folder / "server.key", folder / "server.pem", signed_by / "ca.pem"]
    (folder / "keystore.pem").write_text("".join(part.read_text() for part in parts))
    return folder / "keystore.pem"


def _openssl(*args, cwd):
    subprocess.run(["openssl", *map(str, args)], cwd=cwd, check=True, capture_output=True)
