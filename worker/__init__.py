"""Retail media sync: PostgreSQL to ClickHouse on Celery."""
