from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from defectcam.preprocess import Preprocess, _interpolate, seen_again
from defectcam.resizing import resize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WAYS = ["stretch", "pad"]
SIZES = [(40, 60), (32, 32), (1, 1), (3, 300), (300, 3), (20, 17), (90, 91)]


def random_images(sizes: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def as_pixels(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def plain(image_size: int | tuple[int, int], resize: str) -> Preprocess:
    """Return one that only scales pixels to [0, 1]."""
    return Preprocess(image_size, (0, 0, 0), (1, 1, 1), resize)


@pytest.mark.parametrize("resize", WAYS)
def test_a_batch_is_its_images_one_by_one(resize: str) -> None:
    preprocess = Preprocess((24, 32), MEAN, STD, resize)
    images = random_images(SIZES)
    batch = preprocess.batch(images)
    assert batch.shape == (len(SIZES), 3, 24, 32)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for alone, together in zip(images, batch, strict=True):
        assert torch.equal(preprocess.batch([alone])[0], together)


@pytest.mark.parametrize("resize", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_forward_and_batch_are_one_path(resize: str, size: tuple[int, int]) -> None:
    preprocess = Preprocess((24, 32), MEAN, STD, resize)
    images = random_images([size] * 3)
    pixels = as_pixels(images)
    batch = preprocess.batch(images)
    assert torch.equal(preprocess(pixels), batch)
    assert torch.equal(preprocess(pixels.contiguous()), batch)


def test_stretch_is_antialiased_interpolation_then_normalisation() -> None:
    (image,) = random_images([(40, 60)])
    pixels = as_pixels([image]).double()
    small = F.interpolate(pixels, size=(24, 32), mode="bilinear", antialias=True) / 255
    expected = (small - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    result = Preprocess((24, 32), MEAN, STD).batch([image])
    torch.testing.assert_close(result, expected.float(), atol=1e-5, rtol=0)


def test_an_image_of_the_input_size_is_not_resampled() -> None:
    (image,) = random_images([(32, 32)])
    assert torch.equal(plain(32, "stretch").batch([image])[0], as_pixels([image])[0] / 255)


@pytest.mark.parametrize("resize", WAYS)
def test_a_plain_image_stays_plain(resize: str) -> None:
    grey = np.full((50, 50, 3), 100, dtype=np.uint8)
    result = plain(20, resize).batch([grey])
    torch.testing.assert_close(result, torch.full((1, 3, 20, 20), 100 / 255))


def test_padding_has_the_mean_colour() -> None:
    preprocess = Preprocess(32, MEAN, STD, "pad")
    result = preprocess.batch([np.full((16, 32, 3), 255, dtype=np.uint8)])[0]
    assert (result[:, :8] == 0).all()
    assert (result[:, 24:] == 0).all()
    assert (result[:, 8:24] > 1).all()


@pytest.mark.parametrize("resize", WAYS)
@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(30, 90), st.integers(30, 90)),
    corner=st.tuples(st.floats(0, 0.6), st.floats(0, 0.6)),
)
def test_what_is_bright_in_the_input_is_bright_at_its_place_in_the_original(
    resize: str, size: tuple[int, int], corner: tuple[float, float]
) -> None:
    """Image -> input -> map -> original pixels: the round trip finds the rectangle again."""
    preprocess = plain((64, 48), resize)
    top, left = (int(c * side) for c, side in zip(corner, size, strict=True))
    bottom, right = top + size[0] // 3, left + size[1] // 3
    image = np.zeros((*size, 3), dtype=np.uint8)
    image[top:bottom, left:right] = 255
    network_map = preprocess.batch([image])[0, 0].numpy()
    heatmap = preprocess.geometry(size).restore(network_map)
    # Its centre of mass to a small part of a pixel (edges of the image are where it shifts most).
    rows, columns = np.indices(size)
    if top > 3 and left > 3:
        assert abs((heatmap * rows).sum() / heatmap.sum() - (top + bottom - 1) / 2) < 0.25
        assert abs((heatmap * columns).sum() / heatmap.sum() - (left + right - 1) / 2) < 0.25
    # Its edges to two pixels.
    expected = image[..., 0] > 0
    found = heatmap > 0.5
    assert found[top + 2 : bottom - 2, left + 2 : right - 2].all()
    outside = np.ones(size, dtype=bool)
    outside[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = False
    assert not found[outside].any()
    assert expected.sum() > 0


def test_reduced_images_go_where_their_originals_go() -> None:
    preprocess = plain(32, "pad")
    reduced = np.full((51, 21, 3), 255, dtype=np.uint8)  # of 101 x 41, rounded up by the decoder
    alone = preprocess.batch([reduced])[0]
    placed = preprocess.batch([reduced], [(404, 41 * 5)])[0]
    _, left, _, width = preprocess.geometry((404, 41 * 5)).content
    assert (placed[0, 16] > 0).nonzero().flatten().tolist() == list(range(left, left + width))
    assert not torch.equal(alone, placed)


def test_read_only_and_flipped_arrays_are_taken_as_they_are() -> None:
    preprocess = Preprocess(16, MEAN, STD)
    (image,) = random_images([(20, 30)])
    expected = preprocess.batch([image[:, ::-1].copy()])
    assert torch.equal(preprocess.batch([image[:, ::-1]]), expected)
    image.flags.writeable = False
    assert torch.equal(preprocess.batch([image]), preprocess.batch([image.copy()]))


def test_no_images_make_an_empty_batch() -> None:
    assert Preprocess((16, 24), MEAN, STD).batch([]).shape == (0, 3, 16, 24)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 of shape \(H, W, 3\), expected, got"):
        Preprocess(16, MEAN, STD).batch([image])


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="resize must be one of"):
        Preprocess(16, MEAN, STD, "crop")
    with pytest.raises(ValueError, match="mean must have 3 values"):
        Preprocess(16, (0.5,), STD)
    with pytest.raises(ValueError, match="std must have 3 values"):
        Preprocess(16, MEAN, (1, 1, 1, 1))
    with pytest.raises(ValueError, match="input_size"):
        Preprocess((16, 0), MEAN, STD)


def test_nothing_of_it_is_saved_with_weights() -> None:
    assert Preprocess(16, MEAN, STD).state_dict() == {}


@pytest.mark.parametrize("size", SIZES)
def test_gpus_resize_as_the_processor_does(size: tuple[int, int]) -> None:
    image = random_images([size])[0][::-1]  # a view that torch does not take
    there = _interpolate(image, (24, 32), torch.device("cpu"))
    torch.testing.assert_close(there, torch.from_numpy(resize(image, (24, 32))), atol=1e-3, rtol=0)


def test_what_is_seen_again_is_mirrored_and_enlarged():
    pixels = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    larger = seen_again(pixels, (8, 9))
    assert larger.shape == (2, 3, 8, 9)
    expected = F.interpolate(pixels.flip(3), size=(8, 9), mode="bilinear", align_corners=False)
    torch.testing.assert_close(larger, expected)
    assert torch.equal(seen_again(pixels, (4, 6)), pixels.flip(3))
