"""Models that earlier releases saved load, and answer as they did.

`tests/data/NAME.safetensors.xz` was saved by the release, or the layout before a release, that its
name tells, and `NAME.json` holds what that release answered about `picture(0)` to `picture(5)`. The
networks are small and random; they were fitted to twelve generated parts.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

import defectcam
from defectcam import load
from defectcam.persistence import SCHEMA_VERSION, ModelFileError, read_metadata

DATA = Path(__file__).with_name("data")

#: What each file is the first to have: nothing of what came later is in it.
NAMES = ("0.1.0", "students", "drift-and-digest")


def picture(number: int) -> np.ndarray:
    """Return a part of a regular grain; every second one has a bright bar."""
    grain = np.arange(32)
    values = 105 + (grain[:, None] * 7 + grain[None, :] * 13 + 5 * number) % 11
    image = np.repeat(values[..., None], 3, axis=2).astype(np.uint8)
    if number % 2:
        image[8:17, 4 + 3 * number : 7 + 3 * number] = 230
    return image


@pytest.fixture
def unpacked(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "part.safetensors"
    path.write_bytes(lzma.decompress((DATA / f"{request.param}.safetensors.xz").read_bytes()))
    return path


@pytest.mark.parametrize(("unpacked", "name"), [(n, n) for n in NAMES], indirect=["unpacked"])
def test_a_model_of_an_earlier_release_answers_as_it_did(unpacked, name):
    expected = json.loads((DATA / f"{name}.json").read_text())
    clf, pictures = load(unpacked), [picture(number) for number in range(6)]
    assert read_metadata(unpacked)["schema_version"] <= SCHEMA_VERSION
    found = clf.localize(pictures)
    # Another processor, or another version of torch, rounds in other places.
    assert [one.probability for one in found] == pytest.approx(expected["probabilities"], abs=1e-4)
    assert [one.label for one in found] == expected["labels"]
    assert clf.threshold_ == expected["threshold"]
    peaks = [float(one.heatmap.max()) for one in found]
    assert peaks == pytest.approx(expected["peaks"], rel=1e-3, abs=1e-3)
    assert [len(one.boxes) > 0 for one in found] == [len(boxes) > 0 for boxes in expected["boxes"]]


@pytest.mark.parametrize("unpacked", NAMES, indirect=True)
def test_it_is_saved_anew_in_the_present_layout(unpacked, tmp_path):
    clf, again = load(unpacked), tmp_path / "again.safetensors"
    clf.save(again)
    pictures = [picture(number) for number in range(6)]
    assert (load(again).predict_proba(pictures) == clf.predict_proba(pictures)).all()
    assert read_metadata(again)["versions"]["defectcam"] == defectcam.__version__


@pytest.mark.parametrize("unpacked", ["0.1.0"], indirect=True)
def test_a_later_layout_says_which_release_reads_it(unpacked):
    tensors, description = safetensors.torch.load_file(unpacked), read_metadata(unpacked)
    description["schema_version"] = SCHEMA_VERSION + 1
    description["versions"]["defectcam"] = "7.8.9"
    safetensors.torch.save_file(tensors, unpacked, {"defectcam": json.dumps(description)})
    with pytest.raises(ModelFileError, match=r"install defectcam>=7\.8\.9"):
        load(unpacked)


def test_the_files_are_small():
    for name in NAMES:
        assert (DATA / f"{name}.safetensors.xz").stat().st_size < 200_000
