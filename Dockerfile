# madtp-serve with the demo weights. Nothing of the build stage but the virtual environment reaches the final one.
#   CPU   docker build --build-arg TORCH_INDEX_URL=<address of PyTorch's CPU index> .
#   CUDA  docker build --build-arg VARIANT=cuda .
# Where pip finds packages: pip's own default when empty. Put no credentials here: build arguments stay in the history.

FROM python:3.11-slim AS build

ARG PIP_INDEX_URL=""
# cpu: torch from TORCH_INDEX_URL where it is given. cuda: torch from the default index, whose Linux wheel carries CUDA.
ARG VARIANT="cpu"
ARG TORCH_INDEX_URL=""

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /build
RUN python -m venv --without-pip /opt/venv

# The dependencies are a layer of their own: a change of the code does not install torch again.
COPY pyproject.toml requirements.lock ./
RUN case "$VARIANT" in \
        cpu) extra="$TORCH_INDEX_URL" ;; \
        cuda) extra="" ;; \
        *) echo "VARIANT is cpu or cuda, got '$VARIANT'" >&2; exit 1 ;; \
    esac \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > runtime.txt \
    && pip --python /opt/venv/bin/python install ${extra:+--extra-index-url "$extra"} \
        --constraint requirements.lock --requirement runtime.txt setuptools

COPY README.md LICENSE ./
COPY madtp_core ./madtp_core
COPY service ./service
RUN pip --python /opt/venv/bin/python install --no-deps --no-build-isolation .


FROM python:3.11-slim

ARG VARIANT="cpu"
ARG VERSION="0.1.0"
ARG REVISION=""
LABEL org.opencontainers.image.title="madtp-serve" \
      org.opencontainers.image.description="Serves vision-language models whose tokens are pruned by MADTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      madtp.variant="$VARIANT"

# The root may be read-only. What is written goes to two folders that volumes are mounted on: what Hugging Face downloads
# for a hub id, and what difficulty predictors have learned where MADTP_STATE_DIR is set.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin madtp \
    && install --directory --owner=10001 --group=10001 /var/cache/huggingface /var/lib/madtp

WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY examples ./examples
COPY checkpoints ./checkpoints

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/var/cache/huggingface \
    MADTP_HOST=0.0.0.0 \
    MADTP_PORT=8000

USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; e = os.environ; u.urlopen(u.Request('http://127.0.0.1:' + e['MADTP_PORT'] + '/readyz', headers={'Authorization': 'Bearer ' + e.get('MADTP_MONITORING_KEY', '')}), timeout=4)"]
CMD ["madtp-serve"]
