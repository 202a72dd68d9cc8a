# An image that serves boxes: docs/deploying.md.
# torch comes with CUDA from PyPI; for a small image name PyTorch's CPU wheels:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=ADDRESS -t sdb .
FROM python:3.11-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/sdb
COPY constraints.txt ./
# By itself, so that a change of our source does not fetch it again.
RUN /opt/sdb/bin/pip install -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN /opt/sdb/bin/pip install -c constraints.txt ".[serve,onnx,redis,guard]" \
    && /opt/sdb/bin/python -c "import sdb.service.app, sdb.service.grpc_gateway, onnxruntime, redis"

FROM python:3.11-slim-bookworm
# /box holds boxes and ONNX files, read only; /state what is written: tokens and counts.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin sdb \
    && install -d -o sdb -g sdb -m 0750 /box /state
COPY --from=build /opt/sdb /opt/sdb
ENV PATH=/opt/sdb/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /state
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["sdb"]
CMD ["serve", "/box/model.box", "--host", "0.0.0.0"]
