# Trains, localizes and serves with PyTorch, on processors. From the root of the repository:
#
#     docker build -f docker/train.Dockerfile -t defectcam-train --build-arg TORCH_INDEX=... .
#     docker run --rm -v "$PWD/parts:/data" defectcam-train fit /data/train -o /data/part.safetensors
#
# TORCH_INDEX is the index of PyTorch's wheels for processors alone, as its installation page names
# it. Without it the default wheels are installed, which bring several gigabytes for graphics cards.
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY defectcam ./defectcam
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
ARG TORCH_INDEX=""
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[serve]" && rm -r /wheels
RUN useradd --create-home inspector
USER inspector
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["defectcam"]
