#!/bin/sh
# Entry point of the Grafana container. An administrator's password comes from GRAFANA_PASSWORD_FILE, or is made once: never Grafana's own "admin".
set -eu
umask 077
given=${GIVEN_PASSWORD:-/run/secrets/grafana_password}
made=${MADE_PASSWORD:-/var/lib/grafana/admin-password}

if [ -s "$given" ]; then
    password=$given
else
    if [ ! -s "$made" ]; then
        head -c 24 /dev/urandom | base64 | tr '+/' '-_' > "$made.new"
        mv "$made.new" "$made"
    fi
    echo "GRAFANA_PASSWORD_FILE names no password; the one of the user admin is shown by: docker exec qmd-grafana cat $made"
    password=$made
fi
export GF_SECURITY_ADMIN_PASSWORD__FILE="$password"
exec "${GRAFANA:-/run.sh}" "$@"
