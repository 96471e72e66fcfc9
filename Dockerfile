# jobcell as a container: server, agent, or both (`up`), and the command line. For people with a registry; deploy/README.md tells how
# it is run. tests/it/container.rs builds the last stage as it stands here, on a tree of the same Debian packages.

FROM rust:1.95-slim-bookworm AS build
# gcc and the static C library (bundled SQLite, the static warden) come with libc6-dev. Python says
# what the program is made of.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev pkg-config make python3 \
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
COPY LICENSE LICENSE
COPY scripts/sbom.py scripts/sbom.py
ARG SOURCE_DATE_EPOCH
RUN scripts/sbom.py --fetch target/sbom

FROM debian:bookworm-slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="jobcell" \
      org.opencontainers.image.description="Job executor agent that runs each job in its own sealed, single-use container cell" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
# A user of its own. It reaches the engine through the socket's group, which the one who runs the container names.
RUN groupadd --gid 7807 jobcell \
 && useradd --uid 7807 --gid 7807 --home-dir /var/lib/jobcell --no-create-home --shell /usr/sbin/nologin jobcell \
 && install -d -o jobcell -g jobcell -m 0700 /var/lib/jobcell
COPY --from=build /source/target/release/jobcell /usr/local/bin/jobcell
# What is in it (CycloneDX), and the licences of others that come with it.
COPY --from=build /source/target/sbom /usr/share/doc/jobcell
# Also for commands that are run in the container, and for the probe below.
ENV JOBCELL_DATA_DIR=/var/lib/jobcell
USER 7807:7807
VOLUME /var/lib/jobcell
EXPOSE 7807
# The agent drains on SIGTERM; nothing else in the container needs reaping, as jobs run in cells of the engine.
STOPSIGNAL SIGTERM
# Whether jobs can run: also for an agent, which says on its own address how it is. Nothing but the program is needed for it.
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 CMD ["/usr/local/bin/jobcell", "health"]
ENTRYPOINT ["/usr/local/bin/jobcell"]
CMD ["up"]
