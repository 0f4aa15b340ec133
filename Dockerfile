FROM python:3.11-slim

# Where pip finds packages: pip's own default when empty. Linux torch from the default index brings CUDA; for a small CPU
# image give the address of PyTorch's CPU index as TORCH_INDEX_URL. Put no credentials here: build arguments stay in the history.
ARG PIP_INDEX_URL=""
ARG TORCH_INDEX_URL=""

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /app

# The dependencies are a layer of their own: a change of the code does not install torch again.
COPY pyproject.toml requirements.lock ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/runtime.txt \
    && pip install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
        --constraint requirements.lock --requirement /tmp/runtime.txt setuptools \
    && rm /tmp/runtime.txt

COPY README.md LICENSE ./
COPY madtp_core ./madtp_core
COPY service ./service
RUN pip install --no-deps --no-build-isolation . && rm -rf build ./*.egg-info madtp_core service

COPY examples ./examples
COPY checkpoints/blip-vqa-shapes ./checkpoints/blip-vqa-shapes

# Runs as nobody in particular on a read-only root: what Hugging Face downloads for a hub id goes to /tmp, a tmpfs or a volume.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin madtp
USER 10001
ENV HF_HOME=/tmp/huggingface \
    MADTP_HOST=0.0.0.0 \
    MADTP_PORT=8000

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['MADTP_PORT'] + '/readyz', timeout=4)"]
CMD ["madtp-serve"]
