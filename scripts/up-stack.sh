#!/usr/bin/env bash
# A real Kafka, a real MinIO and `lakebeat up` on them, until Ctrl-C. Called by `make up-stack` after the build; what
# is given to it is given to `lakebeat up`. The data stays in lakebeat-data/stack, and the next run goes on with it.
#
# Ports: KAFKA_PORT, MINIO_PORT, MINIO_CONSOLE_PORT; credentials and bucket: MINIO_ACCESS_KEY, MINIO_SECRET_KEY,
# MINIO_BUCKET; all from the environment or .env, the same names and defaults as in compose.yml. STACK_DIR is another folder
# for the data.
source "$(dirname "$0")/lib.sh"
cd "$root"

# What the environment or .env says, or else a default. Of .env only plain NAME=value lines count here.
setting() {
    local name="$1" value="${!1:-}"
    if [ -z "$value" ] && [ -f .env ]; then
        value="$(sed -n "s/^[[:space:]]*\(export[[:space:]]\+\)\?$name=[\"']\?\([^\"'#[:space:]]*\).*/\2/p" .env | tail -n 1)"
    fi
    printf '%s' "${value:-$2}"
}

kafka_port="$(setting KAFKA_PORT 29092)"
controller_port="$(setting KAFKA_CONTROLLER_PORT 29093)"
minio_port="$(setting MINIO_PORT 9002)"
page_port="$(setting MINIO_CONSOLE_PORT 9001)"
access_key="$(setting MINIO_ACCESS_KEY "$(setting MINIO_ROOT_USER minioadmin)")"
secret_key="$(setting MINIO_SECRET_KEY "$(setting MINIO_ROOT_PASSWORD minioadmin)")"
bucket="$(setting MINIO_BUCKET lakebeat)"
endpoint="http://127.0.0.1:$minio_port"

stack="${STACK_DIR:-$root/lakebeat-data/stack}"
kafka_log="$stack/kafka.log" minio_log="$stack/minio.log"
mkdir -p "$stack"

