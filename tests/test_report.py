"""The report: one file that runs nothing foreign, and whose figures are those of the library.

What moves is tested in Chromium, where there is one.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import AXE, wait_until
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from defectcam import cli, cli_options
from defectcam.classifier import DefectCAMClassifier
from defectcam.evaluation import evaluate
from defectcam.geometry import Geometry
from defectcam.images import ImageReadError, read_image
from defectcam.report import make_report, write_report
from defectcam.report_images import Album, box_stops, encode_map
from defectcam.results import Localization

SIZE = (30, 40)
HOSTILE_NAME = "<img src=x onerror=window.hacked=1>.png"
HOSTILE_LABEL = "</script><script>window.hacked=1</script><b>'\"&amp;"


class Painted(BaseEstimator):
    """Stand in for a fitted classifier: reads its answer off the image's pixels.

    Of the first pixel, red is the probability of a defect in per cent and green the defect class;
    blue is the heatmap, 100 the limit.
    """

    def __init__(self, cv: int | None = 3, heatmap: str = "fused", box_threshold: float = 1.0):
        self.cv = cv
        self.heatmap = heatmap
        self.box_threshold = box_threshold
        self.defect_labels_ = ["dent", "scratch"]
        self.good_label_ = np.array(["good"])[0]
        self.classes_ = np.array(["dent", "good", "scratch"])
        self.threshold_ = 0.5
        self.fitted_heatmap_ = heatmap
        self.n_jobs = 1
        self.history_ = {
            "fold": [0, 0, 1],
            "loss": [1.0, 0.5, 0.7],
            "train_accuracy": [0.6, 0.9, 0.8],
        }

    def fit(self) -> None:
        raise AssertionError("a report never fits")

    def info(self) -> dict[str, Any]:
        names = "backbone weights n_parameters n_trained_parameters image_size precision classes "
        names += (
            "n_training_images training_labels training_data epochs heatmap threshold box_threshold"
        )
        return {**{name: 7 for name in names.split()}, "heatmap": self.fitted_heatmap_}

    def localize_iter(self, X: Any) -> Iterator[Localization]:
        for item in X:
            image = read_image(item)
            probability = image[0, 0, 0] / 100
            defect = self.defect_labels_[image[0, 0, 1]]
            yield Localization(
                label=defect if probability >= self.threshold_ else "good",
                probability=probability,
                is_defect=probability >= self.threshold_,
                grid=image[:, :, 2] / 100,
                geometry=Geometry.stretch(image.shape[:2], image.shape[:2]),
                threshold=self.box_threshold,
                decision_threshold=self.threshold_,
                min_area=2,
                max_boxes=None,
                merge_distance=None,
                source=item,
                good_label="good",
                defect_label=defect,
                peak_fraction=0.4,
                tighten=True,
                unfamiliar=bool(image[0, 0, 0] == 99),
            )


def paint(rng: np.random.Generator, per_cent: int, defect: int = 0) -> Any:
    """Draw an image with two warm spots, and a heatmap that has them too."""
    heat = np.zeros(SIZE, dtype=np.float32)
    for height in rng.uniform(60, 230, size=2):
        x, y = rng.integers(5, SIZE[1] - 5), rng.integers(5, SIZE[0] - 5)
        cv2.circle(heat, (int(x), int(y)), 3, float(height), -1)
    image = np.full((*SIZE, 3), 90, dtype=np.uint8)
    image[:, :, 2] = cv2.GaussianBlur(heat, (0, 0), 1.5)
    image[0, 0] = per_cent, defect, 0
    return image


def make_images(n: int = 28) -> tuple[list[Any], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.choice(["good", "dent", "scratch"], n, p=[0.5, 0.25, 0.25])
    per_cent = np.clip(rng.normal(np.where(y == "good", 35, 65), 20), 1, 98).astype(int)
    images = [paint(rng, number, int(rng.integers(2))) for number in per_cent]
    return images, y, per_cent / 100


def data_of(path: Path) -> dict[str, Any]:
    """Read what the page's script works on."""
    [text] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text()
    )
    return json.loads(text)


