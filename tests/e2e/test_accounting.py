"""Every event is accounted for, and the tables hold what a computation by hand makes of them."""

from expected import Tables, decoded
from lake import Lake, wait_settled
from messages import produced, simulate

COUNT = 5_000


def test_every_event_is_accounted_for(up, tmp_path, seed):
    print(f"seed {seed}")
    log, report = simulate(up.brokers, tmp_path, COUNT, seed)

    assert report["delivered"] == COUNT and report["failed"] == 0
    assert sum(report["kinds"].values()) == COUNT == len(log)
    # So that a fault of the simulator can't make this test an easy one.
    letters = [message for message in log if isinstance(decoded(message.payload), str)]
    assert {decoded(message.payload) for message in letters} == {
        "tombstone", "empty", "not_utf8", "not_json", "wrong_type",
    }  # fmt: skip
    tables = Tables(log)
    assert 0 < len(tables.silver) < tables.bronze.total() < COUNT
    assert len(tables.top_songs) == 6

    messages = produced(up.brokers, log)
    assert {message.place: message.payload for message in messages} == {message.place: message.payload for message in log}
    wait_settled(Lake(up.lake), messages, alive=up)

    ended = up.command("verify", "--json")
    assert ended.status == 0, ended
    up.stop()
    ended = up.command("verify", "--json")
    assert ended.status == 0, ended
    assert up.query("select count(*) as events from spotify_silver") == [{"events": len(tables.silver)}]
