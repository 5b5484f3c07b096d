# The program in an image: built with the Rust that rust-toolchain.toml pins, run on a small Debian by a user without rights.
# compose.yml uses it for every one of its own services.

FROM rust:1.95.0-slim-bookworm AS builder
# librdkafka, SQLite, zstd and rustls' library are compiled from their sources; librdkafka's own TLS is OpenSSL's.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libssl-dev make pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
# This one, and not what rust-toolchain.toml adds to it for development.
ENV RUSTUP_TOOLCHAIN=1.95.0
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    cargo build --release --locked && cp target/release/lakebeat /usr/local/bin/lakebeat

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /var/lib/lakebeat --create-home lakebeat
COPY --from=builder /usr/local/bin/lakebeat /usr/local/bin/lakebeat
USER 10001:10001
# Where `lakebeat-data` comes to lie where no store is set.
WORKDIR /var/lib/lakebeat
ENTRYPOINT ["lakebeat"]
CMD ["up"]
