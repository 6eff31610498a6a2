from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from trainings import (
    FOLDS,
    N_IMAGES,
    OPTIONS,
    ROWS,
    filled,
    interrupt_in_epoch,
    network,
    pixels,
    tail_training,
    weights,
)

from defectcam import training
from defectcam.backbones import create_backbone
from defectcam.callbacks import TimeLimit, check_callbacks
from defectcam.feature_cache import VIEWS, FeatureCache
from defectcam.network import DefectCAMNetwork
from defectcam.training import (
    TailTraining,
    TrainingDivergedError,
    predict_cached,
    update_batch_norm,
)


def test_training_on_a_file_gives_the_weights_of_training_in_memory():
    start = network()
    results = []
    for budget in (2**30, 0):
        net = network()
        net.load_state_dict(start.state_dict())
        with filled(net, budget=budget) as cache:
            tail_training(net, cache=cache).run(ROWS, fold=0)
        results.append(weights(net))
    assert torch.equal(*results)


def test_scores_from_the_cache_are_those_of_the_network():
    net = network()
    logits, levels = predict_cached(net, filled(net), np.array([4, 1]))
    with torch.no_grad():
        expected = net.infer(pixels()[[4, 1]])
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(levels, expected.levels, atol=1e-5, rtol=1e-5)


# --- One training -------------------------------------------------------------------------------


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_the_loss_is_the_weighted_cross_entropy(deep_supervision):
    """Of the levels' sum, or the mean of that of each level."""
    run = tail_training(
        deep_supervision=deep_supervision,
        class_weight=torch.tensor([1.0, 3.0]),
        sample_weight=torch.tensor([1.0, 1, 2, 1, 1, 1]),
        max_epochs=1,
        batch_size=N_IMAGES,
    )
    net = run.network.train()
    levels = net.level_evidence(run.cache.batch(torch.as_tensor(ROWS), 0 * run.targets))
    repeated = torch.tensor([0, 1, 2, 2, 3, 4, 5])  # a weight of 2 is the image given twice
    expected = [
        F.cross_entropy(
            net.head.logits(evidence)[repeated],
            run.targets[repeated],
            weight=torch.tensor([1.0, 3.0]),
        ).item()
        for evidence in (levels.unbind(1) if deep_supervision else [levels.sum(1)])
    ]
    run.run(ROWS, fold=0)
    assert run.history["loss"][0] == pytest.approx(np.mean(expected), rel=1e-4)


def test_training_lowers_the_loss_and_leaves_the_trunk():
    run = tail_training(max_epochs=15, learning_rate=1e-2)
    trunk = {name: value.clone() for name, value in run.network.trunk.state_dict().items()}
    run.run(ROWS, fold=0)
    assert run.history["loss"][-1] < 0.5 * run.history["loss"][0]
    assert run.history["train_accuracy"][-1] == 1
    for name, value in run.network.trunk.state_dict().items():
        assert torch.equal(value, trunk[name])
    assert not run.network.training


def trained(start: DefectCAMNetwork, n_levels: int, **settings: Any) -> TailTraining:
    net = network(n_levels)
    net.load_state_dict(start.state_dict())
    run = tail_training(net, max_epochs=15, learning_rate=1e-2, **settings)
    run.run(ROWS, fold=0)
    return run


def test_deep_supervision_of_a_single_level_is_the_training_without_it():
    start = network(1)
    deep, joint = (trained(start, 1, deep_supervision=deep) for deep in (True, False))
    assert torch.equal(weights(deep.network), weights(joint.network))
    assert deep.history["loss"] == joint.history["loss"]
    start = network(2)
    deep, joint = (trained(start, 2, deep_supervision=deep) for deep in (True, False))
    assert not torch.equal(weights(deep.network), weights(joint.network))


def losses_of_levels(run: TailTraining) -> list[float]:
    levels = predict_cached(run.network, run.cache, ROWS)[1]
    with torch.no_grad():
        scores = [run.network.head.logits(level) for level in levels.unbind(1)]
    return [F.cross_entropy(score, run.targets).item() for score in scores]


