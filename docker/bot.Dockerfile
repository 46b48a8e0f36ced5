# The bot: its page and its Pipecat pipeline, on the CPU; the models are the server's. For arm64 and x86-64.
#
#   docker build -f docker/bot.Dockerfile -t triton-voice-bot .
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS installer
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG UV_VERSION=0.13.8
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
# A mirror of the package index, or a folder of wheels, where the build cannot reach the public ones.
ARG UV_INDEX_URL
ARG UV_FIND_LINKS
ENV UV_LINK_MODE=copy
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /uv && /uv/bin/pip install --disable-pip-version-check "uv==${UV_VERSION}" \
    && python3 -m venv --without-pip /opt/venv
RUN --mount=type=bind,source=docker/locks,target=/locks \
    --mount=type=cache,target=/root/.cache/uv \
    lock="/locks/bot-$(uname -m)-$(python3 -c 'import sys; print("py%d%d" % sys.version_info[:2])').txt" \
    && /uv/bin/uv pip install --no-config --python /opt/venv/bin/python --no-deps --compile-bytecode --requirement "${lock}"
WORKDIR /opt/triton-voice
COPY LICENSE README.md pyproject.toml ./
COPY bot bot
COPY client client
COPY model_repository/parakeet/config.pbtxt model_repository/parakeet/config.pbtxt
COPY model_repository/nemotron/profiles model_repository/nemotron/profiles
COPY docker/bot_healthcheck.py docker/
RUN --mount=type=cache,target=/root/.cache/uv \
    /uv/bin/uv pip install --no-config --python /opt/venv/bin/python --no-deps --editable . \
    && PATH="/opt/venv/bin:${PATH}" TRITON_VOICE_HOME=/opt/triton-voice triton-voice bot --help > /dev/null

FROM ${PYTHON_IMAGE}
COPY --from=installer /opt/venv /opt/venv
COPY --from=installer /opt/triton-voice /opt/triton-voice
# onnxruntime, which runs the voice activity model, reports to its maker how it is used unless it is told not to.
ENV ORT_DISABLE_TELEMETRY=1 \
    PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    TRITON_VOICE_HOME=/opt/triton-voice
WORKDIR /opt/triton-voice
USER 1000:1000
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="triton-voice-bot" \
      org.opencontainers.image.description="A voice bot in the browser over a triton-voice server" \
      org.opencontainers.image.licenses="BSD-2-Clause" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
EXPOSE 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["python", "docker/bot_healthcheck.py"]
CMD ["triton-voice", "bot"]
