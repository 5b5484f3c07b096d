#!/usr/bin/env bash
# Builds the program and leaves a copy at bin/lakebeat.
source "$(dirname "$0")/lib.sh"
cd "$root"

# One profile and one selection of packages (the default members) for the program, its tests and its lints: any other
# set of features would compile the dependencies a second time.
cargo build --release --locked

# A program that runs cannot be written over, but its name can be given to another file.
mkdir -p bin
cp "$CARGO_TARGET_DIR/release/lakebeat" bin/.lakebeat.new
mv -f bin/.lakebeat.new bin/lakebeat
say "built bin/lakebeat"
