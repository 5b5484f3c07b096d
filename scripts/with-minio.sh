#!/usr/bin/env bash
# Runs a command beside a MinIO of its own, empty, which ends with it: scripts/with-minio.sh scripts/cargo.sh test …
# The command learns where it is from TEST_S3_ENDPOINT, and its access key, which is its secret as well, from TEST_S3_KEY.
source "$(dirname "$0")/lib.sh"

"$root/scripts/setup-minio.sh"
folder="$(mktemp --directory)"
server=
end() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    rm -rf "$folder"
}
trap end EXIT

export TEST_S3_KEY="test-$$-key"
# Somebody else may take the port before the server does: then it ends at once, and another one is tried.
for _ in $(seq 10); do
    port=$((15000 + RANDOM % 16000))
    export TEST_S3_ENDPOINT="http://127.0.0.1:$port"
    MINIO_ROOT_USER="$TEST_S3_KEY" MINIO_ROOT_PASSWORD="$TEST_S3_KEY" \
        "$cache/minio/bin/minio" server --quiet --address "127.0.0.1:$port" "$folder/data" >"$folder/log" 2>&1 &
    server=$!
    for _ in $(seq 100); do
        if curl --noproxy '*' --silent --fail --max-time 2 "$TEST_S3_ENDPOINT/minio/health/live" && kill -0 "$server" 2>/dev/null; then
            "$@"
            exit
        fi
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    kill "$server" 2>/dev/null || true
done
fail "MinIO did not start: $(cat "$folder/log")"
