# Serves exported models (.onnx) without PyTorch and scikit-learn. From the root of the repository:
#
#     docker build -f docker/runtime.Dockerfile -t defectcam-runtime .
#     docker run --rm -p 8000:8000 -v "$PWD/part.onnx:/models/part.onnx:ro" defectcam-runtime
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY defectcam ./defectcam
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY --from=build /wheels /wheels
# Without the wheel's own dependencies, which are for training.
RUN pip install --no-cache-dir --no-deps /wheels/*.whl && rm -r /wheels \
    && pip install --no-cache-dir numpy opencv-python-headless pillow onnxruntime \
        fastapi uvicorn python-multipart prometheus-client
RUN useradd --create-home inspector
USER inspector
WORKDIR /models
EXPOSE 8000
ENTRYPOINT ["defectcam"]
CMD ["serve", "/models/part.onnx", "--host", "0.0.0.0"]
