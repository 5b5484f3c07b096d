#!/usr/bin/env bash
# Spark with Delta's own implementation, for the test that reads each table by every engine. As jars: the test starts the server
# that is in them, and PySpark's client, which is small, talks to it.
source "$(dirname "$0")/lib.sh"
source "$root/scripts/maven.sh"

copy_jars "$root/tests/e2e/spark/pom.xml" "$cache/spark"
