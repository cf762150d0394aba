# Builds tidegate and puts the one binary into a small image that runs as nobody special.

FROM rust:1-bookworm AS build
WORKDIR /build
# Dependencies first: they change seldom, and their layer is kept while only the source changes.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked \
    && rm -rf src
COPY src src
# Cargo goes by times: the stand-ins above must look older than what was copied.
RUN touch src/lib.rs src/main.rs && cargo build --release --locked

FROM debian:bookworm-slim
# The system's roots, for sslmode=verify-full and rediss:// with verification.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home --shell /usr/sbin/nologin tidegate
COPY --from=build /build/target/release/tidegate /usr/local/bin/tidegate
USER tidegate
# Inside a container the application is another one: listen on all its addresses.
ENV TIDEGATE_POSTGRES_LISTEN=0.0.0.0:6432 \
    TIDEGATE_REDIS_LISTEN=0.0.0.0:6380 \
    TIDEGATE_ADMIN_LISTEN=0.0.0.0:9127
EXPOSE 6432 6380 9127
ENTRYPOINT ["tidegate"]
CMD ["serve"]
