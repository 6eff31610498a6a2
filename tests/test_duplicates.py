from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from defectcam import find_near_duplicates
from defectcam.duplicates import duplicate_groups, duplicate_pairs, thumbnail
from defectcam.images import ImageReadError


def part(seed: int, size: tuple[int, int] = (180, 240)) -> np.ndarray:
    """Return a plate with holes and soft spots, its own ones for every seed."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = np.full((height, width, 3), 120, dtype=np.uint8)
    for _ in range(30):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        grey = int(rng.integers(30, 220))
        cv2.circle(image, centre, int(rng.integers(4, 25)), (grey,) * 3, -1)
    image = cv2.GaussianBlur(image, (0, 0), 2)
    return (image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)


def encoded(image: np.ndarray, quality: int) -> np.ndarray:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data))


def resized(image: np.ndarray, fewer: int, back: bool) -> np.ndarray:
    height, width = image.shape[:2]
    small = cv2.resize(image, (width - fewer, height - fewer), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height)) if back else small


COPIES = {
    "itself": lambda image: image,
    "JPEG at quality 85": lambda image: encoded(image, 85),
    "JPEG at quality 60": lambda image: encoded(image, 60),
    "one pixel smaller": lambda image: resized(image, 1, back=False),
    "two pixels smaller and back": lambda image: resized(image, 2, back=True),
    "half as large": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=3),
    "brighter": lambda image: cv2.add(image, np.full_like(image, 8)),
    "less contrast": lambda image: (image * 0.9 + 10).astype(np.uint8),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found_among_other_parts(name):
    originals = [part(seed) for seed in range(6)]
    copy = COPIES[name](originals[4])
    assert find_near_duplicates([*originals, copy]).tolist() == [[4, 6]]
    assert find_near_duplicates(originals, [copy, part(9)]).tolist() == [[4, 0]]


def test_other_parts_and_other_pictures_of_a_part_are_no_duplicates():
    images = [part(seed) for seed in range(20)]
    images += [images[0][:, ::-1], np.roll(images[1], 12, axis=1), images[2].transpose(1, 0, 2)]
    assert find_near_duplicates(images).shape == (0, 2)


@pytest.mark.parametrize("width", [6, 12])
def test_a_defect_keeps_a_part_apart_from_its_good_copy(width):
    good = part(0)
    defective = good.copy()
    cv2.circle(defective, (100, 80), width // 2, (0, 0, 0), -1)
    assert len(find_near_duplicates([good, defective])) == 0


def test_flat_images_are_equal_where_they_have_the_same_grey():
    greys = [0, 3, 128, 131, 255]
    images = [np.full((50, 60), grey, dtype=np.uint8) for grey in greys]
    assert find_near_duplicates(images).tolist() == [[0, 1], [2, 3]]


def test_faint_structure_on_a_flat_image_is_not_overlooked():
    flat = np.full((64, 64), 100, dtype=np.uint8)
    faint = flat.copy()
    faint[20:40, 20:40] = 125
    other = flat.copy()
    other[30:50, 10:30] = 125
    assert len(find_near_duplicates([flat, faint, other])) == 0


@pytest.mark.parametrize("n", [3, 50])
def test_blocks_give_what_a_loop_over_pairs_gives(monkeypatch, n):
    rng = np.random.default_rng(0)
    different = [thumbnail(part(seed, (64, 64))) for seed in range(8)]
    images = [different[i] for i in rng.integers(8, size=n)]
    others = [different[i] for i in rng.integers(8, size=n + 5)]

    def same(a: np.ndarray, b: np.ndarray) -> bool:
        return np.array_equal(a, b)

    monkeypatch.setattr("defectcam.duplicates._BLOCK", 7)
    within = [[i, j] for i in range(n) for j in range(i + 1, n) if same(images[i], images[j])]
    across = [[i, j] for i in range(n) for j in range(n + 5) if same(images[i], others[j])]
    assert duplicate_pairs(images).tolist() == within
    assert duplicate_pairs(images, others).tolist() == across


def test_groups_join_what_pairs_join():
    groups = duplicate_groups(np.array([[0, 3], [3, 5], [1, 2]]), 7)
    assert groups[0] == groups[3] == groups[5]
    assert groups[1] == groups[2]
    assert len(set(groups.tolist())) == 4
    alone = duplicate_groups(np.empty((0, 2), dtype=np.int64), 3)
    assert sorted(alone.tolist()) == [0, 1, 2]


def test_folders_and_files(tmp_path: Path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    for seed in range(3):
        Image.fromarray(part(seed)).save(tmp_path / "train" / f"{seed}.png")
    Image.fromarray(part(1)).save(tmp_path / "test" / "again.jpg", quality=85)
    Image.fromarray(part(7)).save(tmp_path / "test" / "new.jpg")
    assert find_near_duplicates(tmp_path / "train", tmp_path / "test").tolist() == [[1, 0]]
    files = sorted((tmp_path / "train").iterdir())
    assert find_near_duplicates([*files, files[0]], n_jobs=1).tolist() == [[0, 3]]


def test_what_is_not_a_collection_of_images_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="got one image"):
        find_near_duplicates(part(0))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageReadError, match=r"broken\.png"):
        find_near_duplicates([tmp_path / "broken.png"])
