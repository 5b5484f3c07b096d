#!/usr/bin/env bash
# Proves the shape of the workspace from what cargo resolves:
#   1. the crates form a star: lakehouse <- { ingest, transforms, flight-server, snowflake-adapter } <- the program;
#   2. each foreign system is known to one crate only.
source "$(dirname "$0")/lib.sh"
cd "$root"

spokes=(ingest transforms flight-server snowflake-adapter)
found=0

# all_below CRATE names the packages below CRATE at any depth, its tests' included; right_below CRATE those that its own
# Cargo.toml names for the crate itself (a test may bring a store that fails on command). cargo's own failure ends the
# script, so an empty answer never passes for "not there".
names() { cargo tree --locked --prefix none --format '{p}' "$@" | cut -d' ' -f1 | sort -u; }
all_below() { names --package "$1" --edges normal,build,dev; }
right_below() { names --package "$1" --edges normal,build --depth 1; }

# forbid CRATE LIST WHY NAME... complains about each NAME in LIST.
forbid() {
    local crate="$1" list="$2" why="$3" name
    shift 3
    for name in "$@"; do
        if grep -qx -- "$name" <<<"$list"; then
            say "$crate must not depend on $name: $why"
            found=1
        fi
    done
}

declare -A all right
for crate in lakehouse "${spokes[@]}" lakebeat; do
    all[$crate]="$(all_below "$crate")"
    right[$crate]="$(right_below "$crate")"
done

# The listing can show what is looked for, or this check proves nothing.
for name in lakehouse "${spokes[@]}" rdkafka pgwire minijinja deltalake-core; do
    grep -qx -- "$name" <<<"${all[lakebeat]}" || fail "cargo tree no longer lists $name below the program; mend this check"
done

# 1. The star.
forbid lakehouse "${all[lakehouse]}" "it is the hub, and knows none of its users" "${spokes[@]}" lakebeat
for crate in "${spokes[@]}"; do
    for sibling in "${spokes[@]}"; do
        [ "$crate" = "$sibling" ] || forbid "$crate" "${all[$crate]}" \
            "crates speak through the lake, not to each other" "$sibling"
    done
    forbid "$crate" "${all[$crate]}" "the program is on top" lakebeat
done

# 2. Foreign systems. What nobody brings along is looked for at any depth (as `cargo tree -p lakehouse -i rdkafka`
# does); what others bring along as well (lakehouse is below all, and brings its storage), in the crate's own Cargo.toml.
for crate in lakehouse transforms flight-server snowflake-adapter; do
    forbid "$crate" "${all[$crate]}" "Kafka is known to ingest only" \
        rdkafka rdkafka-sys tansu-broker tansu-storage libsql
done
for crate in lakehouse ingest transforms snowflake-adapter; do
    forbid "$crate" "${all[$crate]}" "wire protocols are known to flight-server only" pgwire arrow-flight
    forbid "$crate" "${right[$crate]}" "wire protocols are known to flight-server only" axum tonic
done
for crate in lakehouse ingest flight-server snowflake-adapter; do
    forbid "$crate" "${all[$crate]}" "templates are known to transforms only" minijinja
done
for crate in "${spokes[@]}" lakebeat; do
    forbid "$crate" "${right[$crate]}" "Delta and object storage are known to lakehouse only" \
        deltalake deltalake-core buoyant_kernel object_store
done
for crate in lakehouse ingest transforms flight-server lakebeat; do
    forbid "$crate" "${right[$crate]}" "Snowflake's HTTP is known to snowflake-adapter only" reqwest
done
forbid lakebeat "${right[lakebeat]}" "the program only joins the crates" \
    rdkafka tansu-broker tansu-storage libsql pgwire arrow-flight axum tonic minijinja
forbid ingest "${right[ingest]}" "ingest knows nothing of SQL" datafusion

[ "$found" -eq 0 ] || fail "the crates no longer form the star that README §Architecture describes"
echo "the star holds: $((${#spokes[@]} + 1)) crates, no sibling depends on another"
