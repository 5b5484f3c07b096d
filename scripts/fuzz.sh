#!/usr/bin/env bash
# Runs the fuzz target of the decoders (ingest/fuzz/) for so many seconds: scripts/fuzz.sh 60
# Inputs that it has found are run again by their names: scripts/fuzz.sh 60 ingest/fuzz/found/crash-…
# What it learned about the code is kept in the cache, and the next run goes on with it.
source "$(dirname "$0")/lib.sh"

seconds="${1:-60}"
shift || true

build() {
    RUSTC_WORKSPACE_WRAPPER="$PWD/ingest/fuzz/instrumented.sh" \
        cargo build --release --locked --example decoder_checks
    CARGO_TARGET_DIR="$cache/fuzz/target" cargo rustc --release --locked --manifest-path ingest/fuzz/Cargo.toml --bin decode -- \
        --extern "decoder_checks=$CARGO_TARGET_DIR/release/examples/libdecoder_checks.rlib" \
        -L "dependency=$CARGO_TARGET_DIR/release/deps"
}

in_sources build
mkdir -p "$cache/fuzz/corpus" "$root/ingest/fuzz/found"
inputs=("$@")
[ ${#inputs[@]} -gt 0 ] || inputs=("$cache/fuzz/corpus" "$root/ingest/fuzz/seeds")
"$cache/fuzz/target/release/decode" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=8192 \
    -artifact_prefix="$root/ingest/fuzz/found/" "${inputs[@]}" \
    || fail "the fuzzer found an input that breaks a decoder; a new one lies in ingest/fuzz/found"
