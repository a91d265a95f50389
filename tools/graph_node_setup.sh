#!/usr/bin/env bash
# Installs what `make test-graph-node` needs beside Python: PostgreSQL (Debian's), Node.js with npm, and by npm a real
# graph-node with what compiles a subgraph for it. Can be run again at will; says at once when there is nothing to do.
#
#   tools/graph_node_setup.sh [DIRECTORY]      default: runtime/graph-node
set -euo pipefail

directory=${1:-runtime/graph-node}
gnd_version=0.45.0
graph_ts_version=0.38.2
assemblyscript_version=0.19.23

say() { printf 'graph-node setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || die "graph-node's package is for Linux on x86-64, not $(uname -s) on $(uname -m)"

postgres_bin() { find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1; }

missing=()
[ -n "$(postgres_bin)" ] || missing+=(postgresql postgresql-contrib)
command -v psql >/dev/null || missing+=(postgresql-client)
command -v npm >/dev/null || missing+=(nodejs npm)
if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "needs root to install ${missing[*]}: run it once as root, or install them yourself"
        as_root=(sudo)
    fi
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
[ -n "$(postgres_bin)" ] || die "PostgreSQL's server programs are not under /usr/lib/postgresql"

stamp="$directory/.installed-$gnd_version-$graph_ts_version-$assemblyscript_version"
if [ ! -e "$stamp" ]; then
    say "installing graph-node $gnd_version into $directory"
    mkdir -p "$directory"
    rm -f "$directory"/.installed-*
    printf '{"name":"graph-node-for-tests","private":true}\n' >"$directory/package.json"
    npm install --prefix "$directory" --no-audit --no-fund --no-save --loglevel=error \
        "@graphprotocol/gnd-linux-x64@$gnd_version" \
        "@graphprotocol/graph-ts@$graph_ts_version" \
        "assemblyscript@$assemblyscript_version"
    "$directory/node_modules/@graphprotocol/gnd-linux-x64/bin/gnd" --version >/dev/null
    touch "$stamp"
fi
say "ready in $directory"
