#!/usr/bin/env bash
# The Python environment of the end-to-end tests and the bench: Delta readers, clients of Kafka, Flight SQL, PostgreSQL and
# Snowflake, and a stand-in for Snowflake.
source "$(dirname "$0")/lib.sh"

requirements="$root/tests/e2e/requirements.txt"

have python3 || need_packages python3 python3-venv
python="$(command -v "${PYTHON:-python3}")" || fail "PYTHON names ${PYTHON:-}, which is not there"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "the tests need Python 3.11 or newer; $python is $("$python" --version). Name another one in PYTHON"
"$python" -c 'import ensurepip, venv' 2>/dev/null || need_packages python3-venv

wanted="$("$python" --version)"
lock venv
stamped "$venv" "$wanted" && exit 0

say "Python environment: $venv"
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
stamp "$venv" "$wanted"
