"""Model files and backbone weights that are damaged or made to do harm."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch

import defectcam
from defectcam.model_schema import MAX_HEADER
from defectcam.persistence import ModelFileError
from faults.catalogue import Bench, Group

group = Group("cases_models")

Change = Callable[[Any], Any]


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    n = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + n]), content[8 + n :]


def with_header(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def loaded(bench: Bench, content: bytes) -> Any:
    return defectcam.load(bench.file("part.safetensors", content))


def changed(
    description: Change | None = None, tensors: Change | None = None
) -> Callable[[Bench], Any]:
    """Load the model file with another description or other tensors, and without a digest."""

    def act(bench: Bench) -> Any:
        header, _ = header_of(bench.saved)
        text = json.loads(header["__metadata__"]["defectcam"])
        parts = safetensors.torch.load(bench.saved)
        for change, what in ((description, text), (tensors, parts)):
            if change is not None:
                change(what)
        parts = {name: tensor.contiguous() for name, tensor in parts.items()}
        metadata = {"defectcam": json.dumps(text)}
        return loaded(bench, safetensors.torch.save(parts, metadata))

    return act


def refused(title: str, says: str, act: Callable[[Bench], Any]) -> None:
    group.refused(title, ModelFileError, says, act)


for share in (0.0, 0.0001, 0.01, 0.03, 0.5, 0.999):
    refused(
        f"a model file cut off after {share:.2%}",
        "is no safetensors file, or a damaged one",
        lambda b, share=share: loaded(b, b.saved[: int(share * len(b.saved))]),
    )
refused(
    "a header that claims to be longer than the file",
    "is no safetensors file",
    lambda b: loaded(b, struct.pack("<Q", 2**63) + b.saved[8:]),
)
refused(
    "a header of more bytes than any model's",
    "has a header of",
    lambda b: loaded(b, struct.pack("<Q", MAX_HEADER + 1) + b" " * (MAX_HEADER + 1)),
)
refused(
    "a pickle named .safetensors",
    "is no safetensors file",
    lambda b: loaded(b, pickle.dumps({"a": 1})),
)
refused("a folder", "is no file", lambda b: defectcam.load(b.tmp))
group.refused(
    "a missing model file",
    FileNotFoundError,
    "does not exist",
    lambda b: defectcam.load(b.tmp / "none"),
)
if os.path.exists("/dev/zero"):
    refused("a device for a model", "is no file", lambda b: defectcam.load("/dev/zero"))
if hasattr(os, "mkfifo"):
    refused(
        "a named pipe for a model",
        "is no file",
        lambda b: (os.mkfifo(b.tmp / "m"), defectcam.load(b.tmp / "m")),
    )
refused(
    "tensors without a description",
    "holds no defectcam model",
    lambda b: loaded(b, safetensors.torch.save({"w": torch.zeros(2)})),
)


def swapped_bit(bench: Bench) -> Any:
    content = bytearray(bench.saved)
    content[-1001] ^= 0x01
    return loaded(bench, bytes(content))


def other_number(bench: Bench) -> Any:
    header, rest = header_of(bench.saved)
    text = json.loads(header["__metadata__"]["defectcam"])
    text["threshold"] = 0.123
    header["__metadata__"]["defectcam"] = json.dumps(text)
    return loaded(bench, with_header(header, rest))


refused("one bit of a weight changed", "its content is not what was written", swapped_bit)
refused("another threshold in the text", "its content is not what was written", other_number)


def overlapping(bench: Bench) -> Any:
    header, rest = header_of(bench.saved)
    names = [name for name in header if name != "__metadata__"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    return loaded(bench, with_header(header, rest))


refused("tensors that overlap", "is no safetensors file", overlapping)


def with_text(text: str) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        header, rest = header_of(bench.saved)
        header["__metadata__"] = {"defectcam": text}
        return loaded(bench, with_header(header, rest))

    return act


refused("a description that is no JSON", "Expecting value", with_text("model"))
refused("a description that is a list", "cannot be restored", with_text("[]"))
refused("a description that is nested deeply", "nested too deeply", with_text("[" * 200_000))
refused("NaN in the description", "NaN, which is not JSON", with_text('{"a": NaN}'))
refused("an empty description", "has no entry", with_text("{}"))


def later(description: dict[str, Any]) -> None:
    description["schema_version"] = 2
    description["versions"]["defectcam"] = "3.1.0"


def of_tiles(**wrong: Any) -> dict[str, Any]:
    """Describe a model of tiles of which something is wrong."""
    return {
        "tile": {"tuple": [32, 32]},
        "overlap": {"tuple": [8, 8]},
        "n_tiles": 4.0,
        "rate": {"float": "inf"},
        "probability": {"coefficients": {"tuple": [1.0]}, "intercept": 0.0},
        **wrong,
    }


refused("a file of a later release", "install defectcam>=3.1.0", changed(later))
for title, says, change in (
    ("version 0 of the layout", "schema_version is 0", lambda d: d.update(schema_version=0)),
    ("a version that is text", "schema_version is 'x'", lambda d: d.update(schema_version="x")),
    ("no threshold", "no entry 'threshold'", lambda d: d.pop("threshold")),
    ("a threshold of text", "threshold is 'x'", lambda d: d.update(threshold="x")),
    ("a threshold beyond all numbers", "threshold is", lambda d: d.update(threshold=10**400)),
    (
        "a threshold in percent",
        "threshold is 70, expected a prob",
        lambda d: d.update(threshold=70),
    ),
    ("an unknown backbone", "no_such_net", lambda d: d["network"].update(backbone="no_such_net")),
    (
        "a backbone far larger than the file",
        "but holds",
        lambda d: d["network"].update(backbone="convnext_large"),
    ),
    (
        "a backbone that the hub would have to provide",
        "is neither a torchvision nor a timm model",
        lambda d: d["network"].update(backbone="timm/hf-hub:someone/model"),
    ),
    (
        "an unknown setting of the network",
        "does not know its network's telepathy",
        lambda d: d["network"].update(telepathy=1),
    ),
    (
        "a pooling that does not exist",
        "The 'pooling' parameter",
        lambda d: d["network"].update(pooling="sum"),
    ),
    (
        "more trained stages than there are",
        "expected a number from 0 to",
        lambda d: d["network"].update(trainable_stages=99),
    ),
    (
        "a parameter that does not exist",
        "does not know the parameters telepathy",
        lambda d: d["parameters"].update(telepathy=1),
    ),
    (
        "a folder to write into",
        "set memory, which no file may",
        lambda d: d["parameters"].update(memory="/tmp/x"),
    ),
    (
        "callbacks",
        "set callbacks, which no file may",
        lambda d: d["parameters"].update(callbacks=["os.system"]),
    ),
    (
        "labels of a type that unpickles",
        "classes.dtype is",
        lambda d: d["classes"].update(dtype="|O"),
    ),
    (
        "labels of a gigabyte each",
        "labels that fit into memory",
        lambda d: d["classes"].update(dtype="<U9000000"),
    ),
    ("one class", "classes.labels is", lambda d: d["classes"].update(labels=["good"])),
    (
        "labels of several types",
        "classes.labels is",
        lambda d: d["classes"].update(labels=["good", 1]),
    ),
    (
        "more classes than the network has",
        "for 3 classes",
        lambda d: d["classes"].update(labels=["a", "good", "scratch"]),
    ),
    ("a good class that is none", "good one 9", lambda d: d["classes"].update(good=9)),
    (
        "an input of a terapixel",
        "preprocessing.image_size is",
        lambda d: d["preprocessing"].update(image_size=[10**6, 10**6]),
    ),
    (
        "a division by zero",
        "preprocessing.std is",
        lambda d: d["preprocessing"].update(std=[0, 1, 1]),
    ),
    ("levels that do not exist", "cannot be restored", lambda d: d.update(novelty_levels=[99])),
    (
        "a scale that is text",
        "holds what is no number",
        lambda d: d["heat_model"].update(novelty_share="x"),
    ),
    (
        "a heatmap of another kind",
        "heat_model.kind does not fit",
        lambda d: d["heat_model"].update(kind="cam"),
    ),
    (
        "a probability of other scores",
        "defect_probability does not fit",
        lambda d: d["defect_probability"].update(coefficients={"tuple": [1.0] * 3}),
    ),
    ("tiles without a size", "no entry 'tile'", lambda d: d.update(tile_model={})),
    (
        "tiles of a terapixel",
        "tile_model.tile is",
        lambda d: d.update(tile_model=of_tiles(tile={"tuple": [10**6, 10**6]})),
    ),
    (
        "tiles that overlap wholly",
        "expected less than its tile",
        lambda d: d.update(tile_model=of_tiles(overlap={"tuple": [0, 32]})),
    ),
    (
        "a rate of tiles that is 0",
        "tile_model.rate is 0",
        lambda d: d.update(tile_model=of_tiles(rate=0)),
    ),
    (
        "columns of different lengths",
        "columns of different lengths",
        lambda d: d["history"]["loss"].append(1.0),
    ),
):
    refused(f"in a model file: {title}", says, changed(description=change))

BIAS, WEIGHT = "network.head.bias", "network.head.convs.0.weight"
for title, says, change in (
    ("a missing tensor", "lacks the tensors network.head.convs.0", lambda t: t.pop(WEIGHT)),
    ("no tensor of the class scores", "no entry", lambda t: t.pop(BIAS)),
    ("a tensor too many", "also holds the tensors x", lambda t: t.update(x=torch.zeros(1))),
    (
        "a tensor of another shape",
        "expected float32 of shape",
        lambda t: t.update({WEIGHT: t[WEIGHT].flatten()}),
    ),
    (
        "a tensor of another type",
        "expected float32 of shape",
        lambda t: t.update({WEIGHT: t[WEIGHT].double()}),
    ),
    (
        "NaN in a tensor",
        "holds NaN or infinity",
        lambda t: t.update({BIAS: t[BIAS] * float("nan")}),
    ),
    (
        "infinity in a tensor",
        "holds NaN or infinity",
        lambda t: t.update({BIAS: t[BIAS] + float("inf")}),
    ),
    (
        "a codebook of another width",
        "expected float32 of shape",
        lambda t: t.update({"network.codebook.centres": torch.zeros(2, 3)}),
    ),
    (
        "a codebook that is one number",
        "cannot be restored",
        lambda t: t.update({"network.codebook.centres": torch.zeros(())}),
    ),
):
    refused(f"in a model file: {title}", says, changed(tensors=change))

group.works(
    "a model file without a digest, as 0.1.0 wrote it",
    ["good", "scratch"],
    lambda b: changed()(b).classes_.tolist(),
)
group.works(
    "a device that this machine does not have: the best one",
    "auto",
    lambda b: changed(lambda d: d["parameters"].update(device="cuda:99"))(b).device,
)


class Harmful:
    """A pickle that would make a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def weights_that_run(bench: Bench) -> Any:
    torch.save(Harmful(str(bench.tmp / "harm")), bench.tmp / "w.pth")
    try:
        return bench.fit(weights=bench.tmp / "w.pth")
    finally:
        assert not (bench.tmp / "harm").exists()


no_state = "cannot be read as a state dict"
group.refused("weights that run code when unpickled", ValueError, no_state, weights_that_run)
group.refused(
    "weights that are cut off",
    ValueError,
    no_state,
    lambda b: b.fit(weights=b.file("w.pth", b"PK\x03\x04")),
)
group.refused("empty weights", ValueError, no_state, lambda b: b.fit(weights=b.file("w.pth", b"")))


def weights(content: Any) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        torch.save(content, bench.tmp / "w.pth")
        return bench.fit(weights=bench.tmp / "w.pth")

    return act


group.refused("weights that are a list", ValueError, "holds no state dict but list", weights([1]))
group.refused(
    "weights of another network", ValueError, "are missing", weights({"a": torch.zeros(2)})
)
