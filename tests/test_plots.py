"""Displays: their data against scikit-learn's functions, what is drawn, and where."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.testing.compare import compare_images
from PIL import Image
from sklearn.metrics import confusion_matrix, recall_score
from sklearn.pipeline import make_pipeline

from defectcam import (
    ContrastEqualizer,
    DefectDensityDisplay,
    HeatmapGridDisplay,
    HistoryDisplay,
    Localization,
    LocalizationDisplay,
    PROCurveDisplay,
    ThresholdDisplay,
    TypeConfusionDisplay,
    display,
    localize,
)
from defectcam.geometry import Geometry
from defectcam.images import ImageReadError
from defectcam.metrics import overkill_rate, pro_auc_score, pro_curve, pro_curve_area

matplotlib.use("agg")
STORED = Path(__file__).parent / "plots"
#: Root mean square difference of pixels, of 255: above what other releases of matplotlib draw
#: otherwise, below a box or a curve that is missing.
TOLERANCE = 4.0
HISTORY = {
    "fold": [0, 0, 0, 1, 1, 1],
    "epoch": [1, 2, 3, 1, 2, 3],
    "loss": [0.9, 0.5, 0.4, 0.8, 0.6, 0.45],
    "train_accuracy": [0.5, 0.8, 0.9, 0.6, 0.7, 0.9],
    "seconds": [1.0, 2.0, 3.0, 1.0, 2.0, 3.0],
}
TYPES = ["good"] * 5 + ["dent"] * 3 + ["scratch"] * 2
CALLED = ["good"] * 4 + ["dent"] + ["dent"] * 2 + ["good"] + ["dent", "scratch"]
PROBABILITY = [0.05, 0.1, 0.2, 0.3, 0.7, 0.8, 0.9, 0.25, 0.6, 0.95]


@pytest.fixture(autouse=True)
def no_figure_is_left() -> Iterator[None]:
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        yield
    pyplot.close("all")


def result(heat: float, *, column: int = 5, probability: float = 0.9) -> Localization:
    """Return a grey image of 40 x 60 pixels, hot at one place of a grid of 8 x 12."""
    grid = np.zeros((8, 12), np.float32)
    grid[3:5, column : column + 2] = heat
    shades = np.linspace(120, 180, 60).round().astype(np.uint8)
    image = np.broadcast_to(shades[None, :, None], (40, 60, 3))
    is_defect = probability >= 0.5
    return Localization(
        label="dent" if is_defect else "good",
        probability=probability,
        is_defect=is_defect,
        grid=grid,
        geometry=Geometry.stretch((40, 60), (64, 96)),
        threshold=1.0,
        decision_threshold=0.5,
        min_area=1,
        max_boxes=None,
        merge_distance=None,
        source=image,
        good_label="good",
        defect_label="dent",
    )


def results() -> list[Localization]:
    hot = [result(2.0), result(1.5, column=8), result(1.2, column=2, probability=0.6)]
    return [result(0.1, probability=0.1), *hot, result(0.9, probability=0.3)]


def mask_of(column: int = 5) -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[15:25, 5 * column : 5 * column + 10] = True
    return mask


def draw_localization(ax: Any = None) -> Any:
    return LocalizationDisplay.from_predictions(result(2.0), mask=mask_of(), ax=ax)


def draw_grid(ax: Any = None) -> Any:
    truth = ["good", "dent", "dent", "good", "dent"]
    return HeatmapGridDisplay.from_predictions(results(), truth, ax=ax, n_cols=3)


def draw_thresholds(ax: Any = None) -> Any:
    return ThresholdDisplay.from_predictions(
        TYPES, PROBABILITY, escape_cost=10, overkill_cost=2, threshold=0.5, ax=ax
    )


def draw_types(ax: Any = None) -> Any:
    return TypeConfusionDisplay.from_predictions(TYPES, CALLED, ax=ax)


def draw_pro_curve(ax: Any = None) -> Any:
    found = results()[:3]
    masks = [None, mask_of(4), mask_of(7)]
    return PROCurveDisplay.from_predictions(masks, [one.heatmap for one in found], ax=ax)


def draw_density(ax: Any = None) -> Any:
    return DefectDensityDisplay.from_predictions(results(), ax=ax)


def draw_history(ax: Any = None) -> Any:
    return HistoryDisplay.from_history(HISTORY, ax=ax)


ALL = [
    draw_localization,
    draw_grid,
    draw_thresholds,
    draw_types,
    draw_pro_curve,
    draw_density,
    draw_history,
]
every_display = pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__[5:])


@pytest.mark.skipif(
    matplotlib.__version_info__ < (3, 10), reason="earlier releases set text elsewhere"
)
@every_display
def test_figure_is_as_stored(draw: Callable[..., Any], tmp_path: Path) -> None:
    drawn = draw()
    actual = tmp_path / f"{draw.__name__[5:]}.png"
    drawn.figure_.savefig(actual, dpi=50)
    assert compare_images(STORED / actual.name, actual, TOLERANCE) is None


@every_display
def test_given_axes_are_used_and_nothing_else_is_opened(draw: Callable[..., Any]) -> None:
    figure, (ax, other) = pyplot.subplots(1, 2)
    drawn = draw(ax)
    assert drawn.ax_ is ax
    assert drawn.figure_ is figure
    assert pyplot.get_fignums() == [figure.number]
    assert not other.has_data()
    figure.savefig(io.BytesIO())


@every_display
def test_plot_draws_again_and_returns_the_display(draw: Callable[..., Any]) -> None:
    drawn = draw()
    first = drawn.ax_
    assert drawn.plot() is drawn
    assert drawn.ax_ is not first


@every_display
def test_without_matplotlib_the_error_says_what_to_install(
    draw: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (draw, drawn.plot):
        with pytest.raises(ImportError, match=r'pip install "defectcam\[plot\]"'):
            call()


def test_a_picture_is_the_overlay() -> None:
    """What matplotlib composes is, up to rounding, what `display.overlay` does."""
    found = result(2.0)
    figure = pyplot.figure(figsize=(6, 4), dpi=10)
    ax = figure.add_axes((0, 0, 1, 1))
    drawn = LocalizationDisplay(
        image=found.image, heatmap=found.heatmap, boxes=np.empty((0, 4)), box_texts=[]
    )
    drawn.plot(ax, colorbar=False)
    ax.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=10, format="png")
    picture = np.asarray(Image.open(buffer).convert("RGB"), int)
    expected = display.overlay(found.image, found.heatmap).astype(int)
    assert picture.shape == expected.shape
    assert np.abs(picture - expected).max() <= 3


@pytest.mark.parametrize("heat", [0.0, 0.3, 5.0])
def test_the_scale_of_heat_does_not_depend_on_the_image(heat: float) -> None:
    drawn = LocalizationDisplay.from_predictions(result(heat))
    bar = drawn.colorbar_
    assert (bar.vmin, bar.vmax) == (0.0, 2.0)
    assert [text.get_text() for text in bar.ax.get_yticklabels()] == [
        "0 typical",
        "1 limit",
        "2 and more",
    ]


def test_boxes_are_drawn_around_their_pixels() -> None:
    drawn = draw_localization()
    (box,) = np.asarray(drawn.boxes).tolist()
    (frame,) = drawn.ax_.patches
    left, top = frame.get_xy()
    assert [left, top] == [box[0] - 0.5, box[1] - 0.5]
    assert [frame.get_width(), frame.get_height()] == [box[2] - box[0], box[3] - box[1]]


def test_several_images_are_referred_to_the_grid(fitted, fitted_parts: Path) -> None:
    with pytest.raises(ValueError, match="HeatmapGridDisplay"):
        LocalizationDisplay.from_estimator(fitted, fitted_parts)


def test_the_grid_starts_with_what_was_missed() -> None:
    drawn = draw_grid()
    titles = [ax.get_title() for ax in drawn.axes_]
    assert titles == [
        "missed: dent (0.30)",
        "false alarm: good (0.60)",
        "found: dent (0.90)",
        "found: dent (0.90)",
        "passed (0.10)",
    ]
    assert drawn.order.tolist() == [4, 3, 1, 2, 0]


def test_the_grid_draws_so_many() -> None:
    drawn = HeatmapGridDisplay.from_predictions(results(), n_images=2)
    assert len(drawn.axes_) == 2
    assert drawn.order.tolist() == [1, 2]  # the most probable ones
    with pytest.raises(ValueError, match="y_true has 1 entries for 5 images"):
        HeatmapGridDisplay.from_predictions(results(), ["good"])
    with pytest.raises(ValueError, match="empty"):
        HeatmapGridDisplay.from_predictions([])


@pytest.mark.parametrize("kind", [HeatmapGridDisplay, DefectDensityDisplay])
def test_results_may_come_one_by_one_or_be_one(kind: Any) -> None:
    def shown(found: Any) -> Any:
        drawn = kind.from_predictions(found)
        return drawn.order if kind is HeatmapGridDisplay else drawn.density

    np.testing.assert_array_equal(shown(iter(results())), shown(results()))
    np.testing.assert_array_equal(shown(result(2.0)), shown([result(2.0)]))
    with pytest.raises(ValueError, match="empty"):
        kind.from_predictions(iter([]))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (HeatmapGridDisplay, {"n_images": 2.5}),
        (HeatmapGridDisplay, {"n_images": 0}),
        (DefectDensityDisplay, {"vmax": 0}),
    ],
)
def test_options_are_checked_before_images_are_localised(kind: Any, options: Any) -> None:
    def never() -> Iterator[Localization]:
        pytest.fail("an image was asked for")
        yield

    [name] = options
    with pytest.raises(ValueError, match=name):
        kind.from_predictions(never(), **options)
    with pytest.raises(ValueError, match=name):
        kind.from_estimator(None, None, **options)  # whatever they are, they are not looked at


def test_rates_are_those_of_every_threshold() -> None:
    drawn = draw_thresholds()
    truth, probability = np.array(TYPES) != "good", np.array(PROBABILITY)
    assert np.isinf(drawn.thresholds[-1])
    assert drawn.thresholds[:-1].tolist() == sorted(probability)
    for i, threshold in enumerate(drawn.thresholds):
        called = probability >= threshold
        recall, overkill = recall_score(truth, called), overkill_rate(truth, called)
        assert drawn.recall[i] == pytest.approx(recall)
        assert drawn.overkill[i] == pytest.approx(overkill)
        errors = 10 * (truth & ~called).sum() + 2 * (~truth & called).sum()
        assert drawn.cost[i] == pytest.approx(errors / len(truth))


def test_the_cheapest_threshold_costs_what_is_said() -> None:
    drawn = draw_thresholds()
    truth, probability = np.array(TYPES) != "good", np.array(PROBABILITY)
    called = probability >= drawn.best_threshold
    errors = 10 * (truth & ~called).sum() + 2 * (~truth & called).sum()
    assert drawn.best_cost == pytest.approx(errors / len(truth)) == drawn.cost.min()
    assert drawn.best_threshold == pytest.approx(0.225)  # between a good 0.2 and a dent's 0.25


def test_it_is_cheapest_to_pass_everything_where_escapes_cost_nothing() -> None:
    drawn = ThresholdDisplay.from_predictions([0, 1], [0.9, 0.2], escape_cost=0)
    assert drawn.best_threshold == pytest.approx(0.95)
    assert drawn.best_cost == 0


@pytest.mark.parametrize("last", [1.0, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("first", [0.2, 1.0])
@pytest.mark.parametrize("y_true", [[0, 1], [1, 0], [0, 0, 1]])
def test_the_cheapest_threshold_where_an_image_is_certain(
    y_true: list[int], first: float, last: float
) -> None:
    truth, probability = np.array(y_true) == 1, np.array([first] * (len(y_true) - 1) + [last])
    drawn = ThresholdDisplay.from_predictions(y_true, probability)
    called = probability >= drawn.best_threshold
    assert 0 <= drawn.best_threshold <= 1
    assert drawn.best_cost == pytest.approx((truth != called).mean())
    others = [(truth != (probability >= at)).mean() for at in (*np.linspace(0, 1, 11), last)]
    assert drawn.best_cost == pytest.approx(min(others))


@pytest.mark.parametrize(
    ("y_true", "options", "message"),
    [
        ([0, 0], {}, "good and defective"),
        ([0, 1], {"escape_cost": -1}, "escape_cost must be"),
        ([0, 1, 1], {}, "inconsistent"),
        (["A", "B"], {}, "good_label"),
    ],
)
def test_unfit_labels_and_costs_are_refused(y_true: list[Any], options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThresholdDisplay.from_predictions(y_true, [0.1, 0.9], **options)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, 70.0, float("nan")])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=rf"y_prob\[1\]={wrong:g}"):
        ThresholdDisplay.from_predictions(["good", "dent"], [0.5, wrong])
    rounded = np.array([0.2, 1 + 2e-7])  # a sum over types
    shown = ThresholdDisplay.from_predictions(["good", "dent"], rounded)
    assert shown.thresholds.tolist() == [0.2, 1.0, np.inf]


def test_counts_of_types_are_those_of_scikit_learn() -> None:
    drawn = draw_types()
    names = ["good", "dent", "scratch"]
    assert drawn.types == drawn.labels == names
    expected = confusion_matrix(TYPES, CALLED, labels=names)
    assert np.array_equal(drawn.confusion_matrix, expected)
    assert [[text.get_text() for text in row] for row in drawn.text_] == expected.astype(
        str
    ).tolist()


def test_types_that_training_did_not_know_have_a_row_and_no_column() -> None:
    drawn = TypeConfusionDisplay.from_predictions(
        ["good", "hole", "hole"], ["good", "dent", "good"]
    )
    assert (drawn.types, drawn.labels) == (["good", "hole"], ["good", "dent"])
    assert drawn.confusion_matrix.tolist() == [[1, 0], [1, 1]]


def test_the_curve_and_its_area_are_those_of_metrics() -> None:
    drawn = draw_pro_curve()
    heatmaps = [one.heatmap for one in results()[:3]]
    masks = [None, mask_of(4), mask_of(7)]
    fpr, pro, _ = pro_curve(masks, heatmaps)
    assert np.array_equal(drawn.fpr, fpr)
    assert np.array_equal(drawn.pro, pro)
    assert drawn.pro_auc == pro_auc_score(masks, heatmaps) == pro_curve_area(fpr, pro)
    assert np.array_equal(drawn.line_.get_ydata(), pro)


def test_density_is_the_share_of_marked_images() -> None:
    drawn = draw_density()
    masks = [one.mask() for one in results()]
    assert np.allclose(drawn.density, np.mean(masks, axis=0))
    assert drawn.n_images == 5
    assert np.array_equal(drawn.mean_image, results()[0].image)


def test_density_of_good_parts_is_calm() -> None:
    drawn = DefectDensityDisplay.from_predictions([result(0.5, probability=0.1)] * 4)
    assert not drawn.density.any()
    assert drawn.colorbar_.vmax == 0.25  # one of four images
    assert (drawn.ax_.images[-1].get_array()[..., 3] == 0).all()


def test_images_of_other_sizes_count_where_they_are_marked() -> None:
    large = result(2.0)
    small = Localization(
        **{
            **{name: getattr(large, name) for name in large.__dataclass_fields__},
            "geometry": Geometry.stretch((20, 30), (64, 96)),
            "source": None,
        }
    )
    drawn = DefectDensityDisplay.from_predictions([large, small])
    assert drawn.density.shape == (40, 60)
    assert drawn.density.max() == pytest.approx(1.0)
    assert drawn.mean_image is None
    drawn.figure_.savefig(io.BytesIO())


def test_history_has_a_line_per_fold() -> None:
    drawn = draw_history()
    assert list(drawn.lines_) == [0, 1]
    assert drawn.lines_[1].get_ydata().tolist() == [0.8, 0.6, 0.45]
    accuracy = drawn.plot(column="train_accuracy").lines_[0]
    assert accuracy.get_ydata().tolist() == [0.5, 0.8, 0.9]
    with pytest.raises(ValueError, match="column must be one of"):
        drawn.plot(column="val_loss")


def test_history_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="good images alone"):
        HistoryDisplay.from_history({name: [] for name in HISTORY})


@pytest.mark.parametrize("missing", ["fold", "epoch"])
def test_history_without_its_columns_is_refused(missing: str) -> None:
    table = {name: column for name, column in HISTORY.items() if name != missing}
    with pytest.raises(ValueError, match=rf"'fold' and 'epoch', of which \['{missing}'\]"):
        HistoryDisplay.from_history(table)


def test_history_of_unequal_columns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one length, got \{'fold': 3, 'epoch': 3, 'loss': 2\}"):
        HistoryDisplay.from_history({"fold": [0] * 3, "epoch": [0, 1, 2], "loss": [1.0, 0.5]})


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        ([None, None], "no pixel of the masks is defective"),
        ([np.zeros((4, 5), bool), None], "no pixel of the masks is defective"),
        ([np.ones((4, 5), bool)] * 2, "every pixel of the masks is defective"),
    ],
)
def test_overlap_without_good_or_defective_pixels_is_refused(masks, told) -> None:
    with pytest.raises(ValueError, match=told):
        PROCurveDisplay.from_predictions(masks, [np.arange(20.0).reshape(4, 5)] * 2)


@pytest.fixture(params=["classifier", "pipeline"])
def estimator(request: pytest.FixtureRequest, fitted: Any) -> Any:
    return fitted if request.param == "classifier" else make_pipeline(ContrastEqualizer(), fitted)


def test_displays_of_an_estimator(estimator: Any, fitted: Any, fitted_parts: Path) -> None:
    """They hold what the estimator answers, of a folder with its own labels."""
    paths = sorted(map(str, fitted_parts.glob("*/*.png")))
    truth = [Path(path).parent.name for path in paths]

    assert ThresholdDisplay.from_estimator(estimator, fitted_parts).threshold == fitted.threshold_
    drawn = ThresholdDisplay.from_estimator(estimator, paths, truth)
    probability = estimator.predict_proba(paths)[:, 1]
    expected = ThresholdDisplay.from_predictions(truth, probability)
    assert np.array_equal(drawn.thresholds, expected.thresholds)
    assert np.array_equal(drawn.cost, expected.cost)

    counts = TypeConfusionDisplay.from_estimator(estimator, fitted_parts).confusion_matrix
    assert np.array_equal(
        counts, confusion_matrix(truth, estimator.predict(paths), labels=["good", "scratch"])
    )
    assert DefectDensityDisplay.from_estimator(estimator, fitted_parts).n_images == 14
    grid = HeatmapGridDisplay.from_estimator(estimator, fitted_parts, n_images=3)
    assert len(grid.axes_) == 3
    assert HistoryDisplay.from_estimator(estimator).history == fitted.history_
    one = LocalizationDisplay.from_estimator(estimator, paths[0])
    assert one.image.shape == (48, 48, 3)

    masks = [None if kind == "good" else np.eye(48, dtype=bool) for kind in truth]
    pro = PROCurveDisplay.from_estimator(estimator, paths, truth, masks, n_bins=None)
    heatmaps = [found.heatmap for found in localize(estimator, paths)]
    assert pro.pro_auc == pytest.approx(pro_auc_score(masks, heatmaps))
    assert pro.name == "DefectCAMClassifier"
    with pytest.raises(ValueError, match="no defective image has a mask"):
        PROCurveDisplay.from_estimator(estimator, paths, truth)


def store_figures() -> None:
    """Write the figures that the test compares with: look at them before you commit them."""
    for draw in ALL:
        with matplotlib.rc_context(matplotlib.rcParamsDefault):
            draw().figure_.savefig(STORED / f"{draw.__name__[5:]}.png", dpi=50)


if __name__ == "__main__":
    store_figures()


def test_a_mask_of_another_size_is_named_by_its_place():
    found = results()
    masks = [None, *[np.zeros((3, 3), bool)] * (len(found) - 1)]
    shown_first = HeatmapGridDisplay.from_predictions(found, n_images=1).order[0]
    masks[shown_first] = np.zeros((3, 3), bool)
    with pytest.raises(ImageReadError, match=rf"masks\[{shown_first}\] has size"):
        HeatmapGridDisplay.from_predictions(found, masks=masks, n_images=1)
