#!/usr/bin/env bash
# rustc for the program's own crates while scripts/fuzz.sh builds: `ingest` tells the fuzzer which of its branches were taken.
# Plain flags of a stable rustc, the ones that cargo-fuzz gives as well.
rustc="$1"
shift
coverage=()
case " $* " in
*" --crate-name ingest "*)
    coverage=(
        -C passes=sancov-module
        -C llvm-args=-sanitizer-coverage-level=4
        -C llvm-args=-sanitizer-coverage-inline-8bit-counters
        -C llvm-args=-sanitizer-coverage-pc-table
        -C llvm-args=-sanitizer-coverage-trace-compares
        # No memory is shared with a sanitizer, so panics are what a run can find: all of them.
        -C debug-assertions=on -C overflow-checks=on
    )
    ;;
esac
exec "$rustc" "$@" "${coverage[@]}"
