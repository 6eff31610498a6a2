"""A fit of a network to cached images, as the estimator and its updates ask for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils import check_random_state
from trainings import FOLDS, N_IMAGES, OPTIONS, filled, network

from defectcam.fitting import FitOptions, NetworkFit, TrainingSet, draw_seed
from defectcam.incremental import Course
from defectcam.labels import find_classes
from defectcam.network import DefectCAMNetwork
from defectcam.training import HISTORY_COLUMNS, TailTraining

LABELS = np.array(["good", "bad"] * (N_IMAGES // 2))


def fit_of(
    labels: Any = LABELS, net: DefectCAMNetwork | None = None, **settings: Any
) -> NetworkFit:
    net, classes = net or network(), find_classes(LABELS, "anomaly", "good")
    images = TrainingSet(filled(net), classes, classes.encode(labels), np.ones(len(labels)))
    options = FitOptions(
        training=OPTIONS,
        class_weight="balanced",
        codebook_size=4,
        heatmap="cam",
        self_training=True,
        memory=None,
        verbose=0,
    )
    values = {"on_epoch": lambda record: None, **settings}
    return NetworkFit(
        network=net, images=images, options=options, input_size=(64, 64), seed=0, **values
    )


def test_a_seed_is_drawn_as_scikit_learn_draws() -> None:
    assert draw_seed(3) == draw_seed(3) != draw_seed(4)
    generator = np.random.RandomState(3)
    assert [draw_seed(generator), draw_seed(generator)] == list(
        check_random_state(3).randint(np.iinfo(np.int32).max, size=2)
    )


@pytest.mark.parametrize("folds", [[], FOLDS])
def test_each_image_has_a_score_and_each_epoch_a_record(folds: Any) -> None:
    records: list[dict[str, Any]] = []
    trained = fit_of(on_epoch=records.append).run(Course(folds))
    assert trained.result.logits.shape == (N_IMAGES, 2)
    assert [record["fold"] for record in records] == trained.result.history["fold"]
    assert len(records) == OPTIONS.max_epochs * (1 + len(folds))
    assert trained.heat_model.kind == "cam" and not trained.codebooks


@pytest.mark.parametrize("course", [Course(FOLDS), Course([], is_update=True, judges_first=True)])
def test_images_are_held_out_from_the_codebook_that_their_scores_rest_on(course: Any) -> None:
    net = network(novelty_strides=(4,), pooling="novelty_top_k")
    if course.judges_first:
        fit_of(net=net).run(Course([]))
    fit = fit_of(net=net, history={name: [] for name in HISTORY_COLUMNS})
    pooled: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        scores = TailTraining.scores
        patch.setattr(
            TailTraining,
            "scores",
            lambda self, rows: (pooled.append(self.cache.novelty), scores(self, rows))[1],
        )
        trained = fit.run(course)
    assert trained.novelty is not None
    if course.judges_first:  # once before, to uncentre the scores
        pooled, held_out = pooled[1:2], [np.arange(N_IMAGES)]
    else:
        pooled, held_out = pooled[: len(FOLDS)], [rows for _, rows in FOLDS]
    for rows, novelty in zip(held_out, pooled, strict=True):
        torch.testing.assert_close(novelty[rows], trained.novelty[rows])


def test_of_good_images_alone_nothing_is_trained() -> None:
    fit = fit_of(["good"] * N_IMAGES)
    assert fit.images.is_good.all()
    before = [weights.clone() for weights in fit.network.tail.parameters()]
    trained = fit.run(Course(FOLDS))
    assert trained.result.history["epoch"] == []
    assert all(map(torch.equal, fit.network.tail.parameters(), before))


def test_an_update_goes_on_with_the_history_and_leaves_it_as_it_was() -> None:
    history = {name: [0.0] for name in ("fold", "epoch", "loss", "train_accuracy", "seconds")}
    trained = fit_of(history=history).run(Course([], is_update=True))
    assert trained.result.history["fold"] == [0, *[1] * OPTIONS.max_epochs]
    assert history["fold"] == [0.0]
