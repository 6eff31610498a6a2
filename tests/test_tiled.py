from __future__ import annotations

import copy
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from defectcam import DefectCAMClassifier, OnlyGoodImagesWarning, cli, load, tiled, tiled_inference
from defectcam.callbacks import Callback, TimeLimit
from defectcam.images import ImageReadError
from defectcam.preprocess import Preprocess
from defectcam.steps import CropToPart
from defectcam.tiled_results import TiledLocalization
from defectcam.training import TailTraining
from defectcam.views import ImageView

SIZE = (150, 170)
TINY: dict[str, Any] = {
    "max_epochs": 3,
    "augmentation": "none",
    "tile": 64,
    "self_training": False,
}


def draw(rng: np.random.Generator, *, scratched: bool) -> tuple[np.ndarray, list[int] | None]:
    """Return a grey, slightly noisy surface, and the box of its scratch."""
    image, box = np.full((*SIZE, 3), 110.0), None
    if scratched:
        x, y = rng.integers(10, 120, size=2).tolist()
        cv2.line(image, (x, y), (x + 14, y + 10), (230.0, 230.0, 230.0), 2)
        box = [x, y, x + 14, y + 10]
    image += rng.normal(0, 4, size=image.shape)
    return image.clip(0, 255).astype(np.uint8), box


def surfaces(n: int, seed: int) -> tuple[list[np.ndarray], np.ndarray, list[list[int] | None]]:
    """Draw surfaces; the last 2 of 5 are scratched."""
    rng = np.random.default_rng(seed)
    is_bad = np.arange(n) >= 3 * n // 5
    drawn = [draw(rng, scratched=bad) for bad in is_bad]
    return [image for image, _ in drawn], is_bad, [box for _, box in drawn]


@pytest.fixture(scope="module")
def clf(tiny_classifier: Callable[..., DefectCAMClassifier]) -> DefectCAMClassifier:
    images, is_bad, _ = surfaces(10, 0)
    return tiny_classifier(**TINY).fit(images, np.where(is_bad, "scratch", "good"))


@pytest.fixture(scope="module")
def untiled(
    tiny_classifier: Callable[..., DefectCAMClassifier], fitted: DefectCAMClassifier
) -> DefectCAMClassifier:
    return fitted


def test_scratches_are_found_where_they_are(clf: DefectCAMClassifier) -> None:
    images, is_bad, truth = surfaces(5, 1)
    found = clf.localize(images)
    assert [one.is_defect for one in found] == is_bad.tolist()
    for one, box in zip(found, truth, strict=True):
        assert isinstance(one, TiledLocalization)
        assert one.image_size == SIZE
        assert (len(one.boxes) > 0) == (box is not None)
        if box is not None:
            left, top, right, bottom = one.boxes[0].tolist()
            assert left < box[2]
            assert box[0] < right
            assert top < box[3]
            assert box[1] < bottom
            assert right <= SIZE[1]
            assert bottom <= SIZE[0]


def test_types_are_told_apart_in_tiles_whose_size_is_chosen(
    tiny_classifier: Callable[..., DefectCAMClassifier],
) -> None:
    images, _, _ = surfaces(10, 0)
    labels = ["good"] * 6 + ["dent"] * 2 + ["scratch"] * 2
    parameters = {**TINY, "tile": "auto", "max_epochs": 1, "target": "type"}
    clf = tiny_classifier(**parameters).fit(images, labels)
    assert clf.tile_ == (64, 64)
    (found,) = clf.localize(images[-1:])
    assert isinstance(found, TiledLocalization)
    types = np.stack([found.type_heatmap(label) for label in ("dent", "scratch")])
    np.testing.assert_array_equal(types.max(axis=0), found.heatmap)
    assert set(found.box_labels) <= {"dent", "scratch", "anomaly"}


