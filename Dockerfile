# One image for worker, beat, Flower, the metrics exporter and migrations. Needs nothing but the package registry.
# BASE is any image with Python 3.11 or 3.12 as `python3`, with its venv module.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS packages
COPY requirements.lock deploy/strip.py /tmp/
RUN python3 -m venv /opt/retailmedia \
    && /opt/retailmedia/bin/python -m pip install --no-cache-dir --no-compile --require-hashes --only-binary :all: \
        --requirement /tmp/requirements.lock \
    # Left out: what installs packages, other packages' tests, what only a compiler or a debugger reads.
    && /opt/retailmedia/bin/python -m pip uninstall --quiet --yes setuptools pip \
    && find /opt/retailmedia -depth -type d \( -name tests -o -name __pycache__ -o -name include \) -exec rm -rf {} + \
    && find /opt/retailmedia \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' -o -name '*.a' -o -name '_simd.*.so' \) -delete \
    && python3 /tmp/strip.py /opt/retailmedia

FROM ${BASE}
LABEL org.opencontainers.image.title="retailmedia-sync" \
      org.opencontainers.image.description="Advertising data from PostgreSQL into ClickHouse, on Celery"
RUN mkdir -p /app /var/lib/retailmedia/beat && chown -R 10001:10001 /var/lib/retailmedia
COPY --from=packages /opt/retailmedia /opt/retailmedia
COPY deploy/retailmedia /usr/local/bin/retailmedia
COPY beat_schedule.py main.py /app/
COPY worker /app/worker
COPY seed /app/seed
COPY embedded /app/embedded
COPY clickhouse /app/clickhouse
ENV PATH=/opt/retailmedia/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RETAILMEDIA_HOME=/var/lib/retailmedia \
    LOG_FORMAT=json
WORKDIR /app
USER 10001:10001
CMD ["retailmedia", "--help"]
