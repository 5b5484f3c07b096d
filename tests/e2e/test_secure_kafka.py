"""A cluster with TLS and logins: the whole way through it, one clear error for each thing that is wrong, and no secret shown."""

import pytest

from lake import Lake, check_accounted
from messages import logged, produced, simulate
from program import TOPIC, Up, check_refused, free_ports, run, run_ok
from secure_kafka import MECHANISMS, PASSWORD, SecureKafka, authority
from waiting import wait_for

WRONG, UNREACHABLE = 2, 3
# What librdkafka would try for ever is an error before anybody thinks that the program hangs.
SECONDS = 30


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    server = SecureKafka(tmp_path_factory.mktemp("secure") / "kafka").start()
    yield server
    server.end()


def check_unseen(ended):
    """Nothing that the program says shows the password."""
    assert PASSWORD not in ended.out + ended.err, ended
    return ended


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_from_the_simulator_to_the_lake(secure, tmp_path, place, mechanism, seed):
    print(f"seed {seed}")
    env = secure.login(mechanism)
    flags = ["--brokers", secure.sasl_tls, "--topic", place, "--log-level", "trace", "--json"]
    log = tmp_path / "delivered.jsonl"
    simulating = ["--count", 500, "--rate", 0, "--dirty", 0.05, "--seed", seed, "--log", log]
    ended = check_unseen(run_ok("simulate", *flags, *simulating, cwd=tmp_path, env=env))
    assert ended.json["delivered"] == 500
    ended = check_unseen(run_ok("ingest", *flags, "--until-end", cwd=tmp_path, env=env))
    assert ended.json["rows"] + ended.json["dead_letters"] == 500

    check_accounted(Lake(tmp_path / "lakebeat-data" / "lake"), produced(secure.address, logged(log), topic=place))
    assert run_ok("verify", "--json", cwd=tmp_path).json["faults"] == []
    ended = check_unseen(run_ok("doctor", *flags, cwd=tmp_path, env=env))
    broker = next(check for check in ended.json if check["what"].startswith("broker"))
    assert broker["state"] == "ok" and place in broker["detail"], broker


def test_tls_alone_and_settings_from_the_file(secure, tmp_path, place, seed):
    simulate(secure.address, tmp_path, 100, seed, topic=place)
    ca = secure.authority / "ca.pem"
    (tmp_path / "lakebeat.toml").write_text(
        f'[kafka]\nbrokers = "{secure.tls}"\n[kafka.properties]\n"security.protocol" = "ssl"\nssl.ca.location = "{ca}"\n'
    )
    ended = run_ok("ingest", "--topic", place, "--until-end", "--json", cwd=tmp_path)
    assert ended.json["rows"] + ended.json["dead_letters"] == 100


def test_up_reads_a_cluster_with_logins(secure, tmp_path, place, ended_later):
    env = secure.login("SCRAM-SHA-512")
    up = Up(tmp_path, "--rate", 50, brokers=secure.sasl_tls, topic=place, env=env)
    # What asks the broker in the test itself has no login: it takes the other listener.
    up.brokers = secure.address
    ended_later(up).start().wait_ready()
    some = "select count(*) > 0 as some from bronze.spotify_events"
    wait_for("events are in bronze", lambda: up.query(some) == [{"some": True}], every=1, alive=up)
    up.stop()
    assert PASSWORD not in up.out() + up.err()


@pytest.mark.parametrize("command", ["ingest", "simulate", "doctor"])
def test_a_wrong_password(secure, tmp_path, command):
    env = secure.login("SCRAM-SHA-256", KAFKA_SASL_PASSWORD=f"{PASSWORD}-not")
    flags = ["--until-end"] if command == "ingest" else []
    flags += ["--log-level", "trace", "--json", "--brokers", secure.sasl_tls]
    ended = check_unseen(run(command, *flags, cwd=tmp_path, env=env, timeout=60))
    assert ended.status == WRONG and ended.seconds < SECONDS, ended
    said = ended.out if command == "doctor" else ended.err
    assert "KAFKA_SASL_PASSWORD" in said and secure.sasl_tls in said, ended


def refused(tmp_path, status, brokers, env, *words):
    ended = check_unseen(run("ingest", "--until-end", "--brokers", brokers, cwd=tmp_path, env=env, timeout=60))
    check_refused(ended, status, brokers, *words)
    assert ended.seconds < SECONDS, ended


