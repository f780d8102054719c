# PostgreSQL with pg_changefeed, on the official image of the server:
#
#   docker build --build-arg PG_MAJOR=17 --tag pg_changefeed .
#   docker run -e POSTGRES_PASSWORD=... -v secrets:/run/secrets:ro \
#       -p 5432:5432 -p 127.0.0.1:8040:8040 pg_changefeed \
#       postgres -c changefeed.jwt_secret_file=/run/secrets/changefeed
#
# doc/packaging.md says more. Without a key for tokens nobody is let in.
ARG PG_MAJOR=17

FROM postgres:${PG_MAJOR}-bookworm AS build
ARG PG_MAJOR
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        build-essential \
        libcjose-dev \
        libjansson-dev \
        libseccomp-dev \
        libssl-dev \
        libuv1-dev \
        libwebsockets-dev \
        pkgconf \
        "postgresql-server-dev-${PG_MAJOR}" \
        zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src/pg_changefeed
COPY . .
RUN make -j "$(nproc)" "PG_CONFIG=/usr/lib/postgresql/${PG_MAJOR}/bin/pg_config" \
    && make install "PG_CONFIG=/usr/lib/postgresql/${PG_MAJOR}/bin/pg_config" DESTDIR=/staged

FROM postgres:${PG_MAJOR}-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        libcjose0 \
        libjansson4 \
        libseccomp2 \
        libssl3 \
        libuv1 \
        libwebsockets-evlib-uv \
        libwebsockets17 \
        zlib1g \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /staged/ /
# Settings for clusters that the image makes. A container is reached by others
# only as far as its ports are published.
RUN { \
        echo "shared_preload_libraries = 'pg_changefeed'"; \
        echo "wal_level = logical"; \
        echo "max_worker_processes = 16"; \
        echo "changefeed.listen_addresses = '*'"; \
    } >> /usr/share/postgresql/postgresql.conf.sample \
    && echo 'CREATE EXTENSION pg_changefeed;' > /docker-entrypoint-initdb.d/10_pg_changefeed.sql
EXPOSE 8040
