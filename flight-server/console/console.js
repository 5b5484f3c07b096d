// The console page: asks the two JSON documents each second and writes them into the page. No library, no build.
"use strict";

const REFRESH_MS = 1000;
const element = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat();

// What the page saw last, to compute the ingest rate from.
let seen = null;

function count(value) {
  return value === null || value === undefined ? "–" : whole.format(value);
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

function age(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

function text(id, value) {
  const target = element(id);
  if (target.textContent !== value) target.textContent = value;
}

function cell(value, className) {
  const td = document.createElement("td");
  td.textContent = value;
  if (className) td.className = className;
  return td;
}

function meter(value, largest) {
  const td = document.createElement("td");
  const box = document.createElement("div");
  const bar = document.createElement("i");
  const number = document.createElement("span");
  box.className = "meter";
  bar.setAttribute("aria-hidden", "true");
  bar.style.width = `${largest > 0 ? (80 * value) / largest : 0}%`;
  number.textContent = count(value);
  box.append(bar, number);
  td.append(box);
  return td;
}

// Writes rows of cells into a table's body; `empty` is said when there are none.
function fill(id, rows, empty) {
  const body = element(id).tBodies[0];
  if (rows.length === 0) {
    const td = cell(empty, "empty");
    td.colSpan = element(id).tHead.rows[0].cells.length;
    rows = [[td]];
  }
  body.replaceChildren(
    ...rows.map((cells) => {
      const row = document.createElement("tr");
      row.append(...cells);
      return row;
    }),
  );
}

function showDashboard(dashboard) {
  const totals = dashboard.totals;
  for (const name of ["plays", "skips", "users", "artists"]) {
    text(`total-${name}`, count(totals && totals[name]));
  }
  const songs = dashboard.top_songs || [];
  const largest = Math.max(0, ...songs.map((song) => song.total_plays));
  fill(
    "top-songs",
    songs.map((song) => [
      cell(song.song_name),
      cell(song.artist_name),
      meter(song.total_plays, largest),
      cell(count(song.total_skips), "number"),
    ]),
    dashboard.publication ? "no plays yet" : "waiting for the first build",
  );
}

function showIngest(ingest, now) {
  text("ingest-lag", ingest.partitions.length ? count(ingest.lag) : "–");
  const waiting = element("ingest-waiting");
  waiting.hidden = !ingest.waiting_for;
  waiting.textContent = ingest.waiting_for ? `waiting for ${ingest.waiting_for}` : "";
  text("ingest-rows", count(ingest.rows));
  text("dead-letters", count(ingest.dead_letters));
  const consumed = ingest.partitions.reduce((sum, partition) => sum + partition.next_offset, 0);
  if (seen && now > seen.now) {
    const rate = ((consumed - seen.consumed) * 1000) / (now - seen.now);
    // Smoothed, since commits come about once a second, as the questions of this page do.
    seen.rate = seen.rate === null ? rate : 0.7 * seen.rate + 0.3 * rate;
    text("ingest-rate", count(Math.max(0, Math.round(seen.rate))));
    seen.consumed = consumed;
    seen.now = now;
  } else if (!seen) {
    seen = { consumed, now, rate: null };
  }
  fill(
    "partitions",
    ingest.partitions.map((partition) => [
      cell(partition.topic),
      cell(count(partition.partition), "number"),
      cell(count(partition.next_offset), "number"),
      cell(count(partition.lag), "number"),
    ]),
    "nothing ingested yet",
  );
}

function showPublication(publication) {
  text("publication-id", publication ? `#${publication.id}` : "–");
  text("publication-age", publication ? age(publication.age_seconds) : "waiting for the first build");
}

function showTables(tables) {
  fill(
    "tables",
    tables.map((table) => [
      cell(table.name),
      cell(count(table.version), "number"),
      cell(count(table.rows), "number"),
      cell(count(table.files), "number"),
      cell(bytes(table.bytes), "number"),
    ]),
    "no tables yet",
  );
}

function showConnect(snippets) {
  const box = element("connect");
  const key = JSON.stringify(snippets);
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren(
    ...snippets.map(({ client, paste }) => {
      const part = document.createElement("div");
      const title = document.createElement("h3");
      const holder = document.createElement("div");
      const code = document.createElement("pre");
      const copy = document.createElement("button");
      title.textContent = client;
      code.textContent = paste;
      code.tabIndex = 0;
      copy.type = "button";
      copy.textContent = "copy";
      copy.setAttribute("aria-label", `copy the line for ${client}`);
      copy.addEventListener("click", async () => {
        await navigator.clipboard.writeText(paste);
        copy.textContent = "copied";
        setTimeout(() => (copy.textContent = "copy"), 1500);
      });
      holder.className = "snippet";
      holder.append(code, copy);
      part.append(title, holder);
      return part;
    }),
  );
}

function showState(state, words, notice) {
  const freshness = element("freshness");
  freshness.dataset.state = state;
  if (freshness.textContent !== words) freshness.textContent = words;
  const box = element("notice");
  if (box.textContent !== (notice || "")) box.textContent = notice || "";
  box.hidden = !notice;
}

async function ask(path) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10000) });
  const body = await response.json();
  if (!response.ok) throw new Error(body.error || `${path} answered ${response.status}`);
  return body;
}

async function refresh() {
  try {
    const [status, dashboard] = await Promise.all([ask("/api/v1/status"), ask("/api/v1/dashboard")]);
    showIngest(status.ingest, Date.parse(status.now));
    showPublication(status.publication);
    showTables(status.tables);
    showConnect(status.connect);
    showDashboard(dashboard);
    text("lake", `lake ${status.lake}`);
    if (status.publication) {
      showState("fresh", `publication #${status.publication.id}, ${age(status.publication.age_seconds)}`, dashboard.notice);
    } else {
      showState("waiting", "waiting for the first build", "Waiting for the first build: there is no publication yet. The totals appear with it.");
    }
  } catch (error) {
    showState("broken", "not connected", `The server does not answer: ${error.message}. The page goes on trying.`);
  }
}

async function loop() {
  await refresh();
  setTimeout(loop, document.hidden ? 5 * REFRESH_MS : REFRESH_MS);
}

loop();