def test_what_the_broker_or_our_side_refuses_is_named(secure, tmp_path):
    login = secure.login("PLAIN")
    other = str(authority(tmp_path / "other") / "ca.pem")
    plain = login | {"KAFKA_SECURITY_PROTOCOL": "sasl_plaintext"}
    for brokers, env, words in [
        # An authority that signed something else, and none at all.
        (secure.sasl_tls, login | {"KAFKA_SSL_CA_LOCATION": other}, ["certificate verify failed", "KAFKA_SSL_CA_LOCATION"]),
        (secure.tls, {"KAFKA_SECURITY_PROTOCOL": "ssl"}, ["certificate verify failed", "KAFKA_SSL_CA_LOCATION"]),
        # A user whom nobody knows.
        (secure.sasl, plain | {"KAFKA_SASL_USERNAME": "nobody"}, ["KAFKA_SASL_USERNAME"]),
        # A kind of login that the broker does not take.
        (secure.sasl, plain | {"KAFKA_SASL_MECHANISM": "SCRAM-SHA-256"}, ["KAFKA_SASL_MECHANISM", "mechanisms: PLAIN"]),
    ]:
        refused(tmp_path, WRONG, brokers, env, *words)


def test_a_protocol_that_the_port_does_not_speak_is_named(secure, tmp_path):
    login = secure.login("PLAIN")
    for brokers, env, words in [
        (secure.sasl_tls, {}, ["KAFKA_SECURITY_PROTOCOL", "sasl_ssl"]),
        (secure.address, login, ["does not speak TLS", "KAFKA_SECURITY_PROTOCOL"]),
        (secure.sasl, {}, ["KAFKA_SECURITY_PROTOCOL", "sasl_plaintext"]),
        (secure.sasl_tls, login | {"KAFKA_SECURITY_PROTOCOL": "ssl"}, ["KAFKA_SECURITY_PROTOCOL"]),
    ]:
        refused(tmp_path, UNREACHABLE, brokers, env, *words)


def test_settings_that_no_client_can_have_are_named(secure, tmp_path):
    login = secure.login("PLAIN")
    for env, words in [
        (login | {"KAFKA_SASL_MECHANISM": "GSSAPI"}, ["GSSAPI", "KAFKA_*"]),
        (login | {"KAFKA_SASL_MECHANISM": "SECRET-HANDSHAKE"}, ["SECRET-HANDSHAKE", "KAFKA_*"]),
        (login | {"KAFKA_SSL_CA_LOCATION": "/nowhere/ca.pem"}, ["ssl.ca.location"]),
        ({"KAFKA_SECURITY_PROTOCOL": "tls"}, ["security.protocol", "tls"]),
    ]:
        ended = run("ingest", "--until-end", "--brokers", secure.sasl_tls, cwd=tmp_path, env=env, timeout=60)
        check_refused(check_unseen(ended), WRONG, *words)


def test_settings_that_are_wrong_do_not_show_the_secret(secure, tmp_path):
    for text, words in [
        (f'"sasl.pasword" = "{PASSWORD}"', ["sasl.pasword"]),
        (f'"sasl.password" = ["{PASSWORD}"]', ["sasl.password"]),
        # No quotes at all, which is no TOML.
        (f'"sasl.password" = {PASSWORD}', ["lakebeat.toml", "line 2"]),
        (f'"group.id" = "x"\n"sasl.password" = "{PASSWORD}"', ["group.id"]),
    ]:
        (tmp_path / "lakebeat.toml").write_text(f"[kafka.properties]\n{text}\n")
        ended = run("ingest", "--brokers", secure.sasl_tls, "--log-level", "trace", "--json", cwd=tmp_path, timeout=60)
        check_refused(check_unseen(ended), WRONG, *words)


def test_a_broker_that_is_away_is_no_fault_of_the_settings(secure, tmp_path):
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    refused(tmp_path, UNREACHABLE, nobody, secure.login("PLAIN"), "--brokers")


def test_the_embedded_broker_does_not_stand_in_for_a_secure_one(secure, tmp_path):
    ended = run("up", "--topic", TOPIC, cwd=tmp_path, env=secure.login("PLAIN"), timeout=30)
    check_refused(ended, WRONG, "KAFKA_SECURITY_PROTOCOL", "--brokers")
