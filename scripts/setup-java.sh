#!/usr/bin/env bash
# Java's Kafka client, for the test that sends every kind of client at the embedded broker. The probe is run from its
# source file, so a JDK is needed and not just a JRE.
source "$(dirname "$0")/lib.sh"
source "$root/scripts/maven.sh"

copy_jars "$root/tests/e2e/java/pom.xml" "$cache/java-clients"
