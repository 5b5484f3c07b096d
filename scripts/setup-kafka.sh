#!/usr/bin/env bash
# A real Apache Kafka (one node, KRaft), from its jars. The tests do not need it; the bench uses it where it is there.
source "$(dirname "$0")/lib.sh"
source "$root/scripts/maven.sh"

copy_jars "$root/scripts/kafka/pom.xml" "$cache/kafka"
