#!/usr/bin/env bash
# cargo, with the target folder of `make build` and `make test`: scripts/cargo.sh test --release --locked decode
# It sees a copy of the sources: for what changes them (add, update, fix, fmt, UPDATE_EXPECT) call cargo itself.
source "$(dirname "$0")/lib.sh"

in_sources cargo "$@"
