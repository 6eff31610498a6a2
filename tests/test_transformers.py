"""Transformers alone, and in front of a classifier: boxes in the original image's pixels."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import (
    check_estimator_cloneable,
    check_estimator_repr,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
)

import defectcam
from defectcam import (
    ContrastEqualizer,
    DefectCAMClassifier,
    EvidenceTransformer,
    FlatFieldCorrector,
    PartCropper,
    TemplateAligner,
    localize,
)
from defectcam.images import ImageReadError, read_image
from defectcam.views import ImageView

modestly = settings(deadline=None, max_examples=40)

TRANSFORMERS = [PartCropper(), TemplateAligner(), FlatFieldCorrector(), ContrastEqualizer()]
ids = [type(one).__name__ for one in TRANSFORMERS]


def on_table(part: np.ndarray, size: tuple[int, int], place: tuple[int, int]) -> np.ndarray:
    """Lay a part on a dark table."""
    table = np.full((*size, 3), 20, dtype=np.uint8)
    left, top = place
    table[top : top + part.shape[0], left : left + part.shape[1]] = part
    return table


def textured(size: tuple[int, int] = (120, 160), seed: int = 0) -> np.ndarray:
    """Return a grey picture of blobs, which can be aligned in one way only."""
    noise = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    grey = (128 + smooth / np.abs(smooth).max() * 120).astype(np.uint8)
    return np.repeat(grey[..., np.newaxis], 3, axis=2)


def moved(image: np.ndarray, angle: float, scale: float, shift: tuple[float, float]) -> Any:
    """Return the image turned about its centre and shifted, and the map of its points."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
    matrix[:, 2] += shift
    result = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return result, lambda points: (np.asarray(points) - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """Return paths and labels of grey parts of 48 pixels, each somewhere on a table of 96 x 128."""
    from conftest import draw_part

    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pieces")
    paths, labels = [], []
    for number in range(14):
        scratched = number % 2 == 1
        part = draw_part(rng, scratched=scratched)
        place = int(rng.integers(1, 79)), int(rng.integers(1, 47))
        path = folder / f"{number:02d}.png"
        Image.fromarray(on_table(part, (96, 128), place)).save(path)
        paths.append(str(path))
        labels.append("scratch" if scratched else "good")
    return np.array(paths), np.array(labels)


@pytest.fixture(scope="module")
def pipeline(tiny_classifier, pieces) -> Pipeline:
    return Pipeline([("crop", PartCropper()), ("clf", tiny_classifier())]).fit(*pieces)


# --- scikit-learn's contract ------------------------------------------------------------------


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=ids)
def test_scikit_learns_checks_of_parameters(transformer) -> None:
    name = type(transformer).__name__
    check_parameters_default_constructible(name, transformer)
    check_no_attributes_set_in_init(name, transformer)
    check_estimator_cloneable(name, transformer)
    check_estimator_repr(name, transformer)
    assert "parameter" in transformer._repr_html_().lower()


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=ids)
def test_tags_tell_the_truth(transformer) -> None:
    tags = get_tags(transformer)
    assert not tags.input_tags.two_d_array
    assert tags.input_tags.string
    assert tags.no_validation
    assert transformer.get_feature_names_out(["path"]).tolist() == ["path"]
    if tags.requires_fit:
        with pytest.raises(NotFittedError):
            transformer.transform([textured()])
    else:
        transformer.transform([textured()])


def test_only_what_learns_must_be_fitted() -> None:
    assert get_tags(FlatFieldCorrector(field="learned")).requires_fit
    assert not get_tags(FlatFieldCorrector()).requires_fit
    with pytest.raises(NotFittedError):
        FlatFieldCorrector(field="learned").transform(textured())


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=ids)
def test_fitted_transformers_pickle_and_give_the_same_pixels(transformer) -> None:
    images = [textured(seed=seed) for seed in (0, 0, 1)]
    fitted = clone(transformer).fit(images)
    again = pickle.loads(pickle.dumps(fitted))
    for one, other in zip(fitted.transform(images), again.transform(images), strict=True):
        np.testing.assert_array_equal(one.read(), other.read())


