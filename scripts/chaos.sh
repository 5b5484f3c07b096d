#!/usr/bin/env bash
# The long proofs, which `make test` runs in short: stages can be named (make chaos STAGES=kills), and all numbers are settings
# of the environment. The last stage writes bench/chaos.md, with what the ones before it said. Called by `make chaos` after the
# build.
source "$(dirname "$0")/lib.sh"
cd "$root"

kills="${KILLS:-200}" seeds="${SIMULATION_SEEDS:-10000}" fuzz_seconds="${FUZZ_SECONDS:-60}" letters="${LETTERS:-1000000}" soak_minutes="${SOAK_MINUTES:-30}"
# What each stage said, for the report. In a folder that is named (SAID=folder) it stays, so that a stage can be run again without
# those before it.
if [ -n "${SAID:-}" ]; then
    said="$(realpath --canonicalize-missing "$SAID")"
    mkdir -p "$said"
else
    said="$(mktemp --directory)"
    trap 'rm -rf "$said"' EXIT
fi
commit="$(git rev-parse --short HEAD)"

# Crashes, stale owners, rebalances and failing stores in one process, without a clock: each seed is another run.
stage_simulation() {
    SIMULATION_SEEDS="$seeds" LAKE_SEEDS="$seeds" scripts/cargo.sh test --release --locked --test it simulation -- --nocapture | tee "$said/simulation.log"
    {
        echo "At $commit the simulation passed with $seeds seeds (\`ingest/tests/it/simulation/\`): $(sed -n 's/^[0-9]* seeds in //p' "$said/simulation.log")."
        echo "So did the simulation of the lake (\`lakehouse/tests/it/simulation/\`): $(sed -n 's/^[0-9]* lakes in //p' "$said/simulation.log")."
        echo "Bugs that were planted, and what of each was seen first:"
        echo
        sed -n 's/^\([A-Za-z]* is found by seed .*\)$/- \1/p' "$said/simulation.log"
    } >"$said/1"
}

stage_fuzz() {
    scripts/fuzz.sh "$fuzz_seconds" 2>&1 | tee "$said/fuzz.log"
    echo "At $commit the fuzz target of the decoders (\`ingest/fuzz/\`) found nothing: $(sed -n 's/^Done \(.*\)$/\1/p' "$said/fuzz.log")." >"$said/2"
}

stage_letters() {
    LAKEBEAT_TEST_LETTERS="$letters" "$venv/bin/python" -m pytest --timeout=1800 -k dead_letters_in_a_row \
        -o addopts='-p no:cacheprovider --strict-markers' -s tests/e2e/test_bad_input.py | tee "$said/letters.log"
    sed -n "s/^.*REPORT /At $commit: /p" "$said/letters.log" >"$said/3"
}

# Writes a report of its own, bench/soak.md.
stage_soak() { "$venv/bin/python" tests/chaos/soak.py --minutes "$soak_minutes"; }

stage_kills() {
    local notes=(--note "The kills: at $commit.") file
    for file in "$said"/[0-9]; do
        [ ! -f "$file" ] || notes+=(--note "$(cat "$file")")
    done
    "$venv/bin/python" tests/chaos/chaos.py --kills "$kills" ${SEED:+--seed "$SEED"} ${RATE:+--rate "$RATE"} "${notes[@]}"
}

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(simulation fuzz letters soak kills)
scripts/setup-python.sh
for stage in "${stages[@]}"; do
    declare -F "stage_$stage" >/dev/null || fail "no stage is called $stage (simulation, fuzz, letters, soak, kills)"
    printf '\n=== %s\n' "$stage"
    "stage_$stage"
done
