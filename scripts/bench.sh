#!/usr/bin/env bash
# Measures speed and freshness; writes bench/results.md. Called by `make bench` after the build. EVENTS may be named.
source "$(dirname "$0")/lib.sh"
cd "$root"

in_sources cargo build --release --locked --example bare_drain --example commit_curve
exec "$venv/bin/python" bench/bench.py \
    --bare "$CARGO_TARGET_DIR/release/examples/bare_drain" \
    --curve "$CARGO_TARGET_DIR/release/examples/commit_curve" ${1:+--events "$1"}