@pytest.mark.parametrize(
    ("transformer", "wrong"),
    [
        (PartCropper(), {"margin": -0.1}),
        (PartCropper(), {"threshold": 300}),
        (PartCropper(), {"keep": "smallest"}),
        (PartCropper(), {"background": (0, 0, 256)}),
        (TemplateAligner(), {"motion": "homography"}),
        (FlatFieldCorrector(), {"max_gain": 0.5}),
        (ContrastEqualizer(), {"n_tiles": 0}),
    ],
)
def test_wrong_parameters_are_refused_by_name(transformer, wrong) -> None:
    [name] = wrong
    made = clone(transformer).set_params(**wrong)
    with pytest.raises(ValueError, match=name):
        made.fit([textured()]).transform([textured()])


def test_a_wrong_background_is_refused_by_fit() -> None:
    with pytest.raises(ValueError, match="background"):
        PartCropper(background=(0, 0, 256)).fit([textured()])


def test_a_field_of_an_earlier_fit_is_forgotten() -> None:
    corrector = FlatFieldCorrector("learned").fit([textured()])
    assert not hasattr(corrector.set_params(field="image").fit([textured()]), "field_")


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=ids)
def test_all_kinds_of_images_are_taken(transformer, tmp_path: Path) -> None:
    image = textured()
    Image.fromarray(image).save(tmp_path / "one.png")
    transformer = clone(transformer).fit([image, image])
    expected = transformer.transform(image).read()
    for one in (tmp_path / "one.png", Image.fromarray(image), ImageView(image), image[..., 0]):
        view = transformer.transform(one)
        assert isinstance(view, ImageView)
        np.testing.assert_array_equal(view.read(), expected)
    for many in (str(tmp_path), [image], image[np.newaxis], np.array([str(tmp_path / "one.png")])):
        [view] = transformer.transform(many)
        np.testing.assert_array_equal(view.read(), expected)


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=ids)
def test_images_are_not_changed(transformer) -> None:
    image = textured()
    before = image.copy()
    clone(transformer).fit([image]).transform(image).read()
    np.testing.assert_array_equal(image, before)


# --- Cropping ---------------------------------------------------------------------------------


@given(
    st.integers(20, 60),
    st.integers(20, 60),
    st.integers(1, 30),
    st.integers(1, 20),
    st.booleans(),
)
@modestly
def test_a_crop_is_the_parts_box_exactly(width, height, left, top, dark) -> None:
    image = on_table(np.full((height, width, 3), 200, np.uint8), (90, 110), (left, top))
    image = 255 - image if dark else image
    view = PartCropper(margin=0).transform(image)
    assert view.read().shape == (height, width, 3)
    assert view.placements[0].box == (left, top, left + width, top + height)


def test_a_margin_is_added_and_ends_at_the_border() -> None:
    image = on_table(np.full((20, 40, 3), 200, np.uint8), (90, 110), (60, 2))
    view = PartCropper(margin=0.25).transform(image)
    assert view.placements[0].box == (50, 0, 110, 32)


def test_large_images_are_cropped_to_no_less_than_the_part() -> None:
    image = on_table(np.full((701, 333, 3), 200, np.uint8), (1500, 1100), (207, 311))
    left, top, right, bottom = PartCropper(margin=0).transform(image).placements[0].box
    cell = 2 * 1500 / 512
    assert 207 - cell <= left <= 207 and 311 - cell <= top <= 311
    assert 540 <= right <= 540 + cell and 1012 <= bottom <= 1012 + cell


