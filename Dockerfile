# tintray with what a cluster's nodes need: jobs, serving, PostgreSQL, tables of data.
#
#     docker build -t tintray .                          on CPUs
#     docker build -t tintray:cuda --build-arg VARIANT=cuda .
#
# The image has no root: it runs as user 10001. docs/deploy.md says how it is used.

ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm AS build

ARG VARIANT=cpu
ARG EXTRAS=cluster,data,postgres,serve
# PyTorch's own index has builds without CUDA, a tenth of the size; those of PyPI have it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN python -m venv /opt/tintray
ENV PATH=/opt/tintray/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# Before the sources, whose changes leave this layer as it is.
RUN case "$VARIANT" in \
      cpu) set -- --index-url "$TORCH_INDEX" ;; \
      cuda) set -- ;; \
      *) echo "VARIANT: expected cpu or cuda, found '$VARIANT'" >&2; exit 2 ;; \
    esac \
    && pip install "$@" --constraint constraints.txt torch

COPY tintray tintray
COPY jobs jobs
COPY storage storage
RUN pip install --constraint constraints.txt ".[$EXTRAS]"


FROM python:${PYTHON}-slim-bookworm

COPY --from=build /opt/tintray /opt/tintray
# A login shell, as operators start pods with, forgets PATH: the commands are where it looks, too.
RUN ln -s /opt/tintray/bin/tintray /opt/tintray/bin/ray /usr/local/bin/ \
    && useradd --create-home --uid 10001 --shell /bin/bash tintray \
    && install --directory --owner=tintray --group=tintray /work

ENV PATH=/opt/tintray/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    TINTRAY_PYTHON=/opt/tintray/bin/python

USER 10001:10001
WORKDIR /work
ENTRYPOINT ["tintray"]
CMD ["--help"]