@pytest.mark.skipif(sys.platform == "win32", reason="open files have names there")
def test_tiles_lie_in_a_file_that_a_killed_process_cannot_leave(
    tiny_classifier: Callable[..., DefectCAMClassifier],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, is_bad, _ = surfaces(10, 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[list[Path]] = []
    parameters = {**TINY, "max_epochs": 1, "cv": None}
    tiny_classifier(**parameters, callbacks=lambda *_: seen.append(list(tmp_path.iterdir()))).fit(
        images, np.where(is_bad, "scratch", "good")
    )
    assert seen == [[]]


def test_fractional_weights_mean_the_same_at_any_scale(
    tiny_classifier: Callable[..., DefectCAMClassifier],
) -> None:
    images, is_bad, _ = surfaces(10, 0)
    y, weights = np.where(is_bad, "scratch", "good"), np.where(is_bad, 0.5, 1.5)
    one, small = (
        tiny_classifier(**{**TINY, "max_epochs": 1})
        .fit(images, y, sample_weight=weights * scale)
        .held_out_probability_
        for scale in (1, 1 / 64)
    )
    np.testing.assert_allclose(small, one, rtol=1e-6)


def test_all_scores_are_those_of_localize(clf: DefectCAMClassifier) -> None:
    images, _, _ = surfaces(5, 1)
    found = clf.localize(images)
    probabilities = clf.predict_proba(images)[:, clf.classes_.tolist().index("scratch")]
    np.testing.assert_allclose([one.probability for one in found], probabilities, rtol=1e-6)
    assert clf.predict(images).tolist() == [one.label for one in found]
    for one in found:
        assert one.probability_grid.max() == pytest.approx(one.probability, rel=1e-5)


def test_the_worst_tile_is_suspicious_at_the_probability_of_the_image(
    clf: DefectCAMClassifier,
) -> None:
    images, _, _ = surfaces(20, 2)
    for one in clf.localize(images):
        assert one.probability_grid.max() == one.probability
        lowest = float(one.heatmap.min()) - 1  # that no box is missing for want of heat
        answer = one.with_threshold(lowest, decision_threshold=one.probability)
        assert (answer.is_defect, len(answer.boxes) > 0) == (True, True)


def test_what_is_said_of_training_is_about_images(clf: DefectCAMClassifier) -> None:
    assert clf.held_out_probability_.shape == (10,)
    assert sorted(clf.suspects_.tolist()) == list(range(10))
    assert (clf.n_images_seen_, clf.tile_, clf.info()["tile"]) == (10, (64, 64), [64, 64])


def test_a_saved_classifier_answers_the_same(clf: DefectCAMClassifier, tmp_path: Path) -> None:
    clf.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    images, _, _ = surfaces(5, 1)
    np.testing.assert_array_equal(again.predict_proba(images[-1:]), clf.predict_proba(images[-1:]))
    assert again._tile_model == clf._tile_model


@pytest.mark.parametrize("tile", [(64, 32), (32, 64)])
def test_oblong_tiles_share_as_many_pixels_as_in_training(
    tile: tuple[int, int], tiny_classifier: Callable[..., DefectCAMClassifier]
) -> None:
    images, is_bad, _ = surfaces(5, 0)
    parameters = {**TINY, "tile": tile, "overlap": 0.5, "cv": None, "max_epochs": 1}
    clf = tiny_classifier(**parameters).fit(images, is_bad)
    grid = tiled_inference.Tiler(clf).grid(SIZE)
    assert grid.overlap == (tile[0] // 2, tile[1] // 2)
    assert grid.n_tiles == clf._tile_model.n_tiles  # all images have one size
    assert clf.predict(images).shape == (5,)


def test_a_row_of_tiles_is_read_at_a_time(
    clf: DefectCAMClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Rows:
        size = (400, 70)

        def read(self, top: int, bottom: int) -> np.ndarray:
            asked.append((top, bottom))
            return np.full((bottom - top, 70, 3), 110, np.uint8)

    class Opened:
        def __enter__(self) -> Rows:
            return Rows()

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(tiled_inference, "open_rows", lambda source: Opened())
    found = clf.localize(np.zeros((400, 70, 3), np.uint8))
    assert found.image_size == (400, 70)
    assert max(bottom - top for top, bottom in asked) <= 64
    assert (asked[0][0], max(bottom for _, bottom in asked)) == (0, 400)


def test_tiles_taken_for_defective_are_clearly_novel_or_several() -> None:
    novelty = np.array([0.1, 5.0, 0.2, 3.0, 0.3, 9.0, 0.0, 0.5, 4.0, 6.0, 0.4, 0.6])
    assert tiled._defect_tiles(novelty, 5.5) == [5, 9]
    assert tiled._defect_tiles(novelty, 0.0) == [5, 9, 1, 8]
    assert tiled._defect_tiles(novelty, 10.0) == [5, 9, 1]
    assert tiled._defect_tiles(novelty[:3], 10.0) == [1]


def test_tiles_to_learn_from_are_the_most_novel_and_random_ones() -> None:
    novelty = np.array([0.1, 5.0, 0.2, 3.0, 0.3, 9.0])
    chosen = tiled._good_tiles(novelty, 4, np.random.RandomState(0))
    assert chosen[:2] == [5, 1]
    assert len(set(chosen)) == 4


def test_novelty_tells_where_each_defective_image_has_a_tile_beyond_all_good_ones() -> None:
    images = tiled._TrainingImages(
        [], np.array([]), np.arange(3), np.array([False, True, True]), np.ones(3)
    )
    scores = [np.array([1.0, 2.0]), np.array([0.0, 3.0]), np.array([2.5, 0.0])]
    assert tiled._tells(scores, images)
    assert not tiled._tells([scores[0], scores[1], scores[0]], images)
    assert tiled._tells(scores[:1], images._replace(used=np.arange(1), is_defect=np.array([False])))


def test_where_novelty_cannot_tell_what_was_learned_can(
    tiny_classifier: Callable[..., DefectCAMClassifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All surfaces have harmless dots of many colours, which look more novel than a scratch."""
    images, is_bad, scratches = surfaces(20, 0)
    rng = np.random.default_rng(1)
    for image, scratch in zip(images, scratches, strict=True):
        for _ in range(6):
            x, y = rng.integers(8, 140, size=2).tolist()
            if scratch is None or max(abs(x - scratch[0]), abs(y - scratch[1])) > 30:
                cv2.circle(image, (x, y), 6, rng.integers(0, 256, 3).tolist(), -1)
    choices: list[list[tiled._Chosen]] = []
    choose = tiled._choose_tiles

    def watched(*args: Any) -> list[tiled._Chosen]:
        choices.append(choose(*args))
        return choices[-1]

    monkeypatch.setattr(tiled, "_choose_tiles", watched)
    rounds: list[str] = []
    clf = tiny_classifier(**{**TINY, "max_epochs": 8, "callbacks": Rounds(rounds)})
    clf.fit(images, np.where(is_bad, "scratch", "good"))
    grid = tiled._grids(clf, (64, 64), (64, 64))(SIZE)

    def share_of_scratches(chosen: list[tiled._Chosen]) -> float:
        seen = []
        for image, number in chosen:
            scratch = scratches[image]
            if scratch is not None:
                left, top, right, bottom = grid.box(*divmod(number, grid.n_columns))
                x, y = (scratch[0] + scratch[2]) // 2, (scratch[1] + scratch[3]) // 2
                seen.append(left <= x < right and top <= y < bottom)
        return float(np.mean(seen))

    first, second = map(share_of_scratches, choices)
    assert second > first
    assert rounds == ["begin", "end"]  # one fit, whatever happens within


class Rounds(Callback):
    """Write down when trainings begin and end."""

    def __init__(self, diary: list[str]) -> None:
        self.diary = diary

    def on_train_begin(self, classifier: Any) -> None:
        self.diary.append("begin")

    def on_train_end(self, classifier: Any) -> None:
        self.diary.append("end")


def test_without_folds_tiles_are_not_chosen_again(
    tiny_classifier: Callable[..., DefectCAMClassifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "_tells", lambda *_: False)
    monkeypatch.setattr(tiled, "_choose_again", lambda *_: pytest.fail("chosen again"))
    images, is_bad, _ = surfaces(5, 0)
    clf = tiny_classifier(**{**TINY, "cv": None, "max_epochs": 1})
    clf.fit(images, np.where(is_bad, "scratch", "good"))


def test_a_time_limit_counts_from_the_beginning_and_ends_the_first_choice_too(
    tiny_classifier: Callable[..., DefectCAMClassifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(now))  # which no library looks at
    monkeypatch.setattr("defectcam.callbacks.time", clock)
    monkeypatch.setattr(tiled, "_tells", lambda *_: False)
    images, is_bad, _ = surfaces(10, 0)
    clf = tiny_classifier(**{**TINY, "cv": 2, "max_epochs": 4, "callbacks": TimeLimit(2.5)})
    clf.fit(images, np.where(is_bad, "scratch", "good"))
    # The limit is reached in the first choice, whose first tail has three epochs and others one.
    assert clf.history_["fold"] == [0, 1, 2]


def test_an_interrupt_of_the_first_choice_ends_the_fit(
    tiny_classifier: Callable[..., DefectCAMClassifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = TailTraining._epoch
    epochs = []

    def interrupted(self: TailTraining, *args: Any) -> tuple[float, float]:
        epochs.append(args)
        if len(epochs) == 2:  # after one there are weights
            raise KeyboardInterrupt
        return epoch(self, *args)

    monkeypatch.setattr(tiled, "_tells", lambda *_: False)
    monkeypatch.setattr(TailTraining, "_epoch", interrupted)
    images, is_bad, _ = surfaces(10, 0)
    with pytest.raises(KeyboardInterrupt):
        tiny_classifier(**TINY).fit(images, np.where(is_bad, "scratch", "good"))


def test_callbacks_are_told_of_their_classifier_and_need_not_be_copied(
    tiny_classifier: Callable[..., DefectCAMClassifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Locked(Callback):
        def __init__(self) -> None:
            self.lock, self.told = Lock(), list[Any]()

        def on_epoch_end(self, classifier: Any, record: dict[str, Any]) -> None:
            self.told.append(classifier)

        def on_train_end(self, classifier: Any) -> None:
            self.told.append(classifier)
            self.seen = classifier.tile_, classifier.n_images_seen_

    monkeypatch.setattr(tiled, "_tells", lambda *_: False)
    images, is_bad, _ = surfaces(10, 0)
    locked = Locked()
    clf = tiny_classifier(**{**TINY, "max_epochs": 1, "callbacks": locked})
    clf.fit(images, np.where(is_bad, "scratch", "good"))
    assert len(locked.told) == 4
    assert all(told is clf for told in locked.told)
    assert locked.seen == ((64, 64), 10)


def test_a_fit_that_fails_while_tiles_are_judged_changes_nothing(
    clf: DefectCAMClassifier, tmp_path: Path
) -> None:
    images, is_bad, _ = surfaces(5, 0)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)

    def lose(classifier: Any, record: dict[str, Any]) -> None:
        paths[0].unlink(missing_ok=True)

    again = copy.copy(clf).set_params(cv=None, max_epochs=1, callbacks=lose)
    before = dict(vars(again))
    with pytest.raises(ImageReadError, match=r"0\.png"):
        again.fit(paths, np.where(is_bad, "scratch", "good"))
    assert all(vars(again)[name] is value for name, value in before.items())


def test_good_images_alone_will_do(
    tiny_classifier: Callable[..., DefectCAMClassifier],
) -> None:
    images, _, _ = surfaces(5, 0)
    with pytest.warns(OnlyGoodImagesWarning):
        clf = tiny_classifier(**TINY).fit(images[:3], ["good"] * 3)
    assert clf.localize(images[-1]).probability > clf.localize(images[0]).probability


def test_an_image_of_weight_zero_is_left_out(
    tiny_classifier: Callable[..., DefectCAMClassifier],
) -> None:
    images, is_bad, _ = surfaces(5, 0)
    images += [np.full((*SIZE, 3), np.nan)]
    labels = [*np.where(is_bad, "scratch", "good"), "good"]
    clf = tiny_classifier(**{**TINY, "cv": None, "max_epochs": 1})
    clf.fit(images, labels, sample_weight=[1, 1, 1, 1, 1, 0])
    assert np.isnan(clf.held_out_probability_).tolist() == [False] * 5 + [True]


# --- Invariance -------------------------------------------------------------------------------


def test_tiles_with_full_margins_see_what_the_whole_image_shows() -> None:
    """The map of tiles is the one of the whole image.

    It holds under these conditions: the tile is as large as the network's input, so that nothing is
    resized; what the map shows is local, here novelty alone, whose patches look 50 pixels far; and
    a quarter of the overlap, the margin that does not count, is at least as wide as that.
    """
    rng = np.random.default_rng(0)
    images = [
        cv2.GaussianBlur(rng.integers(0, 256, (256, 256, 3), np.uint8), (0, 0), 2) for _ in range(2)
    ]
    clf = DefectCAMClassifier(
        weights=None, image_size=256, codebook_size=32, precision="float32", cv=None, n_jobs=1,
        random_state=0, device="cpu",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnlyGoodImagesWarning)
        clf.fit(images, ["good"] * 2)
    image = cv2.GaussianBlur(rng.integers(0, 256, (320, 320, 3), np.uint8), (0, 0), 2)
    with pytest.warns(UserWarning, match="not fitted on tiles"):
        found = clf.localize(image, tile=256, overlap=208)
    whole = copy.copy(clf)
    own = clf._preprocess
    whole._preprocess = Preprocess(320, own.mean.flatten().tolist(), own.std.flatten().tolist())
    batch = next(whole._forward([image]))
    expected = clf._heat_model.grids(batch.levels, batch.novelty, batch.students)[0].numpy()
    assert found.grid.shape == expected.shape
    np.testing.assert_allclose(found.grid, expected, atol=1e-3 * np.ptp(expected))


# --- Huge files -------------------------------------------------------------------------------


@pytest.fixture
def small_limit() -> Iterator[None]:
    """Make Pillow refuse images of more than 2000 pixels."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 1000
    yield
    Image.MAX_IMAGE_PIXELS = before


def test_huge_files_are_evaluated_and_reported_in_tiles(
    clf: DefectCAMClassifier, tmp_path: Path, small_limit: None
) -> None:
    images, is_bad, _ = surfaces(5, 2)
    paths = [tmp_path / f"{number}.tif" for number in range(5)]
    for path, image in zip(paths, images, strict=True):
        tifffile.imwrite(path, image, photometric="rgb", compression="zlib")
    assert clf.evaluate(paths, is_bad).n_images == 5
    clf.report(paths, is_bad, path=tmp_path / "labelled.html")
    clf.report(paths, path=tmp_path / "unlabelled.html")


def test_huge_files_are_refused_before_the_work_where_they_are_seen_whole(
    untiled: DefectCAMClassifier, tmp_path: Path, small_limit: None
) -> None:
    tifffile.imwrite(tmp_path / "huge.tif", draw(np.random.default_rng(0), scratched=True)[0])
    paths = [np.zeros((20, 20, 3), np.uint8), tmp_path / "huge.tif"]
    with pytest.raises(ImageReadError, match=r"^'.*huge\.tif' is refused by Pillow for its size"):
        untiled.evaluate(paths, [False, True])


# --- What does not work -----------------------------------------------------------------------


def test_a_classifier_not_fitted_on_tiles_warns(untiled: DefectCAMClassifier) -> None:
    image, _ = draw(np.random.default_rng(0), scratched=True)
    with pytest.warns(UserWarning, match="not fitted on tiles"):
        found = untiled.localize(image, tile="auto")
    assert isinstance(found, TiledLocalization)
    assert found.tile == (64, 64)


def test_another_tile_than_in_training_warns(clf: DefectCAMClassifier) -> None:
    image, _ = draw(np.random.default_rng(0), scratched=True)
    with pytest.warns(UserWarning, match=r"fitted on tiles of \(64, 64\)"):
        assert clf.localize(image, tile=100).tile == (100, 100)


def test_another_overlap_than_in_training_warns(clf: DefectCAMClassifier) -> None:
    image, _ = draw(np.random.default_rng(0), scratched=True)
    with pytest.warns(UserWarning, match=r"overlap=0.5: .* overlap by \(8, 8\) pixels"):
        clf.localize(image, overlap=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf.localize(image, overlap=8)
        clf.localize(image, tile=64, overlap=0.125)


def test_an_overlap_without_tiles_warns(untiled: DefectCAMClassifier) -> None:
    image, _ = draw(np.random.default_rng(0), scratched=True)
    with pytest.warns(UserWarning, match=r"overlap=0.5 is about tiles, .* give tile too"):
        assert not isinstance(untiled.localize(image, overlap=0.5), TiledLocalization)


def test_an_overlap_without_tiles_warns_at_fit(tiny_classifier, parts: Path) -> None:
    with pytest.warns(UserWarning, match=r"overlap=0.3 is about tiles, .* give tile too"):
        tiny_classifier(overlap=0.3, max_epochs=1).fit(parts)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda clf, X: clf.partial_fit(X, ["good"]), "partial_fit does not work on tiles"),
        (lambda clf, X: clf.evidence(X), "evidence does not work on tiles"),
        (lambda clf, X: clf.query(X, 1), "query does not work on tiles"),
        (lambda clf, X: clf.drift(X), "drift does not work on tiles"),
        (lambda clf, X: clf.localize(X, method="gradcam"), "does not work on tiles"),
        (lambda clf, X: clf.localize(X, tile=64, overlap=64), "expected a share of the tile"),
        (lambda clf, X: clf.localize(X, tile="small"), "expected a number of pixels"),
    ],
)
def test_what_does_not_work_is_refused(
    call: Callable[..., Any], message: str, clf: DefectCAMClassifier
) -> None:
    with pytest.raises(ValueError, match=message):
        call(clf, [np.zeros((80, 80, 3), np.uint8)])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"heatmap": "cam", "pooling": "top_k"}, "tile needs novelty"),
        ({"resize": "pad", "tile": (64, 90)}, "resize='pad' a tile must have the shape"),
        ({"overlap": 1.5}, "expected a share of the tile"),
    ],
)
def test_parameters_that_do_not_go_with_tiles(
    parameters: dict[str, Any],
    message: str,
    tiny_classifier: Callable[..., DefectCAMClassifier],
) -> None:
    images, is_bad, _ = surfaces(5, 0)
    with pytest.raises(ValueError, match=message):
        tiny_classifier(**{**TINY, **parameters}).fit(images, is_bad)


