#!/bin/sh
# Runs once, when the server's data folder is made. Expects POSTGRES_SYNC_PASSWORD.
set -eu
for file in "${RETAILMEDIA_ROLES:-/etc/retailmedia/roles.sql}" "${RETAILMEDIA_LIMITS:-/etc/retailmedia/limits.sql}"; do
    psql -v ON_ERROR_STOP=1 -v sync_password="$POSTGRES_SYNC_PASSWORD" -q \
        --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --file "$file"
done