def embedded(path: Path, name: str) -> Image.Image:
    [text] = re.findall(rf'<script type="text/plain" id="{name}">(.*?)</script>', path.read_text())
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of 28 images of three types."""
    images, y, _ = make_images()
    masks = [image[:, :, 2] > 120 for image in images]
    path = tmp_path_factory.mktemp("painted") / "report.html"
    return write_report(Painted(), images, y, path, masks, title="Painted parts")


# --- The file -----------------------------------------------------------------------------------


def test_data_are_what_localize_answers(painted: Path) -> None:
    images, y, probability = make_images()
    data = data_of(painted)
    assert [data["types"][image["type"]] for image in data["images"]] == y.tolist()
    assert [image["p"] for image in data["images"]] == probability.tolist()
    for image, found in zip(data["images"], Painted().localize_iter(images), strict=True):
        forced = found.with_threshold(decision_threshold=0)
        for at, stop in enumerate(data["stops"]):
            [*_, (_, boxes)] = [run for run in image["boxes"] if run[0] <= at]
            expected = forced.with_threshold(stop)
            assert [box[:4] for box in boxes] == expected.boxes.tolist()
            assert [box[4] for box in boxes] == pytest.approx(expected.box_scores, abs=1e-3)


def test_stops_hold_the_models_threshold_and_lie_around_it() -> None:
    for threshold in (1.0, 0.8, 0.3, 1 / 3, -2.0, 0.0):
        stops = box_stops(threshold)
        assert threshold in stops and stops == sorted(set(stops))
        assert stops[0] < threshold < stops[-1]


def test_maps_have_the_limit_in_the_middle_of_256_levels(painted: Path) -> None:
    images, _, _ = make_images()
    level = np.asarray(embedded(painted, "map-0")).astype(float)
    assert level.shape == SIZE
    expected = np.clip(images[0][:, :, 2] / 100, 0, 2) * 127.5
    assert np.abs(level - expected).max() <= 0.51


def test_pictures_are_embedded_in_their_shape(painted: Path) -> None:
    picture = embedded(painted, "picture-3").convert("RGB")
    assert picture.size == (SIZE[1], SIZE[0])


def test_curves_are_those_of_scikit_learn(painted: Path) -> None:
    _, y, probability = make_images()
    curves = data_of(painted)["curves"]
    fpr, tpr, _ = roc_curve(y != "good", probability)
    np.testing.assert_allclose(curves["roc"], np.column_stack([fpr, tpr]), atol=1e-5)
    precision, recall, _ = precision_recall_curve(y != "good", probability)
    np.testing.assert_allclose(curves["pr"], np.column_stack([recall, precision]), atol=1e-5)
    assert sum(count for _, _, count in curves["calibration"]) == len(y)


def test_mean_heatmaps_share_one_scale(painted: Path) -> None:
    images, y, _ = make_images()
    averages = data_of(painted)["averages"]
    names = [group["name"] for group in averages["groups"]]
    assert names == ["all defects", "good", "dent", "scratch"]
    assert [group["defective"] for group in averages["groups"]] == [True, False, True, True]
    heat = np.stack([image[:, :, 2] / 100 for image in images]).astype(float)
    counts = {"all defects": y != "good", **{kind: y == kind for kind in names[1:]}}
    for group in averages["groups"]:
        chosen = counts[group["name"]]
        assert group["n"] == chosen.sum()
        level = np.asarray(Image.open(io.BytesIO(base64.b64decode(group["map"]))))
        mean = level.mean() / 255 * averages["top"]
        assert mean == pytest.approx(heat[chosen].mean(), abs=0.02)


def test_figures_and_masks_are_those_of_evaluate(painted: Path) -> None:
    images, y, _ = make_images()
    figures = evaluate(Painted(), images, y, [image[:, :, 2] > 120 for image in images])
    text = unescape(re.sub(r"<[^>]*>", " ", painted.read_text().split('<script type="app')[0]))
    text = " ".join(text.split())
    assert figures.pixels is not None
    assert f"Defect recall {figures.defect_recall:.3f}" in text
    assert f"AUPRO {figures.pixels['pro_auc']:.3f}" in text
    assert f"Box F1 at IoU 0.3 {figures.pixels['box_f1']:.3f}" in text
    assert any(image["outline"] for image in data_of(painted)["images"])


def test_many_large_pictures_share_their_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 700, 3), dtype=np.uint8)
    noise[0, 0] = 0
    noise[:, :, 2] = 50
    [found] = Painted().localize_iter([noise])
    album = Album(box_stops(1.0), n_images=1000)
    album.add(found, ["good"])
    [portrait] = album.portraits
    assert 1000 * (len(portrait.picture) + len(portrait.heat)) < 60e6


def test_map_is_clipped_not_stretched() -> None:
    def levels(values: list[float]) -> list[int]:
        data = base64.b64decode(encode_map(np.array([values])))
        return np.asarray(Image.open(io.BytesIO(data))).ravel().tolist()

    assert levels([-1.0, 0.0, 0.5, 1.0, 3.0]) == [0, 0, 128, 255, 255]


def test_names_are_given_below_the_folder(fitted: DefectCAMClassifier, fitted_parts: Path) -> None:
    path = fitted.report(fitted_parts, path=fitted_parts.parent / "parts.html")
    data = data_of(path)
    assert data["images"][0]["name"] == "good/000.png"
    assert str(fitted_parts) not in path.read_text()
    assert "Report: parts" in path.read_text()
    found = fitted.localize(fitted_parts)
    assert [image["p"] for image in data["images"]] == [one.probability for one in found]


def test_without_labels_nothing_is_called_right_or_wrong(tmp_path: Path) -> None:
    images, _, _ = make_images(6)
    data = data_of(write_report(Painted(), images, path=tmp_path / "report.html"))
    assert not data["labelled"] and data["curves"] is None and data["types"] == []
    text = (tmp_path / "report.html").read_text()
    assert "These images have no labels" in text and 'id="confusion"' not in text


def test_a_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    for number, image in enumerate(make_images(3)[0]):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    data = data_of(write_report(Painted(), tmp_path, path=tmp_path / "report.html"))
    assert not data["labelled"] and data["images"][0]["name"] == "0.png"
    with pytest.raises(ImageReadError, match="another layout"):
        write_report(Painted(), tmp_path, path=tmp_path / "report.html", good_label="good")
    with pytest.raises(ValueError, match="masks need labels"):
        write_report(Painted(), tmp_path, path=tmp_path / "report.html", masks=[None] * 3)


def test_good_images_alone_have_no_curves(tmp_path: Path) -> None:
    images, _, _ = make_images(4)
    path = write_report(Painted(), images, ["good"] * 4, tmp_path / "report.html")
    assert data_of(path)["curves"] is None
    assert "nothing is known of missed defects" in path.read_text()


def test_contradicted_and_unfamiliar_images_are_listed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [paint(rng, per_cent) for per_cent in (1, 2, 1, 99, 98, 99)]
    y = ["good", "good", "dent", "dent", "dent", "good"]
    data = data_of(write_report(Painted(), images, y, tmp_path / "report.html"))
    assert set(data["suspects"]) == {2, 5}
    assert [at for at, one in enumerate(data["images"]) if one["unfamiliar"]] == [3, 5]


def test_limits_name_what_was_not_held_out(tmp_path: Path) -> None:
    images, y, _ = make_images(6)
    clf = Painted(cv=None, heatmap="min_max_cam")
    text = write_report(clf, images, y, tmp_path / "report.html").read_text()
    assert "cv=None" in text and "stretched to each image" in text
    clf.set_params(heatmap="fused")  # which counts at the next fit
    assert (
        "stretched to each image" in write_report(clf, images, y, tmp_path / "2.html").read_text()
    )


def test_nothing_is_left_of_a_report_that_fails(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(make_images(1)[0][0]).save(good)
    (tmp_path / "bad.png").write_bytes(good.read_bytes()[:60])
    target = tmp_path / "report.html"
    target.write_text("the old one")
    with pytest.raises(ImageReadError, match=r"bad\.png"):
        write_report(Painted(), [good, tmp_path / "bad.png"], ["good", "dent"], target)
    assert target.read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bad.png",
        "good.png",
        "report.html",
    ]


def test_targets_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    class Unasked(Painted):
        def localize_iter(self, X: Any) -> Iterator[Localization]:
            raise AssertionError("the target should have been refused")

    (tmp_path / "old.html").write_text("old")
    for path, error in {
        tmp_path: IsADirectoryError,
        tmp_path / "none" / "report.html": FileNotFoundError,
        tmp_path / "old.html": FileExistsError,
    }.items():
        with pytest.raises(error):
            write_report(Unasked(), make_images(1)[0], path=path, overwrite=False)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report whose file names, labels and title try to run a script."""
    folder = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    paths = [folder / HOSTILE_NAME, folder / "b.png", folder / "c.png"]
    for path, per_cent in zip(paths, (10, 20, 80), strict=True):
        Image.fromarray(paint(rng, per_cent)).save(path)
    y = [HOSTILE_LABEL, "good", "dent"]
    return write_report(
        Painted(), paths, y, folder / "report.html", title=HOSTILE_LABEL, model=HOSTILE_NAME
    )


