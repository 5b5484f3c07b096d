#!/usr/bin/env bash
# Two versions of a crate whose types cross our crates do not talk to each other ("expected RecordBatch, found
# RecordBatch"), so each family below is in the build once. Also: nothing that only tests depend on may add a feature to
# a dependency of the program, since `cargo test` would then compile that dependency and all above it a second time.
source "$(dirname "$0")/lib.sh"
cd "$root"

families='^(arrow|arrow-.*|parquet|parquet-.*|datafusion|datafusion-.*|object_store|deltalake|deltalake-.*|buoyant_kernel.*|rdkafka|rdkafka-sys|pgwire|tonic|axum|prost|tokio|tansu-.*)$'

packages() { cargo tree --locked --workspace --edges "$1" --prefix none --format "$2" | sort -u; }

listing="$(packages normal,build,dev '{p}' | cut -d' ' -f1,2 | sort -u)"
grep -q '^arrow v' <<<"$listing" || fail "cargo tree no longer lists arrow; mend this check"

twice="$(cut -d' ' -f1 <<<"$listing" | uniq -d | grep -E "$families" || true)"
if [ -n "$twice" ]; then
    say "in the build in more than one version:"
    for crate in $twice; do
        grep "^$crate v" <<<"$listing" >&2
    done
    fail "see who brings the second one: cargo tree --duplicates"
fi

outside() { grep -v -F "($root" | sed "s/ (\*)$//" | sort -u; }
program="$(packages normal,build '{p} [{f}]' | outside)"
added="$(comm -13 <(echo "$program") <(packages normal,build,dev '{p} [{f}]' | outside) \
    | while read -r name version features; do
        if grep -q "^$name $version " <<<"$program"; then echo "$name $version $features"; fi
      done)"
if [ -n "$added" ]; then
    say "tests turn on features that the program does not have:"
    say "$added"
    fail "turn the feature on in the root Cargo.toml for all, or do without it"
fi

if grep '^name = "aws-\(sdk\|config\)' Cargo.lock >&2; then
    fail "AWS's SDK is hundreds of crates for what object_store's own S3 client does"
fi

if grep '^source = "git' Cargo.lock >&2; then
    fail "a dependency from a branch of somebody's repository can change or go away: take a released version"
fi
echo "one version each of arrow, parquet, datafusion, object_store, deltalake and the wire crates"
