#!/usr/bin/env bash
# What `make test-cluster` needs beside Python packages: Debian's PostgreSQL and Redis, by package name.
# Nothing of theirs is configured or used but the programs; the tests start their own on free ports of the loopback
# interface, with data in temporary directories.
#   tools/cluster_setup.sh [python of the cluster's environment]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv-cluster/bin/python}

packages=()
command -v redis-server >/dev/null || packages+=(redis-server)
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || packages+=(postgresql)

if ((${#packages[@]})); then
    command -v apt-get >/dev/null || { echo "Install ${packages[*]} with the package manager of this system." >&2; exit 1; }
    as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || { echo "Installing ${packages[*]} needs root; run: apt-get install ${packages[*]}" >&2; exit 1; }
        as_root=(sudo)
    fi
    echo "installing ${packages[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

# Says what is still missing, and fails: a test that is skipped proves nothing.
exec "$python" -m payout_pipeline_tests.cluster.services
