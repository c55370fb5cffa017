# Builds both binaries and serves a model over the OpenAI API:
#
#     docker build -t dspark .
#     docker run -p 8000:8000 -v ./checkpoints:/models -v dspark-cache:/home/dspark/.cache dspark --target /models/quickstart-target
#
# The cache keeps the speed profile of this machine, which `--mode scheduled` measures at its first start.
# Set `DSPARK_API_KEY` (`-e DSPARK_API_KEY=...`) before you open the port to others.

FROM rust:1.95-slim-trixie AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked --workspace --bins

FROM debian:trixie-slim
RUN useradd --uid 10001 --create-home dspark \
    && mkdir -p /models /home/dspark/.cache \
    && chown dspark:dspark /models /home/dspark/.cache
COPY --from=build /source/target/release/dspark /source/target/release/deepspec /usr/local/bin/
USER dspark
WORKDIR /home/dspark
VOLUME ["/models", "/home/dspark/.cache"]
EXPOSE 8000
STOPSIGNAL SIGTERM
# The image has no curl: bash opens the connection.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["bash", "-c", "exec 3<> /dev/tcp/127.0.0.1/8000 && printf 'GET /health HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["dspark", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--help"]
