#!/usr/bin/env bash
# Docker's compose, built from its Go module (about two minutes on two cores, once). The tests ask it how it reads
# compose.yml; that takes no Docker engine.
source "$(dirname "$0")/lib.sh"

version=v2.40.3
folder="$cache/compose"

lock compose
stamped "$folder" "$version" && exit 0

go="$("$root/scripts/setup-go.sh")"
say "compose: $folder (about two minutes)"
rm -rf "$folder"
mkdir -p "$folder/bin"
# Go makes its modules read-only, and a run that was broken off could not be cleared away.
export GOFLAGS=-modcacherw
export GOMODCACHE="$folder/modules" GOCACHE="$folder/build" GOTOOLCHAIN=local CGO_ENABLED=0
# Its go.mod excludes versions, which `go install` refuses of a module that is not the main one: so it becomes the main one.
"$go" mod download "github.com/docker/compose/v2@$version"
cp --recursive --no-preserve=mode "$GOMODCACHE/github.com/docker/compose/v2@$version" "$folder/source"
(cd "$folder/source" && "$go" build -trimpath -ldflags '-s -w' -o "$folder/bin/docker-compose" ./cmd) 2> >(sed '/^go: downloading/d' >&2)
"$go" clean -modcache -cache
rm -rf "$folder/source" "$GOCACHE"
stamp "$folder" "$version"
