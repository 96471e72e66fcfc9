# The agent as a container: `jobcell up` beside the engine whose socket it is given. For people with a registry;
# deploy/README.md tells how it is run.

FROM rust:1.95-slim-bookworm AS build
# gcc and the static C library (bundled SQLite, the static warden) come with libc6-dev.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev pkg-config make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY Cargo.toml Cargo.lock build.rs ./
COPY warden warden
COPY seccomp seccomp
COPY config config
# The catalogue of errors, which the program explains itself with.
COPY docs docs
COPY src src
# The manifest names them, and cargo wants every target it names.
COPY benches benches
COPY tests tests
RUN cargo build --release --locked --bin jobcell

FROM debian:bookworm-slim
# A user of its own. It reaches the engine through the socket's group, which the one who runs the container names.
RUN groupadd --gid 7807 jobcell \
 && useradd --uid 7807 --gid 7807 --home-dir /var/lib/jobcell --no-create-home --shell /usr/sbin/nologin jobcell \
 && install -d -o jobcell -g jobcell -m 0700 /var/lib/jobcell
COPY --from=build /source/target/release/jobcell /usr/local/bin/jobcell
USER 7807:7807
VOLUME /var/lib/jobcell
EXPOSE 7807
# The agent drains on SIGTERM; nothing else in the container needs reaping, as jobs run in cells of the engine.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/jobcell"]
CMD ["up", "--data-dir", "/var/lib/jobcell"]
