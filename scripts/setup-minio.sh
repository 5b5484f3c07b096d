#!/usr/bin/env bash
# MinIO, an S3 server, built from its Go module (about five minutes on two cores, once).
source "$(dirname "$0")/lib.sh"

version=v0.0.0-20260212201848-7aac2a2c5b7c
folder="$cache/minio"

lock minio
stamped "$folder" "$version" && exit 0

go="$("$root/scripts/setup-go.sh" 9>&-)"
say "MinIO: $folder (about five minutes)"
rm -rf "$folder"
mkdir -p "$folder"
# Its modules are of no use after the build, and Go writes them read-only. Without cgo no C compiler is needed.
export GOBIN="$folder/bin" GOMODCACHE="$cache/go/modules" GOCACHE="$cache/go/build" GOTOOLCHAIN=local CGO_ENABLED=0
"$go" install "github.com/minio/minio@$version" 2> >(sed '/^go: downloading/d' >&2)
"$go" clean -modcache -cache
stamp "$folder" "$version"
