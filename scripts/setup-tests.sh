#!/usr/bin/env bash
# All that the end-to-end tests need beside the program.
source "$(dirname "$0")/lib.sh"

for component in python psql browser java kafka spark minio compose; do
    "$root/scripts/setup-$component.sh"
done
