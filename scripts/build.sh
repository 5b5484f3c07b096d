#!/usr/bin/env bash
# Builds the program and leaves a copy at bin/lakebeat. What is named beside it is built as well: scripts/build.sh --all-targets
source "$(dirname "$0")/lib.sh"

# One profile and one selection of packages (the default members) for the program, its tests and its lints: any other
# set of features would compile the dependencies a second time.
build() {
    cargo build --release --locked "$@"

    # A program that runs cannot be written over, but its name can be given to another file.
    mkdir -p "$root/bin"
    cp "$CARGO_TARGET_DIR/release/lakebeat" "$root/bin/.lakebeat.new"
    mv -f "$root/bin/.lakebeat.new" "$root/bin/lakebeat"
}

in_sources build "$@"
say "built bin/lakebeat"