def test_the_largest_part_or_all_of_them_but_no_specks() -> None:
    image = on_table(np.full((30, 30, 3), 200, np.uint8), (90, 110), (10, 10))
    image[60:80, 70:90] = 200
    image[88, 108] = 255
    assert PartCropper(margin=0).transform(image).placements[0].box == (10, 10, 40, 40)
    every = PartCropper(margin=0, keep="all").transform(image)
    assert every.placements[0].box == (10, 10, 90, 80)


def test_threshold_and_background_can_be_given() -> None:
    image = np.full((60, 60, 3), (200, 30, 30), dtype=np.uint8)  # the part covers the border
    image[40:60, 0:30] = (30, 30, 200)
    image[50:58, 4:12] = (60, 30, 200)
    named = PartCropper(margin=0, background=(200, 30, 30)).transform(image)
    assert named.placements[0].box == (0, 40, 30, 60)
    blue = PartCropper(margin=0, background=[30, 30, 200], threshold=40).transform(image)
    assert blue.placements[0].box == (0, 0, 60, 60)


def test_erasing_leaves_the_part_and_its_holes_alone() -> None:
    image = on_table(np.full((40, 40, 3), 200, np.uint8), (90, 110), (20, 20))
    image[30:36, 30:36] = 20  # a hole
    image[70:75, 20:90] = 90  # dirt on the table, within the margin
    view = PartCropper(margin=0.5, erase=True, threshold=30).transform(image)
    expected = image[0:80, 0:80].copy()
    expected[70:75] = 20
    np.testing.assert_array_equal(view.read(), expected)


def test_an_image_without_a_part_stays_whole() -> None:
    for image in (np.full((30, 40, 3), 77, np.uint8), np.zeros((1, 1, 3), np.uint8)):
        view = PartCropper().transform(image)
        np.testing.assert_array_equal(view.read(), image)
        assert view.placements == ()


