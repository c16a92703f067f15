# syntax=docker/dockerfile:1
# The toolkit with all it needs, for NVIDIA GPUs or for a CPU. From the repository's root:
#
#   docker build -t cssr .                                      torch as the package registry has it: with CUDA
#   docker build -t cssr --build-arg TORCH_INDEX=ADDRESS .      torch's CPU wheels, from the index that its site names
#
#   docker run --rm -v "$PWD:/photographs" cssr cssr predict /photographs --out /photographs/cracks --measure
#   docker run --rm --gpus all --shm-size 16g -v "$PWD/data:/data" -v "$PWD/runs:/runs" cssr \
#     accelerate launch --config_file launch/single_gpu.yaml cssr/train.py configs/cssr.yaml \
#     data.train=/data/train data.val=/data/val train.run_dir=/runs/cssr
#
# Loaders hand batches over through shared memory, of which a container has 64 MiB unless --shm-size says more.
FROM python:3.11-slim-bookworm

# A compiler for the kernels of DeepSpeed and torch.compile, make for `make test`, Pango for PDF reports, procps for the
# signals of the launch files; fonts for the reports.
RUN apt-get update \
 && apt-get install -y --no-install-recommends fonts-dejavu-core g++ libpango-1.0-0 libpangoft2-1.0-0 make procps \
 && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=
ARG EXTRAS=demo,deepspeed,doctor,encoders,large,onnx,pdf,smp,survey,tensorboard
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /workspace

# What does not change from day to day first, so that a changed source file is installed in a second.
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch torchvision
COPY . ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -e ".[$EXTRAS]" \
 && cssr --help > /dev/null
CMD ["cssr", "--help"]
