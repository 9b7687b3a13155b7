# The image of this program, by Docker: docker build --tag registry.example.com/textnlp:v1.0.0 .
# `bundle create` packs one that runs alike, and `up` pushes it: both without Docker, and with the same bytes on every machine.
FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
# The program is static, so that nothing else has to be in the image.
RUN cargo build --release --locked --features clouds,candle --target-dir /build \
    && mkdir -p /image/usr/local/bin /image/etc/textnlp /image/etc/ssl/certs /image/var/lib/textnlp/models \
    && mkdir -m 1777 /image/tmp \
    && cp /build/*/release/textnlp-deploy /image/usr/local/bin/ \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && printf 'root:x:0:0:root:/:/sbin/nologin\ntextnlp:x:65532:65532:textnlp:/var/lib/textnlp:/sbin/nologin\n' > /image/etc/passwd \
    && printf 'root:x:0:\ntextnlp:x:65532:\n' > /image/etc/group \
    && chown -R 65532:65532 /image/var/lib/textnlp

FROM scratch
COPY --from=build /image /
ENV PATH=/usr/local/bin HOME=/var/lib/textnlp SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt TMPDIR=/tmp
USER 65532:65532
WORKDIR /var/lib/textnlp
VOLUME /var/lib/textnlp
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/textnlp-deploy"]
CMD ["serve", "--config", "/etc/textnlp/server.yaml"]
