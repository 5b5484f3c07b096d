#!/usr/bin/env bash
# What the program itself is built with: a C tool chain (librdkafka, SQLite, zstd and rustls' library are compiled from
# their sources), OpenSSL's headers for librdkafka's TLS and logins, and the Rust tool chain that rust-toolchain.toml pins.
# Nothing else is needed for `make up`.
source "$(dirname "$0")/lib.sh"
lock rust

missing=()
have gcc && have g++ && have make || missing+=(build-essential)
have pkg-config || missing+=(pkg-config)
have pkg-config && pkg-config --exists libssl || missing+=(libssl-dev)
have curl || missing+=(curl ca-certificates)
have git || missing+=(git)
have rsync || missing+=(rsync)
[ ${#missing[@]} -eq 0 ] || need_packages "${missing[@]}"

toolchain="$(sed -n 's/^channel = "\(.*\)"/\1/p' "$root/rust-toolchain.toml")"

if ! have rustup; then
    if have cargo && [ "$(rustc --version | cut -d' ' -f2)" = "$toolchain" ]; then
        exit 0 # a tool chain of the right version that someone installed without rustup
    fi
    say "rustup is missing: installing it for this user, from its own site, https://sh.rustup.rs"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs \
        | sh -s -- -y --quiet --no-modify-path --profile minimal --default-toolchain none \
        || fail "rustup could not be installed; install it from https://rustup.rs, or Rust $toolchain any other way, and run this again"
fi

# `rustup toolchain install` asks its server even when all is there, so look first.
if ! rustup toolchain list | grep -q "^$toolchain-"; then
    rustup toolchain install "$toolchain" --profile minimal --component clippy --component rustfmt
fi
for component in clippy rustfmt; do
    rustup component list --toolchain "$toolchain" --installed | grep -q "^$component" \
        || rustup component add --toolchain "$toolchain" "$component"
done