def test_hostile_texts_are_no_markup(hostile: Path) -> None:
    text = hostile.read_text()
    assert "window.hacked=1</script>" not in text
    assert "<img src=x" not in text
    assert data_of(hostile)["images"][0]["name"] == HOSTILE_NAME
    assert data_of(hostile)["types"][1] == HOSTILE_LABEL


def test_names_that_are_no_text_do_not_stop_a_report(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        with open(name, "wb") as file:
            Image.fromarray(make_images(1)[0][0]).save(file, format="PNG")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    path = write_report(Painted(), [os.fsdecode(name)], path=tmp_path / "report.html")
    assert data_of(path)["images"][0]["name"] == "\udcff.png"


# --- The command --------------------------------------------------------------------------------


@pytest.fixture
def model(fitted: DefectCAMClassifier, tmp_path: Path) -> Path:
    fitted.save(tmp_path / "part.safetensors")
    return tmp_path / "part.safetensors"


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_command_writes_a_report(model: Path, fitted_parts: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "report.html"
    line = ["report", model, fitted_parts, "-o", target, "--quiet"]
    assert run(*line) == 0
    assert data_of(target)["labelled"] and data_of(target)["model"] == str(model)
    assert run(*line) == 2 and "--force" in capsys.readouterr().err
    assert run(*line, "--force", "--threshold", "0.25", "--box-threshold", "0.5", "--json") == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == target.stat().st_size
    assert data_of(target)["threshold"] == 0.25
    assert data_of(target)["stops"][data_of(target)["stop"]] == 0.5


def test_command_takes_images_without_labels(
    model: Path, fitted_parts: Path, tmp_path: Path
) -> None:
    for images in ([fitted_parts, "--no-labels"], sorted(fitted_parts.rglob("*.png"))):
        target = tmp_path / f"{len(images)}.html"
        assert run("report", model, *images, "-o", target, "--quiet") == 0
        assert not data_of(target)["labelled"] and len(data_of(target)["images"]) == 14


def test_command_refuses_what_it_cannot_do(model: Path, fitted_parts: Path, tmp_path: Path) -> None:
    images, target = sorted(fitted_parts.rglob("*.png")), tmp_path / "report.html"
    assert run("report", model, *images, "-o", target, "--masks", tmp_path) == 2
    assert run("report", model, fitted_parts, "-o", target, "--masks", tmp_path / "none") == 2
    assert run("report", model, fitted_parts, "-o", target, "--threshold", "2") == 2
    assert run("report", model, fitted_parts, "-o", target, "--box-threshold", "nan") == 2
    assert not target.exists()


# --- In the browser -----------------------------------------------------------------------------


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that opens a report; at the end, it must have been quiet and alone."""
    messages: list[str] = []
    requests: list[str] = []
    contexts = []

    def open_page(path: Path, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        wait_until(page, "document.querySelectorAll('.card').length > 0")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert messages == []
    others = [url for url in requests if not url.startswith(("file://", "data:"))]
    assert others == [] and sum(url.startswith("file://") for url in requests) == len(contexts)


def settled(page: Any) -> None:
    """Wait until what was scheduled for the next frame is on the page."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def slide(page: Any, selector: str, value: float) -> None:
    page.locator(selector).evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value
    )
    settled(page)


def counts_on(page: Any) -> dict[str, int]:
    cells = page.locator("[data-count]").all()
    return {cell.get_attribute("data-count"): int(cell.inner_text()) for cell in cells}


def boxes_on(page: Any) -> dict[str, list[list[float]]]:
    """Read the boxes of each card, of a window in which all are in sight."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('#groups .card')].map(card => [
            card.dataset.image,
            [...card.querySelectorAll('.box')].map(box => {
                const [x, y, w, h] = ['x', 'y', 'width', 'height'].map(n => +box.getAttribute(n));
                return [x, y, x + w, y + h];
            }),
        ]))"""
    )


