# The package with PyTorch for CUDA, which also runs on CPUs. From the root of the repository:
#
#   docker build -t lit-transfusion --build-arg UID=$(id -u) .
#
#   docker run --rm --gpus all --ipc=host \
#       -v "$PWD/runs:/app/runs" -v /path/to/pictures:/data:ro \
#       lit-transfusion fit --config configs/quickstart.yaml --trainer.accelerator gpu --trainer.devices 1 --trainer.strategy auto
#
# --gpus all   needs the NVIDIA Container Toolkit on the host. Leave it out on a CPU.
# --ipc=host   provides enough shared memory for the processes of `data.num_workers`.
# /app/runs    contains the files of the runs. Create it on the host first (mkdir -p runs), or Docker creates it as root.
# /data        contains your own pictures, for the paths in a config.
FROM python:3.11-slim

# torch.compile, and with it FlexAttention, calls a C++ compiler at run time.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app

# The dependencies are a separate layer: gigabytes that change less often than the code.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/requirements.txt \
    && pip install --no-cache-dir -r /tmp/requirements.txt

COPY README.md LICENSE ./
COPY configs configs
COPY lit_transfusion lit_transfusion
RUN pip install --no-cache-dir --no-deps .

# The same user id as on the host, so that the files in the mounted folder belong to you.
ARG UID=1000
RUN useradd --uid "$UID" --create-home user \
    && mkdir --parents runs \
    && chown user runs
USER user

ENTRYPOINT ["python", "-m", "lit_transfusion"]
CMD ["--help"]
