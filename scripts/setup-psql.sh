#!/usr/bin/env bash
# psql, the client that most people try first.
source "$(dirname "$0")/lib.sh"

have psql || need_packages postgresql-client
