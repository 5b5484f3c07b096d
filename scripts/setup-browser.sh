#!/usr/bin/env bash
# A browser for the test of the page. Debian's own: the test tool's download of a browser is not used.
source "$(dirname "$0")/lib.sh"

[ -x /usr/bin/chromium ] || need_packages chromium fonts-liberation
