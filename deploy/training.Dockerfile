# Training, export and publishing, once: runs train-and-publish.sh and exits.
#
#   docker build -f deploy/training.Dockerfile -t mdctr-training .
#
# With --build-arg EXTRA=loadtest it has Locust, too, and sends traffic: the profile `load` of docker-compose.yml.
#
# pip takes torch from its default index, which on Linux is the CUDA build. For the much smaller CPU build pass
# --build-arg PIP_EXTRA_INDEX_URL=<the CPU index in PyTorch's installation guide>.
# To pin the base: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
ARG EXTRA=export
ARG PIP_EXTRA_INDEX_URL
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
    && /opt/mdctr/bin/pip install --constraint constraints.txt "mdctr[${EXTRA}] @ file://${wheel}"

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mdctr training" \
      org.opencontainers.image.description="Trains, exports and publishes models that rank in many domains." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin mdctr \
    && install --directory --owner mdctr --group mdctr /bundles /runs
COPY --from=build /opt/mdctr /opt/mdctr
COPY training/recipes/ /srv/recipes/
COPY loadtest/locustfile.py loadtest/budgets.yaml /srv/
COPY deploy/train-and-publish.sh /usr/local/bin/train-and-publish
ENV PATH=/opt/mdctr/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RUNS=/runs \
    BUNDLES=/bundles \
    RECIPE=/srv/recipes/plate_synthetic.yaml
WORKDIR /srv
USER 10001:10001
CMD ["train-and-publish"]
