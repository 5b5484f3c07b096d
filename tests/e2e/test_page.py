"""The page in a real browser: the four totals, the top songs and the lag, which change by themselves."""

import pytest
from playwright.sync_api import sync_playwright

from expected import Tables
from lake import Lake, wait_settled
from messages import produced, simulate
from waiting import wait_for

TOTALS = ("plays", "skips", "users", "artists")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture
def page():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", headless=True, args=FLAGS)
        try:
            yield browser.new_page(viewport={"width": 1280, "height": 1000})
        finally:
            browser.close()


def number(text):
    """A number as it is shown, with separators of thousands; None while there is none yet."""
    digits = "".join(character for character in text if character.isdigit())
    return int(digits) if digits else None


def totals(page):
    return {name: number(page.locator(f"#total-{name}").inner_text()) for name in TOTALS}


def totals_of(tables):
    return {
        "plays": sum(row[3] for row in tables.top_songs),
        "skips": sum(row[4] for row in tables.top_songs),
        "users": len({row[0] for row in tables.user_engagement}),
        "artists": len({row[2] for row in tables.top_songs}),
    }


def test_the_page_follows_the_events(up, page, tmp_path, seed):
    print(f"seed {seed}; screenshots in {tmp_path}")
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(up.url)
    page.screenshot(path=tmp_path / "empty.png", full_page=True)

    log, _ = simulate(up.brokers, tmp_path, 1_000, seed)
    first = produced(up.brokers, log)
    wait_settled(Lake(up.lake), first, alive=up)
    shown = totals_of(Tables(first))
    wait_for("the page shows the totals", lambda: totals(page) == shown, seconds=20, alive=up)
    wait_for("the page shows no lag", lambda: number(page.locator("#ingest-lag").inner_text()) == 0, seconds=20)
    page.screenshot(path=tmp_path / "first.png", full_page=True)

    # Nobody reloads it.
    more, _ = simulate(up.brokers, tmp_path, 1_500, seed + 1)
    second = produced(up.brokers, log + more)
    wait_settled(Lake(up.lake), second, alive=up)
    tables = Tables(second)
    assert totals_of(tables) != shown
    wait_for("the page follows", lambda: totals(page) == totals_of(tables), seconds=20, alive=up)

    songs = page.locator("#top-songs tbody tr")
    best = sorted(tables.top_songs, key=lambda row: (-row[3], row[1], row[2]))
    rows = [songs.nth(index).locator("td").all_inner_texts() for index in range(songs.count())]
    assert [(row[0], row[1], number(row[2]), number(row[-1])) for row in rows] == [row[1:] for row in best]
    page.screenshot(path=tmp_path / "second.png", full_page=True)
    assert not complaints


def test_the_page_as_a_program_sees_it(up, tmp_path, seed):
    """What supervisors and scrapers ask for."""
    status, body = up.get("/readyz")
    assert status == 503 and "publication" in body
    simulate(up.brokers, tmp_path, 200, seed)
    up.wait_ready()
    assert up.get("/healthz")[0] == 200
    status, body = up.get("/api/v1/status")
    assert status == 200 and '"lag"' in body
    status, body = up.get("/metrics")
    assert status == 200 and "# TYPE" in body
    assert up.get("/no/such/page")[0] == 404
