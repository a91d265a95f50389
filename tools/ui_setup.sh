#!/bin/sh
# What the browser test needs and nothing else does: Debian's chromium, and Playwright in an environment of its own.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${UI_VENV:-.venv-ui}
lock=payout_pipeline_tests/ui/requirements.lock

if [ ! -x /usr/bin/chromium ]; then
    [ "$(id -u)" = 0 ] || {
        echo "chromium is missing; run as root: apt-get install --no-install-recommends chromium" >&2
        exit 1
    }
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
if ! cmp -s "$lock" "$venv/.installed"; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    cp "$lock" "$venv/.installed"
fi