def test_slider_gives_the_counts_of_scikit_learn(painted: Path, visit: Callable) -> None:
    _, y, probability = make_images()
    page = visit(painted)
    for odds in (None, -7, -3.2, -1, -0.4, 0, 0.31, 0.9, 2.5, 7):
        if odds is not None:
            slide(page, "#threshold", odds)
        threshold = float(page.locator("#threshold-number").input_value())
        expected = confusion_matrix(y != "good", probability >= threshold, labels=[False, True])
        counts = counts_on(page)
        assert [counts[name] for name in ("passed", "alarms", "missed", "found")] == [
            int(number) for number in expected.ravel()
        ]
        shown = page.evaluate(
            "[...document.querySelectorAll('.group > h3 span')].map(x => +x.textContent)"
        )
        assert shown == [counts[name] for name in ("missed", "alarms", "found", "passed")]
        truth = y != "good"
        found = f"{np.sum(truth & (probability >= threshold))} of {truth.sum()} found"
        assert found in page.locator("#verdict").inner_text()
    assert float(page.locator("#threshold-number").input_value()) == 1
    page.click("#reset")
    settled(page)
    assert float(page.locator("#threshold-number").input_value()) == 0.5


def test_exact_threshold_counts_like_predict(painted: Path, visit: Callable) -> None:
    _, y, probability = make_images()
    page = visit(painted)
    exact = float(np.sort(probability[y != "good"])[5])  # at the threshold is defective
    page.fill("#threshold-number", str(exact))
    settled(page)
    assert counts_on(page)["found"] == int(np.sum((probability >= exact) & (y != "good")))


