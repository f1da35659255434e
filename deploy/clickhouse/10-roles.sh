#!/bin/sh
# Runs at each start of the server, before others are let in. Passwords reach the server as their SHA-256 only.
set -eu
sha256() { printf %s "$1" | sha256sum | cut -c1-64; }
sed -e "s/{owner_sha256}/$(sha256 "$CLICKHOUSE_OWNER_PASSWORD")/" \
    -e "s/{sync_sha256}/$(sha256 "$CLICKHOUSE_SYNC_PASSWORD")/" \
    -e "s/{reader_sha256}/$(sha256 "$CLICKHOUSE_READER_PASSWORD")/" \
    "${RETAILMEDIA_ROLES:-/etc/retailmedia/roles.sql}" |
    clickhouse-client --user "$CLICKHOUSE_USER" --password "$CLICKHOUSE_PASSWORD" --multiquery
