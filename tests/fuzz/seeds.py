"""Writes the corpus: for each target some inputs that are right, from which a fuzzer starts.

``PYTHONPATH=tests python -m fuzz.seeds`` writes them anew. Inputs that once broke something lie
beside them as ``bug-*`` and are not touched.
"""

from __future__ import annotations

import base64
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from defectcam import DefectCAMClassifier
from defectcam.annotations import FORMATS
from defectcam.annotations_json import write_coco, write_label_studio, write_labelme
from defectcam.annotations_xml import write_cvat, write_voc
from defectcam.annotations_yolo import write_yolo
from defectcam.configuration import configuration_text
from defectcam.shapes import AnnotatedImage, Shape
from fuzz.model_targets import ModelBytes
from fuzz.targets import ANNOTATED, GAP

CORPUS = Path(__file__).parent / "corpus"


def write_corpus() -> None:
    """Replace all seeds."""
    seeds = {"image": images(), "model": models(), "config": configurations(), "cli": commands()}
    seeds |= {
        "large": large_images(),
        "service": requests(),
        **{name: annotations(name) for name in FORMATS},
    }
    for target, inputs in seeds.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("seed-*"):
            old.unlink()
        for name, data in inputs:
            (folder / f"seed-{name}").write_bytes(data)


def images() -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    grey16 = Image.fromarray(rng.integers(0, 65536, (6, 8), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    kept: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "png": (rgb, {}),
        "jpeg": (rgb, {"exif": exif}),
        "gif": (rgb.convert("P"), {"transparency": 0}),
        "bmp": (rgb, {}),
        "webp": (rgb.convert("RGBA"), {"lossless": True}),
        "ppm": (rgb, {}),
        "tiff": (grey16, {"compression": "tiff_lzw"}),
        "jpeg2000": (rgb, {}),
    }
    for format, (image, options) in kept.items():
        yield format, encoded(image, format, **options)
    yield "png-16", encoded(grey16, "png", transparency=3)
    yield "png-1", encoded(rgb.convert("1"), "png")
    yield "jpeg-cmyk", encoded(rgb.convert("CMYK"), "jpeg")
    yield "tiff-float", encoded(Image.fromarray(rng.random((6, 8), dtype=np.float32)), "tiff")
    yield "tiff-turned", encoded(rgb, "tiff", exif=exif)
    yield "pfm", b"Pf\n2 1\n-1.0\n" + np.float32([0.25, 0.5]).tobytes()
    yield "pgm-16", b"P5 2 1 65535\n\x01\x02\xff\xff"


def large_images() -> Iterator[tuple[str, bytes]]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    layouts: dict[str, dict[str, Any]] = {
        "plain": {},
        "strips": {"compression": "zlib", "rowsperstrip": 16},
        "tiles": {"compression": "zlib", "tile": (16, 16)},
        "16-bit": {"compression": "zlib", "predictor": 2},
    }
    for name, layout in layouts.items():
        file = io.BytesIO()
        image = pixels[..., 0].astype(np.uint16) * 99 if name == "16-bit" else pixels // 32
        tifffile.imwrite(file, image, metadata=None, **layout)
        yield name, file.getvalue()


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def models() -> Iterator[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield "description", ModelBytes(Path(folder)).seed
    yield "bytes", (2).to_bytes(8, "little") + b"{}"


def annotations(format: str) -> Iterator[tuple[str, bytes]]:
    outline = np.array([[1, 1], [6, 1], [4, 5]], float)
    holed = {"size": [12, 16], "counts": [14, 3, 9, 1, 1, 1, 9, 3, 151]}
    first, second = ANNOTATED
    listed = [
        AnnotatedImage(
            first,
            ANNOTATED[first],
            (
                Shape("scratch", (1, 1, 6, 5), (outline, outline + 6), None, 0.9),
                Shape("hole", (2, 3, 5, 6), (), None if format == "yolo" else holed, 0.5),
                Shape("box", (8, 2, 12, 4)),
            ),
        ),
        AnnotatedImage(second, ANNOTATED[second], (), "scratch"),
    ]
    for polygons in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            data = written(listed, format, Path(folder), polygons)
        yield "polygons" if polygons else "boxes", data


def written(images: list[AnnotatedImage], format: str, folder: Path, polygons: bool) -> bytes:
    classes = ["scratch", "hole", "box"]
    if format == "coco":
        write_coco(images, folder, classes, polygons)
    elif format == "cvat":
        write_cvat(images, folder, classes, polygons)
    elif format == "labelme":
        write_labelme(images[:1], ["annotations.json"], folder, ["a.png"], polygons)
    elif format == "labelstudio":
        write_label_studio(images, folder, classes, polygons)
        return (folder / "tasks.json").read_bytes()
    elif format == "voc":
        write_voc(images[:1], ["annotations.xml"], folder, classes)
        folder = folder / "Annotations"
    else:
        write_yolo(images[:1], ["a.txt"], folder, classes, polygons)
        table = (folder / "data.yaml").read_bytes()
        return table + GAP + (folder / "labels" / "a.txt").read_bytes()
    return next(folder.glob("annotations.*")).read_bytes()


def configurations() -> Iterator[tuple[str, bytes]]:
    lines = configuration_text(DefectCAMClassifier).splitlines()
    text = "\n".join(line for line in lines if line and not line.startswith("#"))
    yield "all", text.encode()


COMMANDS = (
    "fit parts -o n.safetensors --backbone vgg16 --weights none --image-size 32x48 --cv none",
    "fit parts -o m.safetensors --config fit.toml --force --recipe vgg16_cam --class-weight 3",
    "predict m.safetensors parts/good/0.png --threshold 0.5 --csv t.csv --fail-on-defect",
    "predict m.safetensors parts -o t.parquet --format parquet --json --quiet",
    "localize m.safetensors parts/scratch -o out --tile 32 --overlap 8 --format jsonl",
    "localize m.safetensors parts/scratch -o out --method gradcam --box-threshold 0.1",
    "annotate m.safetensors parts -o out --format coco --shapes polygon --tolerance 0.5",
    "evaluate m.safetensors parts --good-label good --masks parts --json",
    "report m.safetensors parts -o r.html --title Parts --no-labels",
    "export m.safetensors -o m.onnx --verify parts/good",
    "info m.safetensors --json",
    "serve part=m.safetensors --port 0 --token-file token --batch-size 2 --max-pixels 1000",
    "watch m.safetensors parts -o out --settle 0 --poll 0.1 --report-every 1 --overlays all",
    "query m.safetensors parts -n 2 --batch-size 3 --n-jobs 1 --device cpu",
    "split parts -o out --test-size 0.5 --group-pattern (.) --form csv",
    "doctor parts --good-label good --n-jobs 1 --json",
    "init -o new.toml --recipe vgg16_cam",
    "completion bash --json",
    "--help",
)


def commands() -> Iterator[tuple[str, bytes]]:
    for number, command in enumerate(COMMANDS, start=1):
        words = command.split(" ")
        yield f"{number:02d}-{words[0].strip('-')}", GAP.join(word.encode() for word in words)


def requests() -> Iterator[tuple[str, bytes]]:
    image = encoded(Image.new("RGB", (5, 4)), "png")
    text = base64.b64encode(image)
    head = b"POST /localize?include=heatmap&include=overlay\nContent-Type: image/png\n\n"
    yield "raw", head + image
    json = b'{"image": "data:image/png;base64,' + text + b'", "source": "part 1"}'
    yield "json", b"POST /models/part/localize\nContent-Type: application/json\n\n" + json
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
    form += b"Content-Type: image/png\r\n\r\n" + image + b"\r\n--x--\r\n"
    yield "form", b"POST /localize\nContent-Type: multipart/form-data; boundary=x\n\n" + form
    yield "health", b"GET /health\nAuthorization: Bearer x\n\n"
    yield "metrics", b"GET /metrics\n\n"
    yield "page", b"GET /\n\n"


if __name__ == "__main__":
    write_corpus()
