# syntax=docker/dockerfile:1
#   docker build -t octavo .
#   docker run --rm -p 8000:8000 -v octavo-cache:/cache octavo            the demo
#   docker run --rm -p 8000:8000 -v octavo-cache:/cache octavo MODEL …    any model and flags

FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/octavo
WORKDIR /src
COPY . .
RUN /opt/octavo/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --user-group --home-dir /cache --create-home octavo
COPY --from=build /opt/octavo /opt/octavo
ENV PATH=/opt/octavo/bin:$PATH \
    OCTAVO_HOST=0.0.0.0 \
    OCTAVO_PORT=8000 \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /cache
VOLUME /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
# A start may take long on a slow disk; a container that is still loading is not yet unhealthy.
HEALTHCHECK --start-period=30m --start-interval=2s --interval=10s --timeout=3s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"OCTAVO_PORT\"]}/health', timeout=2)"]
ENTRYPOINT ["octavo", "serve"]
CMD ["smollm2"]
