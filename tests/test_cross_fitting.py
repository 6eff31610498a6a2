from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from trainings import (
    FOLDS,
    N_IMAGES,
    ROWS,
    filled,
    interrupt_in_epoch,
    network,
    pixels,
    tail_training,
    weights,
)

from defectcam.backbones import create_backbone
from defectcam.cam import defect_margin, signed_cam, signed_cams
from defectcam.cross_fitting import (
    HeldOut,
    add_codebook,
    judge_then_train,
    result_of_good_only,
    student_features_of,
    train_with_folds,
    training_folds,
    training_folds_of_images,
)
from defectcam.network import DefectCAMNetwork
from defectcam.training import (
    TailTraining,
    predict_cached,
)


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


def margins(logits: Tensor) -> Tensor:
    return defect_margin(logits, 0)


@pytest.fixture
def trained_rows(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that gets, for each fold, the rows whose loss was computed, once per level."""
    seen: list[list[int]] = []
    run, loss = TailTraining.run, TailTraining._loss

    def watched_run(self: TailTraining, *args: Any, **kwargs: Any) -> None:
        seen.append([])
        run(self, *args, **kwargs)

    def watched_loss(self: TailTraining, logits: Tensor, batch: Tensor) -> Tensor:
        seen[-1] += batch.tolist()
        return loss(self, logits, batch)

    monkeypatch.setattr(TailTraining, "run", watched_run)
    monkeypatch.setattr(TailTraining, "_loss", watched_loss)
    return seen


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_no_tail_trains_on_its_held_out_rows(trained_rows, deep_supervision):
    result = train_with_folds(tail_training(deep_supervision=deep_supervision), FOLDS)
    n_losses = 2 if deep_supervision else 1
    everything, *of_folds = trained_rows
    assert sorted(everything) == sorted(2 * n_losses * ROWS.tolist())
    for rows, (train, held_out) in zip(of_folds, FOLDS, strict=True):
        assert sorted(rows) == sorted(2 * n_losses * train.tolist())  # once in each of two epochs
        assert not set(rows) & set(held_out.tolist())
    assert result.history["fold"] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_held_out_scores_are_in_order_and_from_the_tail_that_has_not_seen_the_image():
    run = tail_training(max_epochs=3, learning_rate=1e-2)
    start = {name: value.clone() for name, value in run.network.state_dict().items()}
    result = train_with_folds(run, FOLDS)
    for fold, (train, held_out) in enumerate(FOLDS):
        run.network.load_state_dict(start)
        run.run_and_measure(train, 1 + fold)
        run.centre_scores(train)
        logits, levels = predict_cached(run.network, run.cache, held_out)
        torch.testing.assert_close(result.logits[held_out], logits)
        good = predict_cached(run.network, run.cache, train[train % 2 == 0])[1]
        for i, maps in enumerate([levels.sum(1), *levels.unbind(1)]):
            of_good = [good.sum(1), *good.unbind(1)][i]
            shift = signed_cam(of_good, good=0).quantile(0.5)
            torch.testing.assert_close(
                result.cams[held_out, i], signed_cam(maps, good=0) - shift, atol=1e-5, rtol=1e-5
            )


def test_held_out_scores_are_pooled_by_held_out_novelty():
    """A codebook that has seen an image finds less that is novel in it."""
    seen, held_out = (torch.rand(N_IMAGES, 4, 4, generator=rng) for rng in generators(2))
    start = network(pooling="novelty_top_k")
    said = []
    for cached, maps in [(seen, held_out), (held_out, None), (seen, None)]:
        run = tail_training(copy.deepcopy(start), max_epochs=1, learning_rate=0.0)
        run.cache.novelty = cached
        said.append(margins(train_with_folds(run, FOLDS, maps).logits))
        assert run.cache.novelty is cached
    for _, rows in FOLDS:  # scores are centred on the images that were trained on: a constant
        differences = [(other[rows] - said[0][rows]).diff() for other in said[1:]]
        torch.testing.assert_close(differences[0], torch.zeros(1))
        assert not torch.allclose(differences[1], torch.zeros(1), atol=1e-4)


@pytest.mark.parametrize("n_known", [0, 4])
def test_new_images_are_judged_by_the_present_codebook(n_known):
    seen, present = (torch.rand(N_IMAGES, 4, 4, generator=rng) for rng in generators(2))
    run = tail_training(network(pooling="novelty_top_k"))
    run.cache.novelty = seen.clone()
    n_new = N_IMAGES - n_known
    run.cache.novelty[:n_new] = present[:n_new]
    learned = ROWS[n_new:] if n_known else ROWS
    expected = run.scores(learned)
    run.cache.novelty = seen
    known = HeldOut(torch.zeros(n_known, 2), torch.ones(n_known, *expected.cams.shape[1:]), None)
    result = judge_then_train(run, known if n_known else None, present)
    said = margins(expected.logits) - expected.typical_margin
    torch.testing.assert_close(margins(result.logits)[:n_new], said[:n_new])


def test_the_final_tail_is_the_one_that_was_trained_on_everything():
    run = tail_training(max_epochs=3, learning_rate=1e-2)
    start = {name: value.clone() for name, value in run.network.state_dict().items()}
    train_with_folds(run, FOLDS)
    final = {name: value.clone() for name, value in run.network.state_dict().items()}
    run.network.load_state_dict(start)
    run.run_and_measure(ROWS, 0)
    for name, value in run.network.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(final[name], value)
        if name.startswith("head.convs"):  # scaled
            ratio = (final[name] / value).flatten()
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=0)


@pytest.mark.parametrize("targets", [[0, 1] * 3, [0, 1, 0, 2, 0, 3]])
def test_the_final_network_keeps_the_classes_as_far_apart_as_the_folds_tails_do(targets):
    n_classes = 1 + max(targets)
    run = tail_training(
        network(n_classes=n_classes),
        targets=torch.tensor(targets),
        class_weight=torch.ones(n_classes),
        max_epochs=5,
        learning_rate=1e-2,
    )
    start = {name: value.clone() for name, value in run.network.state_dict().items()}
    distances = []
    for fold, (train, _) in enumerate(FOLDS):
        run.network.load_state_dict(start)
        run.run_and_measure(train, 1 + fold)
        distances.append(run.scores(train).class_distance)
    assert min(distances) > 0
    run.network.load_state_dict(start)
    train_with_folds(run, FOLDS)
    final = run.scores(ROWS)
    assert final.class_distance == pytest.approx(np.mean(distances), rel=1e-3)
    assert final.typical_margin == pytest.approx(0, abs=1e-4)


def test_where_the_highest_scores_tell_nothing_the_distance_of_two_classes_is_kept():
    """Many middling defect classes add up, so that only the sum tells the images apart."""
    run = tail_training(network(n_classes=4), targets=torch.tensor([0, 1] * 3))
    logits = torch.tensor([[0.0, 2.0, -9.0, -9.0], [0.0, 1.9, 1.9, 1.9]] * 3)
    with torch.no_grad():
        run.network.head.bias.fill_(1.0)
    scores = run.scores(ROWS)._replace(logits=logits, class_distance=1.0)
    run.keep_apart(scores, 3.0)
    torch.testing.assert_close(run.network.head.bias[1:], torch.full((3,), 3.0))


@pytest.mark.parametrize("n_known", [0, 4])
def test_new_images_are_judged_before_they_are_learned_from(n_known):
    run = tail_training()
    run.run(ROWS, fold=0)  # which tells the classes apart
    n_new = len(ROWS) - n_known
    learned = ROWS[n_new:] if n_known else ROWS
    before = run.scores(learned)
    margin = before.logits[:, 1 - run.good] - before.logits[:, run.good] - before.typical_margin
    known = HeldOut(torch.zeros(n_known, 2), torch.ones(n_known, *before.cams.shape[1:]), None)
    start = weights(run.network)
    result = judge_then_train(run, known if n_known else None)
    assert not torch.equal(weights(run.network), start)
    said = result.logits[:, 1 - run.good] - result.logits[:, run.good]
    torch.testing.assert_close(said[:n_new], margin[:n_new])
    torch.testing.assert_close(result.cams[:n_new], before.centred_cams(ROWS[:n_new]))
    assert not result.logits[n_new:].any() and bool((result.cams[n_new:] == 1).all())
    after = run.scores(ROWS)
    assert after.class_distance == pytest.approx(before.class_distance, rel=1e-3)
    assert after.typical_margin == pytest.approx(0, abs=1e-4)
    assert result.typical_cams == pytest.approx(after.typical_cams, abs=1e-4)


def medians(cams: Tensor) -> list[float]:
    return [float(cam.quantile(0.5)) for cam in cams.unbind(1)]


@pytest.mark.parametrize("folds", [FOLDS, []])
def test_the_typical_map_values_are_those_of_good_images(folds):
    run = tail_training(max_epochs=3, learning_rate=1e-2)
    result = train_with_folds(run, folds)
    logits, levels = predict_cached(run.network, run.cache, np.array([0, 2, 4]))
    typical = medians(signed_cams(levels, good=0))
    assert result.typical_cams == pytest.approx(typical, abs=1e-4)
    if folds:
        assert (logits[:, 1] - logits[:, 0]).quantile(0.5) == pytest.approx(0, abs=1e-4)


def test_without_folds_the_maps_are_centred_as_they_are_with_them():
    run = tail_training(max_epochs=3, learning_rate=1e-2)
    result = train_with_folds(run, [])
    assert result.cams.shape[:2] == (N_IMAGES, 3)
    assert medians(result.cams[[0, 2, 4]]) == pytest.approx([0, 0, 0], abs=1e-4)


def test_of_good_images_alone_the_maps_and_the_final_evidence_are_zero():
    net = network()
    cache = filled(net)
    result = result_of_good_only(net, cache)
    levels = predict_cached(net, cache, ROWS)[1]
    assert not levels.any()
    assert result.cams.shape == signed_cams(levels, 0).shape
    assert not result.cams.any()
    assert result.typical_cams == (0, 0, 0)


def test_students_read_each_row_through_the_tail_that_has_not_seen_it():
    run = tail_training(max_epochs=1, learning_rate=1e-2)
    result = train_with_folds(run, FOLDS)
    final = {name: value.clone() for name, value in run.network.state_dict().items()}
    rows = torch.tensor([5, 0, 3, 1])
    found = student_features_of(run.network, run.cache, FOLDS, result.tails)(rows)
    for name, value in run.network.state_dict().items():
        assert torch.equal(value, final[name])
    of_final = student_features_of(run.network, run.cache)(rows)
    assert [level.shape for level in found] == [level.shape for level in of_final]
    assert torch.equal(found[0], of_final[0])  # what the tail starts from
    for (_, held_out), tail in zip(FOLDS, result.tails, strict=True):
        run.network.load_state_dict(tail, strict=False)
        own = [i for i, row in enumerate(rows.tolist()) if row in held_out]
        expected = student_features_of(run.network, run.cache)(rows[own])
        for level, expected_level in zip(found, expected, strict=True):
            torch.testing.assert_close(level[own], expected_level)


def test_without_folds_one_tail_trains_on_everything(trained_rows):
    run = tail_training()
    result = train_with_folds(run, [])
    n_losses = 2  # one for each level
    assert [sorted(rows) for rows in trained_rows] == [sorted(2 * n_losses * ROWS.tolist())]
    torch.testing.assert_close(result.logits, predict_cached(run.network, run.cache, ROWS)[0])


def test_an_interrupt_before_an_epoch_is_finished_goes_on(monkeypatch):
    interrupt_in_epoch(monkeypatch, 1, n_batches=1)
    with pytest.raises(KeyboardInterrupt):
        train_with_folds(tail_training(), FOLDS)


@pytest.mark.parametrize("epoch", [2, 3, 4, 5, 6])
def test_an_interrupt_later_leaves_a_usable_result(monkeypatch, epoch):
    interrupt_in_epoch(monkeypatch, epoch, n_batches=1)
    result = train_with_folds(tail_training(batch_size=N_IMAGES), FOLDS)
    assert result.interrupted
    assert result.tails == ()
    assert len(result.history["epoch"]) == epoch - 1
    assert result.logits.shape == (N_IMAGES, 2)
    assert result.logits.isfinite().all()


@pytest.mark.parametrize("folds", [FOLDS, []])
def test_an_interrupt_between_two_epochs_leaves_a_usable_result(folds):
    """A callback runs when its epoch is finished, so nothing is lost."""

    def interrupt(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    try:
        result = train_with_folds(tail_training(on_epoch=interrupt), folds)
    except KeyboardInterrupt:  # which would end pytest
        pytest.fail("the finished epoch is lost")
    assert result.interrupted
    assert result.logits.isfinite().all()


def test_a_fit_on_another_device_moves_what_it_needs_there(monkeypatch):
    """The meta device computes no values, but as any other it refuses tensors of the CPU."""

    def without_values(name, of_meta):
        method = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda x: of_meta(x) if x.is_meta else method(x))

    without_values("item", lambda x: 1.0)
    without_values("__float__", lambda x: 1.0)
    without_values("cpu", lambda x: torch.zeros(x.shape))
    net = DefectCAMNetwork(
        create_backbone("test_efficientnet", None),
        head_options={"n_classes": 2, "pooling": "novelty_top_k", "fraction": 0.1, "reference": 0},
        trainable_stages=1,
        evidence_stages=2,
        novelty_strides=(4, 8),
    ).eval()
    cache = filled(net, "flips", device="meta")
    net.to("meta")
    is_good = np.array([True, False] * 3)
    maps, codebooks = add_codebook(net, cache, is_good, FOLDS, 4, 0)
    assert maps.device.type == "cpu"
    assert {codebook.centres.device.type for codebook in (net.codebook, *codebooks)} == {"meta"}
    training = tail_training(net, cache=cache, class_weight=torch.tensor([1.0, 2.0]))
    result = train_with_folds(training, FOLDS)
    assert result.logits.device.type == result.cams.device.type == "cpu"
    assert net.infer(pixels().to("meta")).novelty.device.type == "meta"


def test_tiles_of_an_image_stay_in_one_fold():
    images = np.repeat([3, 5, 6, 9], 4)
    labels = np.repeat(["good", "good", "scratch", "scratch"], 4)
    targets = (labels == "scratch").astype(np.int64)
    folds = training_folds_of_images(labels, targets, images, 2, 0)
    assert len(folds) == 2
    for train, held_out in folds:
        assert not set(images[train]) & set(images[held_out])
        assert len(train) + len(held_out) == len(images)


# --- Folds --------------------------------------------------------------------------------------


def folds_of(labels, n_folds, groups=None):
    labels = np.array(labels)
    groups = np.arange(len(labels)) if groups is None else np.array(groups)
    return training_folds(labels, (labels != "good").astype(np.int64), groups, n_folds, 0)


@given(st.integers(2, 12), st.lists(st.integers(2, 6), min_size=1, max_size=3), st.integers(2, 4))
def test_each_image_is_held_out_once_and_each_fold_learns_both_classes(n_good, types, n_folds):
    labels = np.array(
        ["good"] * n_good + [f"type {i}" for i, n in enumerate(types) for _ in range(n)]
    )
    folds = folds_of(labels, n_folds)
    assert len(folds) == min(n_folds, n_good, sum(types))
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(len(labels)))
    for train, held_out in folds:
        assert sorted([*train, *held_out]) == list(range(len(labels)))
        for rows in (train, held_out):
            assert len({label == "good" for label in labels[rows]}) == 2


def test_a_type_has_its_share_of_each_fold():
    labels = ["good"] * 8 + ["scratch"] * 4 + ["dent"] * 2
    for _, held_out in folds_of(labels, 2):
        found = np.array(labels)[held_out].tolist()
        assert [found.count(label) for label in ("good", "scratch", "dent")] == [4, 2, 1]


def test_copies_stay_together_where_both_classes_can_be_on_both_sides():
    groups = [0, 0, 1, 2, 3, 3, 4, 5]
    for train, held_out in folds_of(["good"] * 4 + ["scratch"] * 4, 2, groups):
        assert not {groups[row] for row in train} & {groups[row] for row in held_out}
    torn = folds_of(["good"] * 4 + ["scratch"] * 4, 2, [0, 0, 0, 0, 1, 1, 1, 1])
    assert [len(held_out) for _, held_out in torn] == [4, 4]


def test_no_folds_are_asked_for_or_possible():
    assert folds_of(["good"] * 4 + ["scratch"] * 4, None) == []
    with pytest.warns(UserWarning, match="at least two images of each class"):
        assert folds_of(["good"] * 4 + ["scratch"], 2) == []


def test_good_images_alone_are_cut_into_more_parts():
    assert len(folds_of(["good"] * 30, 2)) == 10
    assert len(folds_of(["good"] * 30, 12)) == 12
    assert len(folds_of(["good"] * 4, 2)) == 4