def test_steps_that_move_pixels_are_refused(clf: DefectCAMClassifier) -> None:
    image = np.zeros((80, 80, 3), np.uint8)
    image[20:60, 20:60] = 200
    with pytest.raises(ValueError, match="crop first, and pass arrays"):
        clf.localize(ImageView(image, [CropToPart()]))


def test_steps_that_move_pixels_are_refused_before_training_too(
    clf: DefectCAMClassifier, tiny_classifier: Callable[..., DefectCAMClassifier]
) -> None:
    images, is_bad, _ = surfaces(5, 0)
    views = [ImageView(image, [CropToPart(background=(0, 0, 0))]) for image in images]
    views[2] = ImageView(np.pad(images[2], ((20, 20), (20, 20), (0, 0))), views[2].steps)
    for call in (lambda: tiny_classifier(**TINY).fit(views, is_bad), lambda: clf.predict(views)):
        with pytest.raises(ValueError, match="crop first, and pass arrays"):
            call()


def test_unreadable_images_are_named(clf: DefectCAMClassifier, tmp_path: Path) -> None:
    wrong = np.full((80, 80), 3.0)
    with pytest.raises(ImageReadError, match=r"Image at index 1: .*\[0, 1\]"):
        clf.localize([np.zeros((80, 80)), wrong])
    with pytest.raises(ImageReadError, match=r"none\.tif"):
        clf.localize(tmp_path / "none.tif")


# --- Command line -----------------------------------------------------------------------------


def test_the_command_line_sees_huge_files_in_tiles(
    clf: DefectCAMClassifier, tmp_path: Path, small_limit: None
) -> None:
    """Pillow refuses an image of more than twice the limit."""
    clf.save(tmp_path / "model.safetensors")
    image, _ = draw(np.random.default_rng(3), scratched=True)
    tifffile.imwrite(tmp_path / "huge.tif", image, photometric="rgb", compression="zlib")
    command = ["localize", str(tmp_path / "model.safetensors"), str(tmp_path / "huge.tif")]
    command += ["-o", str(tmp_path / "out"), "--quiet", "--json", "--n-jobs", "1"]
    assert cli.main([*command, "--tile", "64", "--overlap", "0.25"]) == cli.DONE
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["images"][0]["image_size"] == list(SIZE)
    assert cli.main([*command, "--force", "--tile", "64", "--overlap", "64"]) == cli.USAGE
    assert cli.main([*command, "--force", "--tile", "x"]) == cli.USAGE
