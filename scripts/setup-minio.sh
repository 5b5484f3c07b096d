#!/usr/bin/env bash
# MinIO, an S3 server, built from its Go module (about five minutes on two cores, once).
source "$(dirname "$0")/lib.sh"

version=v0.0.0-20260212201848-7aac2a2c5b7c
folder="$cache/minio"

lock minio
stamped "$folder" "$version" && exit 0

have go || fail "MinIO is built with Go 1.24 or newer, which is not in Debian 12: install it from https://go.dev/dl"
say "MinIO: $folder"
rm -rf "$folder"
mkdir -p "$folder"
# Its modules are of no use after the build, and Go writes them read-only.
export GOBIN="$folder/bin" GOMODCACHE="$cache/go/modules" GOCACHE="$cache/go/build"
go install "github.com/minio/minio@$version"
go clean -modcache -cache
stamp "$folder" "$version"