# --- Aligning ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "angle", "scale", "shift"),
    [
        ({"motion": "translation"}, 0, 1, (7, -5)),
        ({"motion": "euclidean"}, 6, 1, (4, 3)),
        ({"motion": "affine"}, -4, 1.05, (-3, 5)),
        ({"method": "orb"}, 75, 0.9, (6, -4)),
    ],
)
@pytest.mark.parametrize("size", [(120, 160), (700, 900)])
def test_aligned_points_are_right_within_a_pixel(options, angle, scale, shift, size) -> None:
    template = cv2.resize(textured(), size[::-1], interpolation=cv2.INTER_CUBIC)
    stretch = size[0] / 120
    image, true = moved(template, angle, scale, (shift[0] * stretch, shift[1] * stretch))
    view = TemplateAligner(template, **options).fit([image]).transform(image)
    aligned = view.read()
    assert aligned.shape == template.shape
    points = np.array([[0.3, 0.3], [0.7, 0.4], [0.5, 0.7]]) * size[::-1]
    [placement] = view.placements
    assert np.abs(placement.to_outer(points) - true(points)).max() < 1
    middle = np.s_[size[0] // 3 : size[0] // 2, size[1] // 3 : size[1] // 2]
    difference = np.abs(aligned[middle].astype(int) - template[middle])
    assert difference.mean() < 6 < np.abs(image[middle].astype(int) - template[middle]).mean()


def test_an_image_of_another_size_is_aligned_too() -> None:
    template = textured()
    wide = cv2.copyMakeBorder(template, 10, 6, 9, 15, cv2.BORDER_REFLECT)
    view = TemplateAligner(template).fit([wide]).transform(wide)
    assert view.read().shape == template.shape
    np.testing.assert_allclose(view.placements[0].to_outer([[50, 50]]), [[59, 60]], atol=0.5)


@pytest.mark.parametrize("method", ["ecc", "orb"])
@pytest.mark.parametrize("image", [textured(seed=5), np.zeros((50, 60, 3), np.uint8)])
def test_what_cannot_be_aligned_stays_or_is_an_error(method, image) -> None:
    aligner = TemplateAligner(textured(), method=method).fit([image])
    view = aligner.transform(image)
    np.testing.assert_array_equal(view.read(), image)
    assert view.placements == ()
    aligner.set_params(on_failure="raise")
    with pytest.raises(ImageReadError, match="cannot be aligned"):
        aligner.transform(image).read()


def test_the_template_is_the_most_typical_good_image() -> None:
    good = [np.roll(textured(), shift, axis=1) for shift in (-2, -1, 0, 1, 2)]
    bad = [textured(seed=1)] * 7
    y = ["good"] * 5 + ["bent"] * 7
    np.testing.assert_array_equal(TemplateAligner().fit(good + bad, y).template_, good[2])
    assert np.array_equal(TemplateAligner().fit(good + bad).template_, bad[0])  # all count
    swapped = TemplateAligner(good_label="bent").fit(good + bad, y)
    np.testing.assert_array_equal(swapped.template_, bad[0])
    few = TemplateAligner(max_images=1).fit(good + bad, y)
    np.testing.assert_array_equal(few.template_, good[0])


def test_labels_must_fit_the_images() -> None:
    with pytest.raises(ValueError, match="inconsistent numbers of samples: 2 images and 1 labels"):
        TemplateAligner().fit([textured(), textured()], ["good"])


@pytest.mark.parametrize("step", [TemplateAligner(), FlatFieldCorrector("learned")])
def test_the_step_that_does_not_know_the_good_label_is_named(step) -> None:
    images, y = [textured(), textured(seed=1)], ["A", "B"]
    pipeline = make_pipeline(step, DefectCAMClassifier(good_label="A"))
    with pytest.raises(ValueError, match=rf"^{type(step).__name__}: .*pass good_label"):
        pipeline.fit(images, y)


# --- Light and contrast -----------------------------------------------------------------------


def lit(image: np.ndarray) -> np.ndarray:
    """Return the image, darker towards the right."""
    light = np.linspace(1.0, 0.5, image.shape[1])[:, np.newaxis]
    return np.rint(image * light).astype(np.uint8)


@pytest.mark.parametrize("field", ["image", "learned"])
def test_uneven_light_is_taken_out(field) -> None:
    rng = np.random.default_rng(0)
    plates = [np.full((60, 90, 3), 150) + rng.integers(-5, 6, (60, 90, 1)) for _ in range(5)]
    plates = [lit(plate) for plate in plates]
    flat = FlatFieldCorrector(field, smoothness=0.05).fit(plates).transform(plates[0]).read()
    columns = flat.mean(axis=(0, 2))
    assert np.ptp(columns) < 0.1 * np.ptp(plates[0].mean(axis=(0, 2)))
    assert abs(flat.mean() - plates[0].mean()) < 0.05 * plates[0].mean()


def test_a_learned_field_keeps_what_is_large_and_ignores_defective_images() -> None:
    good = [lit(np.full((60, 90, 3), 150, np.uint8))] * 3
    stained = good[0].copy()
    stained[10:50, 20:60] //= 2
    fields = FlatFieldCorrector("learned").fit(good + [stained] * 9, [0, 0, 0] + [1] * 9)
    contrasts = []
    for corrector in (fields, FlatFieldCorrector()):
        flat = corrector.transform(stained).read().astype(float)
        contrasts.append(flat[30, 80:].mean() / flat[25:35, 35:45].mean())
    assert contrasts[0] == pytest.approx(2, rel=0.15)
    assert contrasts[1] < 0.8 * contrasts[0]


def test_even_light_stays_as_it_is_in_every_size() -> None:
    even = np.full((300, 400, 3), (200, 100, 50), dtype=np.uint8)
    corrector = FlatFieldCorrector("learned").fit([even])
    np.testing.assert_array_equal(corrector.transform(even).read(), even)
    np.testing.assert_array_equal(corrector.transform(even[:50, :30]).read(), even[:50, :30])
    black = np.zeros((20, 20, 3), np.uint8)
    np.testing.assert_array_equal(FlatFieldCorrector().transform(black).read(), black)


def test_equalizing_raises_contrast_and_keeps_grey_grey() -> None:
    dull = (textured() // 8 + 100).astype(np.uint8)
    view = ContrastEqualizer(clip_limit=4).transform(dull)
    result = view.read()
    assert result.std() > 1.5 * dull.std()
    assert np.ptp(result.astype(int), axis=2).max() <= 2
    assert view.placements == ()


# --- In front of a classifier -----------------------------------------------------------------


def test_boxes_and_pictures_are_those_of_the_original(pipeline, pieces) -> None:
    paths, _ = pieces
    views = pipeline[:-1].transform(paths)
    through = pipeline[-1].localize(views)
    assert any(len(found.boxes) for found in through)
    for path, view, found in zip(paths, views, through, strict=True):
        [placement] = view.placements
        left, top, right, bottom = placement.box
        crop = pipeline[-1].localize(view.read())
        assert found.image_size == (96, 128)
        assert (found.source, found.label) == (path, crop.label)
        assert found.probability == pytest.approx(crop.probability, abs=1e-5)
        np.testing.assert_array_equal(found.image, read_image(path))
        np.testing.assert_allclose(
            found.heatmap[top:bottom, left:right], crop.heatmap, rtol=1e-4, atol=1e-4
        )
        outside = np.ones(found.image_size, dtype=bool)
        outside[top:bottom, left:right] = False
        assert not found.heatmap[outside].any()
        # What is too large to tighten is a share of the image, so of another one here.
        loose = (one.with_threshold(tighten=False).mask() for one in (found, crop))
        assert (next(loose)[top:bottom, left:right] == next(loose)).mean() > 0.99
        assert found.overlay().shape == (96, 128, 3)
        assert found.to_dict()["source"] == path
        for box in found.boxes.tolist():
            assert left <= box[0] < box[2] <= right and top <= box[1] < box[3] <= bottom
        for box, cut in zip(found.boxes.tolist(), found.crops(margin=0), strict=True):
            np.testing.assert_array_equal(cut, read_image(path)[box[1] : box[3], box[0] : box[2]])


def test_localize_reaches_through_pipelines_and_searches(pipeline, pieces, fitted) -> None:
    paths, _ = pieces
    one, [same] = localize(pipeline, paths[1]), localize(pipeline, paths[1:2])
    np.testing.assert_array_equal(one.heatmap, same.heatmap)
    assert defectcam.localize is localize
    nested = make_pipeline(pipeline[:-1], make_pipeline("passthrough", pipeline[-1]))
    np.testing.assert_array_equal(localize(nested, paths[1]).heatmap, one.heatmap)
    alone = make_pipeline(fitted)
    np.testing.assert_array_equal(
        localize(alone, paths[1]).heatmap, localize(fitted, paths[1]).heatmap
    )
    with pytest.raises(TypeError, match="PartCropper, which cannot localize"):
        localize(make_pipeline(PartCropper()), paths[1])


def test_a_step_that_moves_nothing_changes_no_bit(fitted, pieces) -> None:
    """A crop to the whole image is the identity."""
    paths, _ = pieces
    whole = PartCropper(margin=1000)
    with_crop = fitted.localize(whole.transform(paths[:3]))
    for found, plain in zip(with_crop, fitted.localize(list(paths[:3])), strict=True):
        np.testing.assert_array_equal(found.heatmap, plain.heatmap)
        assert found.to_dict() == plain.to_dict()


def test_a_shifted_part_gets_the_same_boxes_shifted(pipeline) -> None:
    from conftest import draw_part

    part = draw_part(np.random.default_rng(3), scratched=True)
    first, second = (
        localize(pipeline, on_table(part, (96, 128), place)).with_threshold(decision_threshold=0)
        for place in ((20, 20), (33, 27))
    )
    assert len(first.boxes)
    np.testing.assert_array_equal(np.add(first.boxes, [13, 7, 13, 7]), second.boxes)
    np.testing.assert_array_equal(first.heatmap[:80, :110], second.heatmap[7:87, 13:123])


def test_predict_score_and_probabilities_are_those_of_the_views(pipeline, pieces) -> None:
    paths, labels = pieces
    views = pipeline[:-1].transform(paths)
    np.testing.assert_array_equal(pipeline.predict(paths), pipeline[-1].predict(views))
    np.testing.assert_array_equal(pipeline.predict_proba(paths), pipeline[-1].predict_proba(views))
    assert pipeline.score(paths, labels) == pipeline[-1].score(views, labels)
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.predict_proba(paths), pipeline.predict_proba(paths))


def test_evaluate_takes_masks_of_the_originals(pipeline, pieces) -> None:
    paths, labels = pieces
    masks = [None if label == "good" else np.eye(96, 128, dtype=bool) for label in labels]
    report = pipeline[-1].evaluate(pipeline[:-1].transform(paths), labels, masks)
    assert report.pixels["n_masks"] == 7
    named = [wrong["image"] for wrong in report.missed_defects + report.false_alarms]
    assert set(named) <= set(paths)


def test_cross_validation_with_memory_is_the_same(tiny_classifier, pieces, tmp_path) -> None:
    scores = []
    for memory in (None, str(tmp_path)):
        clf = tiny_classifier(max_epochs=1, cv=None, memory=memory)
        pipeline = Pipeline([("crop", PartCropper()), ("clf", clf)], memory=memory)
        scores.append(cross_val_score(pipeline, *pieces, cv=2, error_score="raise"))
    np.testing.assert_array_equal(scores[0], scores[1])
    assert list(tmp_path.glob("**/*.features"))


def test_parameters_can_be_searched(tiny_classifier, pieces) -> None:
    pipeline = Pipeline([("crop", PartCropper()), ("clf", tiny_classifier(max_epochs=1, cv=None))])
    search = GridSearchCV(pipeline, {"crop__margin": [0.0, 0.4]}, cv=2, error_score="raise")
    search.fit(*pieces)
    assert search.best_estimator_[0].margin == search.best_params_["crop__margin"]
    assert localize(search, pieces[0][0]).image_size == (96, 128)


def test_all_steps_together(tiny_classifier, pieces) -> None:
    pipeline = make_pipeline(
        FlatFieldCorrector("learned", max_gain=1.5),
        PartCropper(threshold=40),
        TemplateAligner(min_correlation=-1),
        ContrastEqualizer(),
        tiny_classifier(max_epochs=1, cv=None),
    ).fit(*pieces)
    views = pipeline[:-1].transform(pieces[0])
    assert [len(view.placements) for view in views].count(2) > 0
    assert {view.read().shape for view in views if len(view.placements) == 2} == {
        pipeline[2].template_.shape
    }
    for found in localize(pipeline, pieces[0]):
        assert found.heatmap.shape == (96, 128)
        assert np.isfinite(found.heatmap).all()


def test_pipelines_of_image_steps_give_data_frames_and_names(parts, tiny_classifier):
    paths = sorted(str(path) for path in parts.glob("*/*.png"))
    features = EvidenceTransformer(tiny_classifier(), columns="pooled")
    pipeline = make_pipeline(PartCropper(), ContrastEqualizer(), features)
    table = pipeline.set_output(transform="pandas").fit_transform(paths)
    assert table.columns.tolist() == pipeline.get_feature_names_out().tolist()
    assert table.columns.tolist() == pipeline[-1].get_feature_names_out().tolist()
    views = pipeline[0].transform(paths)
    assert all(isinstance(view, ImageView) for view in views)
    assert PartCropper().get_feature_names_out(["path"]).tolist() == ["path"]
