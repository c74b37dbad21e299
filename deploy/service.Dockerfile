# The scoring service: the wheel with its `service` extra, and so no torch.
#
#   docker build -f deploy/service.Dockerfile -t mdctr-service .                        # scores on the CPU
#   docker build -f deploy/service.Dockerfile --target gpu -t mdctr-service:gpu .       # on a GPU of NVIDIA
#   docker run --read-only --tmpfs /tmp --publish 127.0.0.1:8080:8080 --volume ./runs/bundles:/bundles:ro \
#     --env MDCTR_BUNDLE=/bundles/current --env MDCTR_STORE=redis://... --env MDCTR_ALLOW_PUBLIC=true mdctr-service
#
# It listens on every address of its container, and answers whoever asks: that has to be allowed in words.
# With the exposure log: --build-arg EXTRAS=exposures,tracing. Without spans: --build-arg EXTRAS=.
# To pin the bases: --build-arg PYTHON_IMAGE=python@sha256:... --build-arg CUDA_IMAGE=nvidia/cuda@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# The CUDA and cuDNN that onnxruntime-gpu is built for; Ubuntu's Python is 3.12.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY service/ service/
COPY training/ training/
COPY export/ export/
COPY loadtest/ loadtest/
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

FROM ${PYTHON_IMAGE} AS installed-cpu
ARG EXTRAS=tracing
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
COPY --from=wheel /dist /dist
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/mdctr \
    && wheel="$(echo /dist/mdctr-*.whl)" \
    && /opt/mdctr/bin/pip install --constraint constraints.txt "mdctr[service${EXTRAS:+,${EXTRAS}}] @ file://${wheel}"

FROM ${CUDA_IMAGE} AS python-gpu
# Ubuntu's archive keeps the latest version of a package only, so none can be named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

FROM python-gpu AS installed-gpu
ARG EXTRAS=tracing
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
COPY --from=wheel /dist /dist
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/mdctr \
    && wheel="$(echo /dist/mdctr-*.whl)" \
    && /opt/mdctr/bin/pip install --constraint constraints.txt "mdctr[service-gpu${EXTRAS:+,${EXTRAS}}] @ file://${wheel}"

FROM python-gpu AS gpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mdctr service on a GPU" \
      org.opencontainers.image.description="Ranks candidates in many domains, on a GPU." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin mdctr \
    && install --directory --owner mdctr --group mdctr /bundles
COPY --from=installed-gpu /opt/mdctr /opt/mdctr
COPY deploy/healthy.py /usr/local/lib/
ENV PATH=/opt/mdctr/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MDCTR_HOST=0.0.0.0 \
    MDCTR_PORT=8080 \
    MDCTR_ENGINE=ort_cuda
WORKDIR /srv
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "/usr/local/lib/healthy.py"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["run"]

FROM ${PYTHON_IMAGE} AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mdctr service" \
      org.opencontainers.image.description="Ranks candidates in many domains." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin mdctr \
    && install --directory --owner mdctr --group mdctr /bundles
COPY --from=installed-cpu /opt/mdctr /opt/mdctr
COPY deploy/healthy.py /usr/local/lib/
ENV PATH=/opt/mdctr/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MDCTR_HOST=0.0.0.0 \
    MDCTR_PORT=8080
WORKDIR /srv
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "/usr/local/lib/healthy.py"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["run"]
