#!/usr/bin/env bash
# cargo, with the target folder of `make build` and `make test`: scripts/cargo.sh test --release --locked decode
source "$(dirname "$0")/lib.sh"

in_sources cargo "$@"
