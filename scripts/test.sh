#!/usr/bin/env bash
# All checks, cheapest first; the first that fails ends the run. Stages can be named: scripts/test.sh lints e2e
source "$(dirname "$0")/lib.sh"
cd "$root"

stage_format() { cargo fmt --all --check; }

stage_structure() {
    scripts/check-star.sh
    scripts/check-versions.sh
}

stage_lints() { in_sources cargo clippy --release --locked --all-targets -- --deny warnings; }

# The tests and the program in one go: one by one, each crate's single-threaded half would leave a core idle.
stage_build() { scripts/build.sh --all-targets; }

# The storage tests run on a bucket as well.
stage_unit() { scripts/with-minio.sh scripts/cargo.sh test --release --locked; }

stage_e2e() {
    scripts/setup-tests.sh
    # PYTEST_ADDOPTS picks some: PYTEST_ADDOPTS='-k doors' make test STAGES=e2e
    # A file's tests stay together and in order: some look back at what the ones before them did.
    # The files come in the order that conftest.py gives them.
    "$venv/bin/python" -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder tests/e2e
}

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(format structure lints build unit e2e)

scripts/setup-rust.sh
started=$SECONDS
for stage in "${stages[@]}"; do
    declare -F "stage_$stage" >/dev/null || fail "no stage is called $stage (format, structure, lints, build, unit, e2e)"
    printf '\n=== %s\n' "$stage"
    stage_started=$SECONDS
    # Not `if "stage_$stage"`: a function that is tested runs on after an error inside it.
    "stage_$stage"
    printf '=== %s: passed in %s s\n' "$stage" "$((SECONDS - stage_started))"
done
printf '\n=== all passed in %s s\n' "$((SECONDS - started))"
