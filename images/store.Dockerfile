# The embedded store: versitygw, an S3 server over a folder. From the repository's folder: --file images/store.Dockerfile.
# Where no Go image can be pulled, VERSITYGW=given takes the program from the build context instead of compiling it.

ARG BASE=docker.io/library/debian:trixie-slim
ARG GO_BASE=docker.io/library/golang:1.26
ARG VERSITYGW=compiled

FROM ${GO_BASE} AS compiled
ARG GOPROXY
WORKDIR /src
COPY cluster/go/versitygw/ ./
# Patched: 1.8.0 takes names for paths unseen, bodies into memory unmeasured, and never waits for the disk
# (docs/decisions/0003-dependencies.md).
RUN go mod download && cp -r "$(go list -m -f '{{.Dir}}' github.com/versity/versitygw)" /versitygw-sources && \
    chmod -R u+w /versitygw-sources && cd /versitygw-sources && git apply /src/*.patch && cd /src && \
    go mod edit -replace=github.com/versity/versitygw=/versitygw-sources && \
    CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags='-s -w' \
    -o /versitygw github.com/versity/versitygw/cmd/versitygw

FROM scratch AS given
COPY versitygw /versitygw

FROM ${VERSITYGW} AS program

# A base with a shell: the chart's set-up Job runs the same program's admin commands in a loop.
FROM ${BASE}
LABEL org.opencontainers.image.title=ingestion-store
COPY images/versitygw/ /usr/share/doc/versitygw/
COPY --from=program --chmod=0755 /versitygw /usr/local/bin/versitygw
WORKDIR /tmp
USER 65532:65532
EXPOSE 7070
ENTRYPOINT ["versitygw"]
