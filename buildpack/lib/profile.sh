# Sourced before each process of the application: tidegate on PATH, and settings from the pgbouncer buildpack's variables.
# shellcheck shell=bash
export PATH="$HOME/.tidegate/bin:$PATH"
tidegate_settings=$("$HOME/.tidegate/lib/from-pgbouncer")
if [ -n "$tidegate_settings" ]; then
  export TIDEGATE_CONFIG="$tidegate_settings"
fi
unset tidegate_settings
