# The command in a container, for clusters and clouds: docs/machines.md.
#
#     docker build -t inside-ensemble .                            without a GPU
#     docker build -t inside-ensemble --build-arg TORCH=cu128 .    for NVIDIA's; run it with --gpus all
#     docker run --rm -v "$PWD:/data" inside-ensemble predict images --manifest ... --weights-dir ... --out masks
#
# mmdet's packages are put into the image: a run needs no network.
FROM python:3.12-slim

ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore XDG_CACHE_HOME=/opt/cache

# uv knows which index has which build of torch.
RUN pip install uv==0.13.9 && uv pip install --system --torch-backend=${TORCH} torch torchvision && pip uninstall -y uv

WORKDIR /opt/inside-ensemble
COPY . .
RUN pip install ".[formats]"
RUN python -m inside_ensemble.bundle.site && chmod -R a+rX /opt/cache

# Not the folder of the checkout, which Python would look into first.
WORKDIR /data
ENTRYPOINT ["inside-ensemble"]
