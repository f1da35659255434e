#!/bin/sh
# Runs once, when the server's data folder is made. Expects POSTGRES_SYNC_PASSWORD.
set -eu
psql -v ON_ERROR_STOP=1 -v sync_password="$POSTGRES_SYNC_PASSWORD" -q \
    --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --file "${RETAILMEDIA_ROLES:-/etc/retailmedia/roles.sql}"
