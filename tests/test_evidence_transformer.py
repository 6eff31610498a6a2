"""Images as a matrix, wherever scikit-learn takes a transformer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import draw_part
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from defectcam import EvidenceTransformer
from defectcam.calibration import calm_novelty


@pytest.fixture(scope="module")
def arrays() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.stack([draw_part(rng, scratched=number >= 6) for number in range(12)])


Y = np.array(["good"] * 6 + ["scratch"] * 6)


@pytest.fixture(scope="module")
def pooled(tiny_classifier, arrays) -> EvidenceTransformer:
    return EvidenceTransformer(tiny_classifier()).fit(arrays)


@pytest.fixture(scope="module")
def supervised(tiny_classifier, arrays) -> EvidenceTransformer:
    return EvidenceTransformer(tiny_classifier()).fit(arrays, Y)


def files(fitted_parts: Any) -> list[str]:
    return sorted(str(path) for path in fitted_parts.glob("*/*.png"))


# --- The matrix -----------------------------------------------------------------------------------


def test_without_labels_it_is_what_the_pre_trained_network_sees(pooled, arrays):
    matrix = pooled.transform(arrays)
    names = pooled.get_feature_names_out().tolist()
    assert matrix.dtype == np.float32 and matrix.shape == (12, len(names))
    assert np.isfinite(matrix).all() and (matrix.std(0) > 0).mean() > 0.5
    classifier = pooled.classifier_
    network = classifier.network_
    pixels, _ = next(classifier._batches(list(arrays[:1]), classifier._preprocess))
    features = network.trunk_features(pixels)
    levels = network.level_features(features.deep)
    patches = features.patches[0].flatten(1)
    assert matrix[0, names.index("patch_mean_2")] == pytest.approx(patches[2].mean().item(), 1e-4)
    assert matrix[0, names.index("patch_max_2")] == pytest.approx(patches[2].max().item(), 1e-4)
    assert matrix[0, names.index("level1_max_0")] == pytest.approx(
        levels[1][0, 0].max().item(), 1e-4
    )


def test_with_labels_it_is_what_the_classifier_knows_too(supervised, arrays):
    table = pd.DataFrame(supervised.transform(arrays), columns=supervised.get_feature_names_out())
    classifier = supervised.classifier_
    evidence = classifier.evidence(arrays)
    scratch = evidence[:, 1] - evidence[:, 0]
    np.testing.assert_allclose(table["evidence_mean_scratch"], scratch.mean((1, 2)), atol=1e-4)
    np.testing.assert_allclose(table["evidence_max_scratch"], scratch.max((1, 2)), atol=1e-4)
    novelty = next(classifier._forward(list(arrays[:4]))).novelty
    np.testing.assert_allclose(table["novelty_calm"][:4], calm_novelty(novelty), atol=1e-4)
    assert table["score"][6:].min() > table["score"][:6].max()
    assert table["novelty_peak"][6:].mean() > table["novelty_peak"][:6].mean()
    assert any(name.startswith("level0_mean") for name in table)


@pytest.mark.parametrize(
    ("columns", "y", "starts"),
    [
        ("pooled", Y, {"patch", "level0", "level1"}),
        ("evidence", Y, {"score", "evidence", "novelty"}),
        ("all", Y, {"patch", "level0", "level1", "score", "evidence", "novelty"}),
        ("auto", None, {"patch", "level0", "level1"}),
    ],
)
def test_columns_can_be_chosen(tiny_classifier, arrays, columns, y, starts):
    transformer = EvidenceTransformer(tiny_classifier(max_epochs=1), columns=columns)
    matrix = transformer.fit_transform(arrays, y)
    names = transformer.get_feature_names_out()
    assert {name.split("_")[0] for name in names} == starts
    assert matrix.shape[1] == len(names) == len(set(names)) == transformer.n_features_out_


def test_several_types_have_evidence_each(tiny_classifier, arrays):
    y = np.where(np.arange(12) > 8, "dent", Y)
    transformer = EvidenceTransformer(
        tiny_classifier(max_epochs=1, target="type"), columns="evidence"
    )
    names = set(transformer.fit(arrays, y).get_feature_names_out())
    assert {"evidence_max_dent", "evidence_max_scratch"} < names


def test_evidence_without_labels_is_refused(tiny_classifier, arrays):
    with pytest.raises(ValueError, match="columns='all' needs labels"):
        EvidenceTransformer(tiny_classifier(), columns="all").fit(arrays)


def test_a_frozen_classifier_is_used_as_it_is(fitted, fitted_parts):
    transformer = EvidenceTransformer(FrozenEstimator(fitted), columns="evidence")
    matrix = clone(transformer).fit(files(fitted_parts)).transform(fitted_parts)
    expected = fitted.evidence(fitted_parts)
    np.testing.assert_allclose(
        matrix[:, 1], (expected[:, 1] - expected[:, 0]).mean((1, 2)), atol=1e-4
    )


def test_it_behaves_as_a_transformer(pooled, supervised, arrays, tiny_classifier):
    with pytest.raises(NotFittedError):
        EvidenceTransformer().transform(arrays)
    with pytest.raises(ValueError, match="The 'columns' parameter of EvidenceTransformer"):
        EvidenceTransformer(columns="some").fit(arrays)
    for transformer in (pooled, supervised):
        copied = pickle.loads(pickle.dumps(transformer))
        np.testing.assert_array_equal(copied.transform(arrays), transformer.transform(arrays))
    again = clone(pooled).fit(arrays[:3])
    np.testing.assert_array_equal(again.transform(arrays), pooled.transform(arrays))
    assert not hasattr(pooled.classifier, "network_")


def test_global_generators_are_not_used(pooled, arrays, generators_untouched):
    clone(pooled).fit(arrays[:2]).transform(arrays[:2])


def test_set_output_gives_a_data_frame(pooled, arrays):
    table = clone(pooled).set_output(transform="pandas").fit_transform(arrays)
    assert table.columns.tolist() == pooled.get_feature_names_out().tolist()


# --- In scikit-learn's hands ----------------------------------------------------------------------


def test_in_a_pipeline_with_an_svm(tiny_classifier, arrays):
    features = EvidenceTransformer(tiny_classifier(), columns="pooled")
    model = make_pipeline(features, StandardScaler(), SVC())
    assert model.fit(arrays, Y).score(arrays, Y) == 1
    assert cross_val_score(model, arrays, Y, cv=2).shape == (2,)


def test_in_a_search_over_columns_and_the_network(tiny_classifier, arrays):
    model = Pipeline([("see", EvidenceTransformer(tiny_classifier(max_epochs=1))), ("fit", SVC())])
    grid = {"see__columns": ["pooled", "evidence"], "see__classifier__image_size": [32]}
    search = GridSearchCV(model, grid, cv=2).fit(arrays, Y)
    assert search.best_estimator_["see"].classifier_.image_size == 32


def test_an_isolation_forest_finds_the_odd_one_out(tiny_classifier, arrays):
    other = np.random.default_rng(0).integers(0, 255, size=(1, 48, 48, 3), dtype=np.uint8)
    model = make_pipeline(EvidenceTransformer(tiny_classifier()), IsolationForest(random_state=0))
    model.fit(arrays)
    assert model.score_samples(other)[0] < model.score_samples(arrays).min()


def test_t_sne_draws_it(pooled, arrays):
    flat = TSNE(perplexity=4, random_state=0).fit_transform(pooled.transform(arrays))
    assert flat.shape == (12, 2)


def test_in_a_feature_union(tiny_classifier, arrays):
    union = FeatureUnion(
        [
            ("evidence", EvidenceTransformer(tiny_classifier(max_epochs=1), columns="evidence")),
            ("brightness", FunctionTransformer(lambda X: X.mean((1, 2, 3))[:, None])),
        ]
    )
    matrix = union.fit_transform(arrays, Y)
    assert matrix.shape == (12, 7)
    np.testing.assert_allclose(matrix[:, -1], arrays.mean((1, 2, 3)))


@pytest.mark.parametrize("column", ["path", ["path"]])
def test_a_column_of_paths_beside_measurements(tiny_classifier, fitted_parts, column):
    paths = files(fitted_parts)
    table = pd.DataFrame(
        {"path": paths, "weight": np.linspace(1, 2, len(paths)), "width": 3.0},
        index=range(100, 100 + len(paths)),
    )
    y = np.array([path.split("/")[-2] for path in paths])
    features = ColumnTransformer(
        [
            ("image", EvidenceTransformer(tiny_classifier(), columns="pooled"), column),
            ("rest", StandardScaler(), ["weight", "width"]),
        ]
    )
    model = make_pipeline(features, StandardScaler(), LogisticRegression()).fit(table, y)
    assert model.score(table, y) == 1
    names = features.fit(table, y).get_feature_names_out()
    assert names[0] == "image__patch_mean_0" and names[-1] == "rest__width"
    framed = clone(features).set_output(transform="pandas").fit_transform(table, y)
    assert framed.index.equals(table.index)


def test_a_table_of_more_than_paths_is_refused(tiny_classifier, fitted_parts):
    table = pd.DataFrame({"path": files(fitted_parts), "kind": "a"})
    with pytest.raises(ValueError, match=r"\(14, 2\): expected one column"):
        EvidenceTransformer(tiny_classifier()).fit(table)


# --- Labels that the images bring, and what is refused --------------------------------------------


def test_a_folder_brings_its_labels(tiny_classifier, fitted_parts):
    clf = tiny_classifier(max_epochs=1)
    by_folder = EvidenceTransformer(clf).fit(fitted_parts)
    paths = files(fitted_parts)
    by_hand = EvidenceTransformer(clf).fit(paths, ["good"] * 8 + ["scratch"] * 6)
    np.testing.assert_array_equal(by_folder.transform(paths), by_hand.transform(paths))
    plain = EvidenceTransformer(clf).fit(fitted_parts / "good")
    assert plain.classifier_ is not None and "score" not in plain.get_feature_names_out()


def test_a_data_set_brings_its_labels(tiny_classifier, fitted_parts):
    torchvision = pytest.importorskip("torchvision")
    images = torchvision.datasets.ImageFolder(fitted_parts)
    transformer = EvidenceTransformer(tiny_classifier(max_epochs=1), columns="evidence")
    assert "evidence_max_scratch" in transformer.fit(images).get_feature_names_out()


def test_a_generator_of_images_is_gone_through_once(tiny_classifier, arrays):
    transformer = EvidenceTransformer(tiny_classifier(max_epochs=1))
    transformer.fit((image for image in arrays), Y)
    assert "score" in transformer.get_feature_names_out()


@pytest.mark.parametrize("frozen", [False, True])
def test_tiles_are_refused(tiny_classifier, fitted, arrays, frozen):
    classifier = tiny_classifier(tile=32)
    if frozen:
        classifier = FrozenEstimator(copy.copy(fitted).set_params(tile=32))
    with pytest.raises(ValueError, match="EvidenceTransformer does not work on tiles"):
        EvidenceTransformer(classifier).fit(arrays, Y)


@pytest.mark.parametrize(
    ("wrong", "match"), [({"image_size": (64,)}, "image_size"), ({"device": "foo"}, "device")]
)
def test_the_classifiers_parameters_are_checked(tiny_classifier, arrays, wrong, match):
    with pytest.raises(ValueError, match=match):
        EvidenceTransformer(tiny_classifier(**wrong), columns="pooled").fit(arrays)