def test_under_deep_supervision_each_level_tells_the_classes_apart_by_itself():
    start = network()
    deep, joint = (
        losses_of_levels(trained(start, 2, deep_supervision=deep)) for deep in (True, False)
    )
    assert max(deep) < 0.5
    assert all(one < other for one, other in zip(deep, joint, strict=True))


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_a_level_with_a_loss_of_its_own_learns_though_another_one_knows_all(deep_supervision):
    net = DefectCAMNetwork(
        create_backbone("test_efficientnet", None),
        head_options={"n_classes": 2, "normalise": False, "pooling": "average"},
        trainable_stages=0,
        evidence_stages=2,
    ).eval()
    run = tail_training(net, deep_supervision=deep_supervision, max_epochs=1)
    fine, coarse = net.head.convs[0].weight, net.head.convs[1].weight
    side = (2.0 * run.targets - 1)[:, None, None, None, None]  # the coarse level's features
    run.cache.deep[1] = side.expand_as(run.cache.deep[1])
    with torch.no_grad():  # its scores differ by 200: no loss is left
        coarse.zero_()
        coarse[:, 0, 0, 0] = torch.tensor([-100.0, 100.0])
    before = fine.detach().clone()
    run.run(ROWS, fold=0)
    assert torch.equal(fine, before) != deep_supervision


def test_the_seed_decides_the_weights(generators_untouched_by_training):
    start = network()
    results = []
    for seed in (0, 0, 1):
        net = network()
        net.load_state_dict(start.state_dict())
        tail_training(net, seed=seed, cache=filled(net, "flips")).run(ROWS, fold=0)
        results.append(weights(net))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.fixture
def generators_untouched_by_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a training fail that draws from torch's global generator."""
    run = TailTraining.run

    def checked(self: TailTraining, rows: np.ndarray, fold: int) -> None:
        before = torch.get_rng_state()
        run(self, rows, fold)
        assert torch.equal(torch.get_rng_state(), before)

    monkeypatch.setattr(TailTraining, "run", checked)


def test_images_without_weight_are_not_learned_from():
    start = network(normalise=False)
    results = []
    for target in (0, 1):
        net = network(normalise=False)
        net.load_state_dict(start.state_dict())
        targets = torch.tensor([0, 1, 0, 1, 0, target])
        sample_weight = torch.tensor([1.0, 1, 1, 1, 1, 0])
        tail_training(net, targets=targets, sample_weight=sample_weight).run(ROWS, fold=0)
        results.append(weights(net))
    assert torch.equal(*results)


def test_a_batch_without_weight_changes_nothing():
    run = tail_training(sample_weight=torch.tensor([0.0, 1, 1, 1, 1, 1]), batch_size=1)
    run.run(ROWS, fold=0)
    assert np.isfinite(run.history["loss"]).all()
    assert weights(run.network).isfinite().all()


def test_a_batch_of_one_image_on_a_grid_of_one_position_can_be_trained_on():
    """The last batch may hold a single image, of which no variance can be told."""
    net = network()
    cache = FeatureCache(N_IMAGES, VIEWS["none"], 2**30, torch.float32)
    cache.fill(net, [pixels()[..., :32, :32]])
    tail_training(net, cache=cache, batch_size=5).run(ROWS, fold=0)
    assert weights(net).isfinite().all()


@pytest.mark.parametrize("train", [True, False])
def test_batch_statistics_of_the_tail_are_learned_only_when_asked_for(train):
    run = tail_training(train_batch_norm=train)
    means = [b.clone() for n, b in run.network.tail.named_buffers() if n.endswith("running_mean")]
    run.run(ROWS, fold=0)
    after = [b for n, b in run.network.tail.named_buffers() if n.endswith("running_mean")]
    assert means
    assert all(torch.equal(a, b) != train for a, b in zip(means, after, strict=True))


