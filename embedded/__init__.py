"""PostgreSQL, Redis and the ClickHouse engine as local processes out of wheels. `embedded.stack` is the way in.

Nothing in the product depends on this package: it knows servers by their DSN only.
"""
