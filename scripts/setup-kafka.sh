#!/usr/bin/env bash
# A real Apache Kafka (one node, KRaft), from its jars: for `make up-stack`, the tests and the bench.
source "$(dirname "$0")/lib.sh"
source "$root/scripts/maven.sh"

copy_jars "$root/scripts/kafka/pom.xml" "$cache/kafka"
