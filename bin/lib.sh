# What the scripts share; sourced, not run.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
# Client libraries for the tests, and what the scripts remember: next to what cargo builds.
CACHE=$TARGET/clients

say() { printf '%s\n' "$*"; }
fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

# The server's programs of Postgres, which Debian keeps out of PATH: the newest version's directory.
postgres_bin() {
  local newest
  newest=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
  if [ -n "$newest" ]; then
    printf '%s' "$newest"
  elif command -v initdb >/dev/null; then
    dirname "$(command -v initdb)"
  fi
}

# What stands before a program so that it runs as somebody who is not root: Postgres refuses root. An
# array and no function: a program started in the background must be our own child, to be ended by its id.
AS_NOBODY=()
if [ "$(id -u)" = 0 ]; then AS_NOBODY=(setpriv --reuid=nobody --regid=nogroup --clear-groups); fi

# A port of 127.0.0.1 below the ephemeral range on which nothing listens. Each call gives another one.
LAST_PORT=$((15000 + $$ % 14000))
free_port() {
  while :; do
    LAST_PORT=$((LAST_PORT + 1))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$LAST_PORT") 2>/dev/null; then
      return
    fi
  done
}

# Waits until `$@` succeeds, at most about `$1` seconds.
wait_for() {
  local seconds=$1 what=$2
  shift 2
  local deadline=$((SECONDS + seconds))
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "waited $seconds seconds in vain for: $what"
    sleep 0.1
  done
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# A throwaway Postgres in `$1` on port `$2`; its process id is in STARTED.
start_postgres() {
  local directory=$1 port=$2 tools
  tools=$(postgres_bin)
  mkdir -p "$directory"
  if [ "$(id -u)" = 0 ]; then chown nobody:nogroup "$directory"; fi
  "${AS_NOBODY[@]}" "$tools/initdb" -D "$directory/data" -U postgres -A trust -E UTF8 --locale=C --no-sync \
    >"$directory/initdb.log" 2>&1 || fail "initdb failed: $(cat "$directory/initdb.log")"
  "${AS_NOBODY[@]}" "$tools/postgres" -D "$directory/data" -p "$port" -k "$directory" \
    -c listen_addresses=127.0.0.1 -c fsync=off -c full_page_writes=off -c max_connections=250 \
    -c shared_buffers=128MB -c autovacuum=off >"$directory/log" 2>&1 </dev/null &
  STARTED=$!
  wait_for 30 "Postgres takes logins" psql -h 127.0.0.1 -p "$port" -U postgres -Atc 'select 1' postgres
}

# A throwaway Redis in `$1` on port `$2`; its process id is in STARTED.
start_redis() {
  mkdir -p "$1"
  redis-server --port "$2" --bind 127.0.0.1 --save '' --appendonly no --dir "$1" --maxclients 20000 \
    >"$1/log" 2>&1 </dev/null &
  STARTED=$!
  wait_for 15 "Redis answers" redis-cli -p "$2" ping
}

# Ends what this script started, by its ids: politely, then, after ten seconds, for good.
stop_all() {
  local pid
  for pid in "$@"; do kill -INT "$pid" 2>/dev/null || true; done
  for pid in "$@"; do
    local deadline=$((SECONDS + 10))
    while kill -0 "$pid" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
}