exec 7>"$stack/lock"
flock --nonblock 7 || {
    say "error: another up-stack is running on $stack: end it first"
    exit 2
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
for port in KAFKA_PORT=$kafka_port KAFKA_CONTROLLER_PORT=$controller_port MINIO_PORT=$minio_port \
    MINIO_CONSOLE_PORT=$page_port; do
    if answers "${port#*=}"; then
        say "error: port ${port#*=} is taken: end what listens there, or choose another with ${port%=*}"
        exit 2
    fi
done

# Each runs in a session of its own, so that Ctrl-C reaches this script alone and it ends them in order; and each is told
# to end when this script is gone, whatever became of it. None keeps the lock.
detached() { exec setsid setpriv --pdeathsig TERM "$@" 7>&-; }

kafka='' minio='' lakebeat='' status=0 stopping=''

alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

# end NAME PID SECONDS ends it if it still runs, and leaves its status in `ended`.
end() {
    ended=0
    [ -n "$2" ] || return 0
    kill -TERM "$2" 2>/dev/null || true
    local tenths=$(($3 * 10))
    while alive "$2" && [ "$tenths" -gt 0 ]; do
        sleep 0.1
        tenths=$((tenths - 1))
    done
    if alive "$2"; then
        say "$1 did not end within $3 s: killed"
        kill -KILL "$2" 2>/dev/null || true
    fi
    ended=0
    wait "$2" 2>/dev/null || ended=$?
}

# lakebeat first, so that it can commit its last batch.
end_all() {
    trap '' INT TERM HUP
    end lakebeat "$lakebeat" 10
    end MinIO "$minio" 10
    end Kafka "$kafka" 20
}
trap end_all EXIT
trap 'stopping=yes' INT TERM HUP

# until_answers NAME PID LOG COMMAND...
until_answers() {
    local name="$1" pid="$2" log="$3" tenths=600
    shift 3
    until "$@" >/dev/null 2>&1; do
        [ -z "$stopping" ] || exit 0
        alive "$pid" || { tail -n 5 "$log" >&2; fail "$name ended while it started; its log is $log"; }
        [ "$tenths" -gt 0 ] || fail "$name does not answer after a minute; its log is $log"
        sleep 0.1
        tenths=$((tenths - 1))
    done
}

settings="$stack/kafka.properties"
sed -e "s|@PORT@|$kafka_port|; s|@CONTROLLER@|$controller_port|; s|@DATA@|$stack/kafka|" scripts/kafka/server.properties >"$settings"
java=(java -Xmx512m -cp "$cache/kafka/libs/*")
# Any 16 bytes in base64 are an id.
"${java[@]}" kafka.tools.StorageTool format --ignore-formatted -t bGFrZWJlYXQncyBzdGFjaw -c "$settings" >"$kafka_log" 2>&1 \
    || { tail -n 5 "$kafka_log" >&2; fail "Kafka cannot use $stack/kafka; its log is $kafka_log"; }
detached "${java[@]}" kafka.Kafka "$settings" </dev/null >>"$kafka_log" 2>&1 &
kafka=$!

# MinIO takes every MINIO_ name for one of its own.
mapfile -t foreign < <(compgen -e MINIO_ || true)
mkdir -p "$stack/minio"
detached env "${foreign[@]/#/--unset=}" MINIO_ROOT_USER="$access_key" MINIO_ROOT_PASSWORD="$secret_key" \
    "$cache/minio/bin/minio" server --address "127.0.0.1:$minio_port" --console-address "127.0.0.1:$page_port" "$stack/minio" \
    </dev/null >"$minio_log" 2>&1 &
minio=$!

say "waiting for MinIO (log: $minio_log) and Kafka (log: $kafka_log)"
until_answers MinIO "$minio" "$minio_log" curl --noproxy '*' --silent --fail "$endpoint/minio/health/ready"
until_answers Kafka "$kafka" "$kafka_log" grep --quiet 'Kafka Server started' "$kafka_log"
say "MinIO  $endpoint, its page http://127.0.0.1:$page_port (user $access_key)"
say "Kafka  127.0.0.1:$kafka_port"

# For other commands on the same lake.
names="$stack/env"
(
    umask 077
    printf 'export %s=%q\n' KAFKA_BOOTSTRAP_SERVERS "127.0.0.1:$kafka_port" MINIO_ENDPOINT "$endpoint" \
        MINIO_ACCESS_KEY "$access_key" MINIO_SECRET_KEY "$secret_key" MINIO_BUCKET "$bucket" >"$names"
)
say "other commands find this lake after: source ${names#"$root/"}"

[ -z "$stopping" ] || exit 0
# By flags and names that win over whatever else says where the lake is.
export LAKEBEAT_S3_ENDPOINT="$endpoint" LAKEBEAT_S3_ACCESS_KEY="$access_key" LAKEBEAT_S3_SECRET_KEY="$secret_key"
unset LAKEBEAT_S3_SESSION_TOKEN LAKEBEAT_S3_BUCKET
detached bin/lakebeat up --brokers "127.0.0.1:$kafka_port" --lake "s3://$bucket" "$@" </dev/null &
lakebeat=$!

while [ -z "$stopping" ]; do
    # Returns when one of them ends, or with a signal.
    wait -n "$lakebeat" "$minio" "$kafka" 2>/dev/null || true
    alive "$lakebeat" || break
    alive "$minio" || { say "error: MinIO has ended by itself; its log is $minio_log"; status=3; break; }
    alive "$kafka" || { say "error: Kafka has ended by itself; its log is $kafka_log"; status=3; break; }
done
trap '' INT TERM HUP
end lakebeat "$lakebeat" 10
lakebeat=''
[ "$status" -ne 0 ] || status=$ended
exit "$status"
