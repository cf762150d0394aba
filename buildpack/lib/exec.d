#!/usr/bin/env bash
# Run by the launcher before each process: settings from the pgbouncer buildpack's variables. What is to be in the
# environment is written as TOML to descriptor 3.
settings=$("$(dirname "${BASH_SOURCE[0]}")/../lib/from-pgbouncer")
if [ -n "$settings" ]; then
  printf 'TIDEGATE_CONFIG = "%s"\n' "$settings" >&3
fi