def test_missed_defects_come_first_and_the_worst_of_them(painted: Path, visit: Callable) -> None:
    _, y, probability = make_images()
    page = visit(painted)
    assert page.locator(".group > h3").all_inner_texts()[0].startswith("Missed defects")
    for group, chosen, sign in (
        ("missed", (y != "good") & (probability < 0.5), 1),
        ("alarms", (y == "good") & (probability >= 0.5), -1),
    ):
        cards = page.locator(f"#group-{group} .card").all()
        shown = [int(card.get_attribute("data-image")) for card in cards]
        assert set(shown) == set(np.flatnonzero(chosen).tolist())
        assert [sign * probability[at] for at in shown] == sorted(sign * probability[chosen])


def test_boxes_are_those_of_localize_and_follow_both_thresholds(
    painted: Path, visit: Callable
) -> None:
    images, _, _ = make_images()
    found = list(Painted().localize_iter(images))
    page = visit(painted, viewport={"width": 1280, "height": 4000})
    seen = "[...document.querySelectorAll('#groups .card img')].every(image => image.src)"
    wait_until(page, seen)
    drawn = boxes_on(page)
    assert {int(at): boxes for at, boxes in drawn.items()} == {
        at: one.boxes.tolist() for at, one in enumerate(found)
    }
    stops = box_stops(1.0)
    for stop in (0, 11, 14):
        slide(page, "#stop", stop)
        slide(page, "#threshold", -1.1)
        threshold = float(page.locator("#threshold-number").input_value())
        assert page.locator("#stop-value").inner_text() == str(stops[stop]).removesuffix(".0")
        expected = [one.with_threshold(stops[stop], threshold) for one in found]
        drawn = boxes_on(page)
        assert [drawn[str(at)] for at in range(len(found))] == [
            one.boxes.tolist() for one in expected
        ]
        assert any(drawn.values())


def test_heat_is_coloured_on_the_fixed_scale(painted: Path, visit: Callable) -> None:
    page = visit(painted)
    first = page.locator("#groups .card").first
    at = int(first.get_attribute("data-image"))
    wait_until(page, "document.querySelector('#groups canvas').width != 300")
    pixels = np.array(
        first.locator("canvas").evaluate(
            """canvas => [...canvas.getContext('2d')
                .getImageData(0, 0, canvas.width, canvas.height).data]"""
        )
    ).reshape(*SIZE, 4)
    level = np.asarray(embedded(painted, f"map-{at}")).astype(float)
    assert np.abs(pixels[..., 3] - 255 * np.minimum(1, level / 127.5)).max() <= 1
    colours = cv2.applyColorMap(level.astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    opaque = level >= 128
    assert opaque.any() and np.abs(pixels[opaque][:, :3] - colours[opaque]).max() <= 1


def test_heat_and_boxes_can_be_switched_off(painted: Path, visit: Callable) -> None:
    page = visit(painted)
    canvas = page.locator("#group-found canvas").first
    opacity = "canvas => getComputedStyle(canvas).opacity"
    assert canvas.evaluate(opacity) == "0.5"
    slide(page, "#heat", 0.9)
    assert canvas.evaluate(opacity) == "0.9"
    page.keyboard.press("h")
    settled(page)
    assert canvas.evaluate(opacity) == "0"
    boxes = page.locator("#group-found .layer-boxes").first
    assert boxes.is_visible()
    page.uncheck("#show-boxes")
    settled(page)
    assert not boxes.is_visible()


def test_report_can_be_read_by_keyboard_alone(painted: Path, visit: Callable) -> None:
    page = visit(painted)
    page.locator("#group-missed .card").first.focus()
    page.keyboard.press("ArrowRight")
    focused = "document.activeElement.dataset.image"
    order = [card.get_attribute("data-image") for card in page.locator("#groups .card").all()]
    assert page.evaluate(focused) == order[1]
    page.keyboard.press("Enter")
    assert page.locator("#viewer").is_visible()
    assert page.locator("#viewer-name").inner_text() == f"image {order[1]}"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-name").inner_text() == f"image {order[3]}"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#viewer-place").inner_text() == "3 of 28"
    width = page.locator("#stage-picture").evaluate("x => x.offsetWidth")
    page.keyboard.press("+")
    assert page.locator("#stage-picture").evaluate("x => x.offsetWidth") > width
    page.keyboard.press("0")
    assert page.locator("#stage-picture").evaluate("x => x.offsetWidth") == width
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    assert page.evaluate(focused) == order[2]


