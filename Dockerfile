# A node: the testbed and what it needs, on any Python 3.11 or later with pip; and the shaper that sits beside one.
#   docker build --target node -t slowlink-testbed .          (make image: and --target shaper, slowlink-testbed-shaper)
# Without a network: wheels in ./wheels (pip download -d wheels -c constraints.txt . setuptools), and
#   docker build --target node -t slowlink-testbed --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheels .
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
ARG PIP_INDEX_URL
# PyTorch's own index has builds for processors alone, a tenth of the size; empty: the CUDA build of PyPI.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY constraints.txt wheel[s] /wheels/
RUN python3 -m venv /opt/testbed
WORKDIR /opt/testbed/src
COPY pyproject.toml README.md ./
COPY experiments experiments
COPY emulation emulation
COPY testbed testbed
# Small: without headers and the packages' own tests. Compiled here, for a node may write nothing (a file that is for
# a later Python does not compile, and is not ours).
RUN /opt/testbed/bin/pip install -q --no-compile -c /wheels/constraints.txt -e . \
    && cd /opt/testbed/lib/python3*/site-packages && rm -rf torch/include torch/test */tests */*/tests \
    && { /opt/testbed/bin/python -m compileall -qq -j 0 . ../../../src || true; }

FROM ${BASE_IMAGE} AS node
COPY --from=build /opt/testbed /opt/testbed
ENV PATH=/opt/testbed/bin:$PATH PYTHONPATH=/opt/testbed/src PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 HOME=/tmp
WORKDIR /cluster
RUN ["python3", "-c", "import os; os.makedirs('out'); os.chown('out', 10001, 10001)"]
USER 10001:10001
CMD ["testbed", "--help"]

FROM node AS shaper
USER 0:0
RUN { command -v tc && command -v iptables; } >/dev/null || { apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends iproute2 iptables && rm -rf /var/lib/apt/lists/*; }

FROM node
