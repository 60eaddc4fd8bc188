# docker build -t medssl .    docker run --gpus all -v /data:/data medssl pretrain store=/data/store out=/data/run
# torch ships its own CUDA libraries; the base image provides the driver interface
FROM nvidia/cuda:12.8.1-base-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home medssl
ENV PATH=/opt/medssl/bin:$PATH PYTHONUNBUFFERED=1
COPY pyproject.toml README.md LICENSE /src/
COPY ssl /src/ssl
COPY configs /src/configs
RUN python3 -m venv /opt/medssl && pip install --no-cache-dir '/src[monai]'
USER medssl
WORKDIR /home/medssl
ENTRYPOINT ["medssl"]
CMD ["--help"]