def test_large_view_has_the_boxes_and_pans(painted: Path, visit: Callable) -> None:
    images, _, _ = make_images()
    page = visit(painted)
    card = page.locator("#group-found .card").first
    at = int(card.get_attribute("data-image"))
    card.click()
    settled(page)
    rows = page.locator("#viewer-boxes tbody tr").all()
    [found] = Painted().localize_iter([images[at]])
    assert [[int(cell) for cell in row.locator("td").all_inner_texts()[:4]] for row in rows] == (
        found.boxes.tolist()
    )
    slide(page, "#viewer [data-bind=stop]", 27)
    expected = found.with_threshold(box_stops(1.0)[27]).boxes
    assert len(page.locator("#viewer-boxes tbody tr").all()) == len(expected)
    stage = page.locator("#stage").bounding_box()
    x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    page.mouse.move(x, y)
    page.mouse.wheel(0, -400)
    place = page.locator("#stage-picture").bounding_box()
    page.mouse.down()
    page.mouse.move(x + 50, y + 20)
    page.mouse.up()
    moved = page.locator("#stage-picture").bounding_box()
    assert (moved["x"] - place["x"], moved["y"] - place["y"]) == pytest.approx((50, 20), abs=1)


def test_cost_follows_and_the_lowest_is_found(painted: Path, visit: Callable) -> None:
    _, y, probability = make_images()
    truth = y != "good"
    page = visit(painted)
    page.fill("#cost-escape", "3")
    page.fill("#cost-overkill", "2")
    settled(page)

    def cost(threshold: float) -> int:
        called = probability >= threshold
        return int(3 * np.sum(truth & ~called) + 2 * np.sum(~truth & called))

    assert float(page.locator("#cost").inner_text()) == cost(0.5)
    page.click("#cheapest")
    settled(page)
    chosen = float(page.locator("#threshold-number").input_value())
    lowest = min(cost(threshold) for threshold in [*np.unique(probability), 1.0])
    assert float(page.locator("#cost").inner_text()) == cost(chosen) == lowest


def test_copied_lines_apply_the_thresholds(painted: Path, visit: Callable) -> None:
    page = visit(painted, permissions=["clipboard-read", "clipboard-write"])
    slide(page, "#threshold", -1.2)
    slide(page, "#stop", 5)
    page.click("#copy")
    wait_until(page, "document.getElementById('copied').textContent == 'Copied.'")
    python, line = page.evaluate("navigator.clipboard.readText()").split("\n")
    chosen = float(page.locator("#threshold-number").input_value())
    clf = DefectCAMClassifier()
    exec(python, {"clf": clf})
    assert (clf.threshold_, clf.box_threshold) == (chosen, box_stops(1.0)[5])
    program, *arguments = shlex.split(line)
    args = cli_options.make_parser().parse_args(arguments)
    assert program == "defectcam" and args.model == "part.safetensors"
    assert (args.threshold, args.box_threshold) == (chosen, box_stops(1.0)[5])


def test_types_are_counted_at_the_threshold(painted: Path, visit: Callable) -> None:
    images, y, _ = make_images()
    page = visit(painted)
    slide(page, "#threshold", 0.5)
    threshold = float(page.locator("#threshold-number").input_value())
    clf = Painted()
    clf.threshold_ = threshold
    expected = evaluate(clf, images, y).by_type
    for row in page.locator("#types tbody tr").all():
        kind = row.locator("th").inner_text()
        assert [int(n) for n in row.locator("td").all_inner_texts()[:3]] == list(
            expected[kind].values()
        )


def test_images_can_be_chosen_by_type_and_name(painted: Path, visit: Callable) -> None:
    _, y, _ = make_images()
    page = visit(painted)
    page.select_option("#filter-type", label="dent")
    settled(page)
    shown = page.locator("#groups .card").all()
    assert {int(card.get_attribute("data-image")) for card in shown} == set(
        np.flatnonzero(y == "dent").tolist()
    )
    page.select_option("#filter-type", label="all")
    page.fill("#query", "image 17")
    settled(page)
    assert page.locator("#groups .card").count() == 1


def test_dark_mode_follows_the_system_and_the_button(painted: Path, visit: Callable) -> None:
    brightness = """() => {
        const colour = getComputedStyle(document.body).backgroundColor.match(/\\d+/g);
        return Number(colour[0]);
    }"""
    assert visit(painted, color_scheme="light").evaluate(brightness) > 200
    page = visit(painted, color_scheme="dark")
    assert page.evaluate(brightness) < 50
    page.click("#theme")
    assert page.evaluate(brightness) > 200


