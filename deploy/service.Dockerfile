# The scoring service: the wheel with its `service` extra, and so no torch.
#
#   docker build -f deploy/service.Dockerfile -t mdctr-service .
#   docker run --read-only --publish 127.0.0.1:8080:8080 --volume ./runs/bundles:/bundles:ro \
#     --env MDCTR_BUNDLE=/bundles/current --env MDCTR_STORE=redis://... --env MDCTR_ALLOW_PUBLIC=true mdctr-service
#
# It listens on every address of its container, and answers whoever asks: that has to be allowed in words.
# To pin the base: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt hatchling && python -m venv /opt/mdctr
COPY pyproject.toml README.md LICENSE ./
COPY service/ service/
COPY training/ training/
COPY export/ export/
COPY loadtest/ loadtest/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && wheel="$(echo /dist/mdctr-*.whl)" \
    && /opt/mdctr/bin/pip install --constraint constraints.txt "mdctr[service] @ file://${wheel}"

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="mdctr service" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin mdctr \
    && install --directory --owner mdctr --group mdctr /bundles
COPY --from=build /opt/mdctr /opt/mdctr
ENV PATH=/opt/mdctr/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MDCTR_HOST=0.0.0.0 \
    MDCTR_PORT=8080
WORKDIR /srv
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['MDCTR_PORT'] + '/healthz', timeout=2)"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["run"]