def test_a_loss_that_is_no_number_stops_the_training_with_advice():
    run = tail_training(class_weight=torch.tensor([1.0, float("nan")]))
    with pytest.raises(TrainingDivergedError, match="Lower learning_rate"):
        run.run(ROWS, fold=0)


# --- Schedules and stopping ---------------------------------------------------------------------


@pytest.fixture
def learning_rates(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Return a list that gets the learning rates of each step."""
    seen: list[list[float]] = []
    step = torch.optim.Adam.step

    def watched(self: torch.optim.Adam, *args: Any) -> Any:
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    return seen


def test_a_constant_schedule_keeps_the_rates(learning_rates):
    tail_training(head_learning_rate=5e-3).run(ROWS, fold=0)
    assert learning_rates == [[1e-3, 5e-3]] * 6


def test_one_cycle_rises_to_the_rates_and_falls_below_the_start(learning_rates):
    run = tail_training(schedule="one_cycle", head_learning_rate=5e-3, max_epochs=10)
    run.run(ROWS, fold=0)
    rates = np.array(learning_rates)
    assert len(rates) == 30
    np.testing.assert_allclose(rates.max(0), [1e-3, 5e-3], rtol=0.05)
    assert 0 < rates[:, 0].argmax() < 15
    assert (rates[-1] < rates[0]).all()
    assert (rates[0] < rates.max(0) / 10).all()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_all_optimizers_move_tail_and_head(optimizer, schedule):
    run = tail_training(optimizer=optimizer, schedule=schedule, weight_decay=1e-2)
    before = [p.detach().clone() for p in run.network.parameters()]
    run.run(ROWS, fold=0)
    for old, new in zip(before, run.network.parameters(), strict=True):
        assert torch.equal(old, new) != new.requires_grad


@pytest.mark.parametrize(("batch_size", "n_batches"), [(5, 1), (4, 2), (1, 5)])
def test_one_cycle_ends_with_the_last_batch(learning_rates, batch_size, n_batches):
    """A single image left over joins the batch before it, which is then one step fewer."""
    run = tail_training(schedule="one_cycle", max_epochs=3, batch_size=batch_size)
    run.run(ROWS, fold=0)
    assert len(learning_rates) == 3 * n_batches
    assert learning_rates[-1][0] < 1e-3 * max(rates[0] for rates in learning_rates)


def test_a_network_without_tail_trains_its_head(learning_rates):
    net = DefectCAMNetwork(
        create_backbone("test_efficientnet", None),
        head_options={"n_classes": 2},
        trainable_stages=0,
        evidence_stages=1,
    ).eval()
    tail_training(net, head_learning_rate=5e-3).run(ROWS, fold=0)
    assert learning_rates == [[5e-3]] * 6


def test_stop_at_train_accuracy_ends_after_the_first_epoch_that_reaches_it(monkeypatch):
    accuracies = iter([0.5, 0.97, 0.98, 1.0])
    monkeypatch.setattr(TailTraining, "_epoch", lambda *args: (1.0, next(accuracies)))
    run = tail_training(stop_at_train_accuracy=0.98, max_epochs=10)
    run.run(ROWS, fold=0)
    assert run.history["train_accuracy"] == [0.5, 0.97, 0.98]


def test_early_stopping_waits_for_its_patience(monkeypatch):
    losses = [1.0, 0.8, 0.9, 0.7, 0.7, 0.75, 0.1]
    values = iter(losses)
    monkeypatch.setattr(TailTraining, "_epoch", lambda *args: (next(values), 0.5))
    run = tail_training(patience=2, max_epochs=10)
    run.run(ROWS, fold=0)
    assert run.history["loss"] == losses[:6]


def test_the_history_is_a_table_and_each_row_is_told():
    told: list[dict[str, Any]] = []
    run = tail_training(on_epoch=told.append, max_epochs=3)
    run.run(ROWS, fold=4)
    assert run.history["epoch"] == [1, 2, 3]
    assert run.history["fold"] == [4, 4, 4]
    assert [row["loss"] for row in told] == run.history["loss"]
    assert {len(column) for column in run.history.values()} == {3}


@pytest.mark.parametrize(("answer", "n_epochs"), [(True, 1), (None, 3), (1, 3), (False, 3)])
def test_only_true_ends_the_training(answer, n_epochs):
    run = tail_training(on_epoch=lambda record: answer, max_epochs=3)
    run.run(ROWS, fold=0)
    assert len(run.history["epoch"]) == n_epochs


def test_a_class_is_no_callback():
    with pytest.raises(TypeError, match=r"the class TimeLimit: pass .* TimeLimit\(\.\.\.\)"):
        check_callbacks([TimeLimit])
    check_callbacks([TimeLimit(60), print])


def test_a_centred_network_is_put_back_between_the_classes():
    run = tail_training(max_epochs=5, learning_rate=1e-2)
    run.run(ROWS, 0)
    distance = run.centre_scores(ROWS).class_distance
    assert distance > 0
    run.uncentre_scores()
    scores = run.scores(ROWS)
    assert scores.typical_margin == pytest.approx(-distance / 2, rel=1e-3)
    assert scores.class_distance == pytest.approx(distance, rel=1e-3)
    run.uncentre_scores()
    assert run.scores(ROWS).typical_margin == pytest.approx(-distance / 2, rel=1e-3)


def test_statistics_are_measured_anew():
    """As one pass over all images, whatever the batches are."""
    net = network()
    with torch.no_grad():
        for parameter in net.tail.parameters():
            parameter += 0.1
    cache = filled(net)
    update_batch_norm(net, cache, ROWS)
    net.eval()
    first = next(m for m in net.tail.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    predict_cached(net, cache, ROWS)
    handle.remove()
    torch.testing.assert_close(first.running_mean, seen[0].mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first.running_var, seen[0].var((0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert first.momentum is not None


def test_a_last_image_alone_does_not_outweigh_the_others(monkeypatch):
    net = network()
    cache = filled(net)
    update_batch_norm(net, cache, ROWS)
    expected = [b.clone() for n, b in net.tail.named_buffers() if n.endswith("running_mean")]
    monkeypatch.setattr(training, "CACHE_BATCH", N_IMAGES - 1)
    update_batch_norm(net, cache, ROWS)
    found = [b for n, b in net.tail.named_buffers() if n.endswith("running_mean")]
    # The first layer sees the same values whatever the batches are; deeper ones differ slightly.
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-3)


# --- Interrupts ---------------------------------------------------------------------------------


def test_an_interrupt_later_leaves_the_weights_of_the_last_finished_epoch(monkeypatch):
    start = network()
    expected = network()
    expected.load_state_dict(start.state_dict())
    tail_training(expected, max_epochs=1).run(FOLDS[0][0], fold=0)
    interrupt_in_epoch(monkeypatch, 2, n_batches=-(-4 // OPTIONS.batch_size))
    run = tail_training(start)
    run.run(FOLDS[0][0], fold=0)
    assert run.interrupted
    assert torch.equal(weights(run.network), weights(expected))
    assert len(run.history["loss"]) == 1


def test_an_interrupt_while_statistics_are_measured_loses_no_epoch(monkeypatch):
    run = tail_training()
    norms = [m for m in run.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]

    level_evidence = DefectCAMNetwork.level_evidence

    def interrupt(self: DefectCAMNetwork, deep: list[torch.Tensor]) -> torch.Tensor:
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled():  # trained, or judged
            return level_evidence(self, deep)
        raise KeyboardInterrupt

    monkeypatch.setattr(DefectCAMNetwork, "level_evidence", interrupt)
    try:
        run.run_and_measure(ROWS, fold=0)
    except KeyboardInterrupt:  # which would end pytest
        pytest.fail("the finished epochs are lost")
    assert run.interrupted
    assert len(run.history["epoch"]) == OPTIONS.max_epochs
    assert [norm.momentum for norm in norms] == momenta
    assert any((norm.running_var != 1).any() for norm in norms)  # they are those of the epochs