def test_phone_has_no_sideways_scrolling_and_a_slider_at_hand(
    painted: Path, visit: Callable
) -> None:
    page = visit(painted, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    slide(page, "#dock-threshold", -5)
    _, y, _ = make_images()
    assert page.locator("#dock-verdict").inner_text().startswith(f"{np.sum(y != 'good')} of")
    page.locator("#groups .card").first.tap()
    assert page.locator("#viewer").is_visible()


def test_print_has_pictures_and_no_controls(painted: Path, visit: Callable) -> None:
    page = visit(painted, color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.locator("#print").is_visible() and not page.locator("#heat").is_visible()
    assert page.pdf()[:4] == b"%PDF"
    pictures = "[...document.querySelectorAll('#groups .card img')].every(i => i.src)"
    assert page.evaluate(pictures)


def test_hostile_texts_run_nothing(hostile: Path, visit: Callable) -> None:
    page = visit(hostile)
    page.locator("#group-missed .card").first.click()
    assert page.locator("#viewer-name").inner_text() == HOSTILE_NAME
    assert page.locator("h1").inner_text() == HOSTILE_LABEL
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0


def test_a_folder_whose_classes_are_not_understood_is_named(tmp_path: Path) -> None:
    images, _, _ = make_images(4)
    for number, image in enumerate(images):
        (tmp_path / "ev" / ("fine", "weird")[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(
            tmp_path / "ev" / ("fine", "weird")[number % 2] / f"{number}.png"
        )
    with pytest.warns(UserWarning, match=r"without labels: none of its folders \(fine, weird\)"):
        write_report(Painted(), tmp_path / "ev", path=tmp_path / "a.html")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(Painted(), tmp_path / "ev" / "fine", path=tmp_path / "b.html")


def test_reports_without_labels_and_of_good_images_work(tmp_path: Path, visit: Callable) -> None:
    images, _, probability = make_images(12)
    page = visit(write_report(Painted(), images, path=tmp_path / "a.html"))
    slide(page, "#threshold", 0.2)
    threshold = float(page.locator("#threshold-number").input_value())
    n_called = int(np.sum(probability >= threshold))
    assert page.locator("#group-called .card").count() == n_called
    page = visit(write_report(Painted(), images, ["good"] * 12, tmp_path / "b.html"))
    assert counts_on(page)["alarms"] == int(np.sum(probability >= 0.5))
    assert "no image here is labelled defective" in page.locator("#group-missed").inner_text()
    clf = Painted()
    clf.history_ = {name: [] for name in clf.history_}
    with pytest.warns(UserWarning, match="No image is labelled 'good'"):
        path = write_report(clf, images[:1], ["dent"], tmp_path / "c.html")
    page = visit(path)
    assert "Nothing was trained" in page.locator("#chart-loss").inner_text()


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of ten types with long names, one image of which is unfamiliar."""
    rng = np.random.default_rng(0)
    images = [paint(rng, per_cent) for per_cent in (20, 30, 55, 60, 65, 70, 75, 80, 85, 99)]
    y = ["good", *(f"mark of no. {n} of the press, left" for n in range(8)), "x" * 90]
    return write_report(Painted(), images, y, tmp_path_factory.mktemp("wordy") / "report.html")


def test_long_names_of_types_cover_no_bars_and_widen_no_phone(wordy: Path, visit: Callable) -> None:
    page = visit(wordy)
    names, bars = page.evaluate(
        """['.key', 'rect[y][fill]:not([rx])'].map(kind =>
            [...document.querySelectorAll(`#chart-scores ${kind}`)]
                .map(one => one.getBoundingClientRect()).map(({ top, bottom, right }) =>
                    ({ top, bottom, right })))"""
    )
    assert len(names) == 10 and len(bars) > 3
    assert max(name["bottom"] for name in names) <= min(bar["top"] for bar in bars) + 1
    edge = page.locator("#chart-scores").evaluate("one => one.getBoundingClientRect().right")
    assert max(name["right"] for name in names) <= edge + 1
    phone = visit(wordy, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    assert phone.evaluate("document.documentElement.scrollWidth") == 360


def test_ticks_of_counts_are_whole(wordy: Path, visit: Callable) -> None:
    labels = visit(wordy).locator("#chart-scores text[text-anchor=end]").all_text_contents()
    assert labels and all(label.isdigit() for label in labels)


def test_shares_are_not_rounded_to_all_or_nothing(tmp_path: Path, visit: Callable) -> None:
    rng = np.random.default_rng(0)
    hit, miss = paint(rng, 90), paint(rng, 10)
    images = [hit] * 249 + [miss, hit, miss]
    y = ["dent"] * 250 + ["good"] * 2
    page = visit(write_report(Painted(), images, y, tmp_path / "report.html"))
    assert page.locator("#verdict b").all_inner_texts() == ["99.6 %", "50 %"]
    assert page.locator("#types tbody tr").last.locator("td").last.inner_text() == "99.6 %"


def test_keys_move_the_slider_that_has_the_focus(painted: Path, visit: Callable) -> None:
    page = visit(painted)
    page.locator("#heat").focus()
    for value in ("0", "0.5"):
        page.keyboard.press("h")
        settled(page)
        assert page.locator("#heat").input_value() == value


def test_number_fields_end_up_with_what_counts(painted: Path, visit: Callable) -> None:
    page = visit(painted)
    for field, typed, value in (
        ("#threshold-number", "2", "1"),
        ("#threshold-number", "", "1"),
        ("#threshold-number", "-0.4", "1"),
        ("#cost-escape", "", "20"),
    ):
        page.fill(field, typed)
        settled(page)
        assert page.locator(field).input_value() == typed  # while it is being typed
        page.keyboard.press("Tab")
        settled(page)
        assert page.locator(field).input_value() == value


def test_doubtful_image_opens_and_closes_where_it_is(wordy: Path, visit: Callable) -> None:
    page = visit(wordy)
    card = page.locator("#unfamiliar .card")
    card.click()
    assert page.locator("#viewer-place").inner_text() == "9 of 10"
    page.keyboard.press("Escape")
    assert card.evaluate("card => card === document.activeElement")
    for query, place in (("nothing is called so", "not among those chosen"), ("image 0", "1 of 1")):
        page.fill("#query", query)
        settled(page)
        card.click()
        assert page.locator("#viewer-place").inner_text() == "not among those chosen"
        page.keyboard.press("ArrowLeft")
        assert page.locator("#viewer-place").inner_text() == place
        page.keyboard.press("Escape")
        settled(page)


def test_label_of_a_box_as_large_as_the_image_is_seen(tmp_path: Path, visit: Callable) -> None:
    image = np.full((*SIZE, 3), 200, dtype=np.uint8)
    image[0, 0] = 90, 0, 200
    page = visit(write_report(Painted(), [image], path=tmp_path / "report.html"))
    page.locator("#group-called .card").click()
    label = page.locator("#stage text")
    assert label.inner_html() == "2.0"
    assert page.locator("#stage .layer-boxes").evaluate(
        """layer => {
            const [text, stage] = [layer.querySelector('text'), document.getElementById('stage')]
                .map(one => one.getBoundingClientRect());
            return getComputedStyle(layer).overflow === 'visible' && text.right <= stage.right
                && text.bottom <= stage.bottom;
        }"""
    )


def test_no_picture_without_its_heatmap_is_printed(painted: Path, visit: Callable) -> None:
    page = visit(painted, viewport={"width": 400, "height": 400})
    n_pending = "document.querySelectorAll('#groups .pending').length"
    assert page.evaluate(n_pending) > 0
    page.emulate_media(media="print")
    assert page.locator("#groups .pending img").first.is_hidden()
    page.evaluate(f"window.print = () => {{ window.pendingInPrint = {n_pending}; }}")
    page.keyboard.press("Control+p")
    wait_until(page, "window.pendingInPrint !== undefined")
    assert page.evaluate("window.pendingInPrint") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(painted: Path, browser: Any, scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not here: `npm install axe-core`, or set AXE to its axe.min.js")
    page = browser.new_context(color_scheme=scheme, bypass_csp=True).new_page()
    page.goto(painted.as_uri())
    page.add_script_tag(path=AXE)
    for state in ("page", "viewer"):
        if state == "viewer":
            page.locator("#group-found .card").first.click()
        found = page.evaluate("axe.run()")["violations"]
        serious = [
            (one["id"], [node["html"][:120] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == []
    page.context.close()


def test_a_good_folder_that_only_training_knows(tiny_classifier, fitted_parts, tmp_path):
    shutil.copytree(fitted_parts / "good", tmp_path / "parts" / "type A")
    shutil.copytree(fitted_parts / "scratch", tmp_path / "parts" / "scratch")
    clf = tiny_classifier(max_epochs=1, good_label="type A").fit(tmp_path / "parts")
    evaluation = make_report(clf, tmp_path / "parts").evaluation
    assert (evaluation.n_images, evaluation.n_defective) == (14, 6)


def test_a_generator_of_images_is_gone_through_once(fitted, fitted_parts):
    paths = [str(path) for path in sorted(fitted_parts.glob("*/*.png"))]
    y = ["good"] * 8 + ["scratch"] * 6
    assert make_report(fitted, iter(paths), y).evaluation == fitted.evaluate(paths, y)
