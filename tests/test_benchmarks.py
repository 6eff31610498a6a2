"""The scripts in `benchmarks/`: who is trained and tested on what, and what is kept of a run."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from defectcam.images import read_image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = (
    "accuracy",
    "active",
    "cam_methods",
    "distributed",
    "determinism",
    "export",
    "drift",
    "figures",
    "incremental",
    "kills",
    "large_images",
    "metamorphic",
    "options",
    "patchcore",
    "plain",
    "preprocessing",
    "printing",
    "profiling",
    "protocols",
    "ranking",
    "screens",
    "report",
    "screenshots",
    "speed",
    "watch",
)
OPTIONS = argparse.Namespace(types=None, n_defects=[4, 8, 16], flipped=[0.05, 0.1])
COUNTS = {"dent": 20, "good": 60, "hole": 5, "scratch": 35}

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks/ is not here")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Return a function that imports a module of `benchmarks/` as its scripts do."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def cases(script: Callable[[str], ModuleType]) -> Callable[..., tuple[Any, list]]:
    """Return a function that makes a data set of `COUNTS` and the cases of a protocol on it."""

    def make(protocol: str, seed: int = 0, **groups: Any) -> tuple[Any, list]:
        protocols = script("protocols")
        types = np.repeat(list(COUNTS), list(COUNTS.values()))
        data = protocols.DataSet("parts", np.arange(len(types)), types, **groups)
        train, test = data.split(seed, 0.2)
        made = list(protocols.PROTOCOLS[protocol](data, train, test, seed, OPTIONS))
        return SimpleNamespace(all=data, train=train, test=test), made

    return make


def test_split_is_the_split(cases):
    data, [case] = cases("split")
    assert case.variant is None
    assert case.train.tolist() == data.train.tolist() and case.test.tolist() == data.test.tolist()
    assert (case.labels == np.where(data.all.types[data.train] == "good", "good", "anomaly")).all()


def test_a_type_left_out_is_tested_whole_and_not_trained_on(cases):
    data, left_out = cases("leave-one-type-out")
    assert [case.variant for case in left_out] == ["dent", "hole", "scratch"]
    for case in left_out:
        trained, tested = data.all.types[case.train], data.all.types[case.test]
        assert case.variant not in trained
        assert set(tested) == {case.variant, "good"}
        assert (tested == case.variant).sum() == COUNTS[case.variant]
        assert (tested == "good").sum() == 12 and (trained == "good").sum() == 48
        assert set(case.train) < set(data.train)


def test_a_part_of_the_type_left_out_is_not_trained_on_either(cases):
    groups = np.arange(sum(COUNTS.values())) % 60  # each dent shares its part with a good image
    _, left_out = cases("leave-one-type-out", groups=groups)
    for case in left_out:
        assert not set(groups[case.train]) & set(groups[case.test])


def test_few_labels_keep_the_good_images_and_the_shares_of_types(cases):
    data, few = cases("few-labels")
    assert [case.variant for case in few] == [4, 8, 16]
    n_all = {name: np.sum(data.all.types[data.train] == name) for name in COUNTS}
    before: set[int] = set()
    for case in few:
        trained = data.all.types[case.train]
        assert (trained == "good").sum() == n_all["good"]
        assert (case.labels == "anomaly").sum() == case.variant
        for name in ("dent", "hole", "scratch"):
            share = case.variant * n_all[name] / 48
            assert abs((trained == name).sum() - share) < 1.5
        assert before < set(case.train)
        before = set(case.train)


def test_more_labels_than_there_are_leave_the_run_out(cases, monkeypatch, capsys):
    monkeypatch.setattr(OPTIONS, "n_defects", [48, 49])
    _, few = cases("few-labels")
    assert [case.variant for case in few] == [48]
    assert "48 defects, not 49" in capsys.readouterr().out


def test_flipped_labels_are_the_stated_share_of_the_training_labels(cases):
    data, wrong = cases("mislabelled")
    right = data.all.labels(data.train)
    for case, n_flipped in zip(wrong, [5, 10], strict=True):  # of 96
        assert np.flatnonzero(case.labels != right).tolist() == case.flipped.tolist()
        assert len(case.flipped) == n_flipped
        assert case.test.tolist() == data.test.tolist()


@pytest.mark.parametrize("protocol", ["few-labels", "mislabelled"])
def test_the_seed_decides_what_is_drawn(cases, protocol):
    drawn = [cases(protocol, seed)[1][0] for seed in (0, 0, 1)]
    whole = [(case.train.tolist(), case.labels.tolist()) for case in drawn]
    assert whole[0] == whole[1] != whole[2]


# Runs --------------------------------------------------------------------------------------------


class Stub:
    """Calls what it finds in a folder other than `good` defective, with a box in the corner."""

    fits = 0

    def __init__(self, **parameters: Any):
        self.parameters = parameters

    def fit(self, images: np.ndarray, labels: np.ndarray) -> None:
        Stub.fits += 1
        in_good = np.array([Path(path).parent.name == "good" for path in images])
        self.suspects_ = np.argsort((labels == "good") == in_good, kind="stable")

    def localize(self, images: list[str]) -> list[SimpleNamespace]:
        return [self.found(Path(path).parent.name != "good") for path in images]

    def found(self, is_defect: bool) -> SimpleNamespace:
        boxes = np.array([[0, 0, 6, 8]] if is_defect else np.zeros((0, 4)), int)
        heatmap = np.zeros((20, 24))
        heatmap[:8, :6] = is_defect
        return SimpleNamespace(
            is_defect=is_defect,
            probability=0.9 if is_defect else 0.2,
            heatmap=heatmap,
            boxes=boxes,
            box_scores=np.ones(len(boxes)),
        )


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def plates(tmp_path: Path) -> Path:
    """Return a folder in the MVTec AD layout, its defects in the upper left corner."""
    rng = np.random.default_rng(0)
    root = tmp_path / "plates"
    mask = np.zeros((20, 24), np.uint8)
    mask[:8, :6] = 255
    for folder, count in {"train/good": 12, "test/good": 3, "test/dent": 5, "test/hole": 5}.items():
        for number in range(count):
            image = rng.integers(90, 110, mask.shape).astype(np.uint8)
            if folder.startswith("test/") and "good" not in folder:
                image[mask > 0] = 250
                name = f"ground_truth/{Path(folder).name}/{number:03d}_mask.png"
                write_image(root / name, mask)
            write_image(root / folder / f"{number:03d}.png", image)
    return root


@pytest.fixture
def run(script, plates, monkeypatch) -> Callable[..., list[dict]]:
    """Return a function that runs the benchmark with `Stub` and returns what the file holds."""
    accuracy = script("accuracy")
    monkeypatch.setitem(accuracy.METHODS, "default", Stub)
    monkeypatch.setattr(Stub, "fits", 0)

    def main(*arguments: str, json_file: Path = plates.parent / "runs.json") -> list[dict]:
        common = ["--json", json_file, "--methods", "default", "--splits", "10", "11"]
        accuracy.main([str(plates), *map(str, common), *arguments])
        return json.loads(json_file.read_text())

    return main


def test_a_run_is_measured_kept_and_not_repeated(run, capsys):
    runs = run()
    printed = capsys.readouterr().out
    assert run() == runs and Stub.fits == 2
    assert capsys.readouterr().out.count("plates default split") == 0
    assert [(kept["protocol"], kept["variant"], kept["split"]) for kept in runs] == [
        ("split", None, 10),
        ("split", None, 11),
    ]
    for name in ("balanced accuracy", "image AUROC", "pixel AUROC", "AUPRO", "box F1"):
        assert runs[0][name] == pytest.approx(1)
    assert runs[0]["ECE"] == pytest.approx((2 * 0.1 + 3 * 0.2) / 5)
    assert sorted(runs[0]["predictions"]["probability"]) == [0.2, 0.2, 0.2, 0.9, 0.9]
    assert "| plates | split | - | default | 2 | 1.000 ± 0.000 |" in printed
    assert "| plates | split | - | default | 2 | 10 | 0.160 | 0.028 | 0.000 |" in printed


def test_runs_are_told_apart_by_protocol_variant_and_parameters(run):
    assert len(run()) == 2
    assert len(run("--protocol", "leave-one-type-out")) == 6
    assert len(run("--protocol", "leave-one-type-out", "--types", "dent")) == 6
    assert len(run("--protocol", "few-labels", "--n-defects", "2", "3")) == 10
    assert len(run("--set", '{"image_size": 64}')) == 12
    assert Stub.fits == 12


def test_the_table_holds_what_is_asked_for(run, capsys):
    run()
    run("--set", '{"image_size": 64}')
    run("--splits", "10", "--protocol", "few-labels", "--n-defects", "2")
    capsys.readouterr()
    run("--splits", "10")
    assert "| plates | split | - | default | 1 | 1.000 |" in capsys.readouterr().out


def test_suspects_are_looked_through_for_the_flipped_labels(run):
    runs = run("--protocol", "mislabelled", "--flipped", "0.05", "0.25")
    found = [kept["flips in first 10 % of suspects"] for kept in runs[:2]]
    assert found == [1.0, 2 / 5]  # 1 of 20 labels is flipped, or 5, and 2 images are looked at


def test_runs_from_before_there_were_protocols_are_plain_splits(run, plates):
    old = plates.parent / "old.json"
    record = {"set": "plates", "method": "default", "parameters": {}, "balanced accuracy": 0.5}
    old.write_text(json.dumps([record | {"split": split} for split in (10, 11)]))
    run(json_file=old)
    assert Stub.fits == 0
    assert len(run("--set", '{"image_size": 64}', json_file=old)) == 4


def test_pooled_figures_are_those_of_all_test_images_together(script):
    runs = [
        {"good with box": 1.0, "predictions": {"is_defect": [0, 1], "probability": [0.5, 1.0]}},
        {"good with box": 0.0, "predictions": {"is_defect": [0, 0, 0], "probability": [0.5] * 3}},
    ]
    pooled = script("printing").pooled_cells
    assert pooled(runs) == ["5", "0.400", "0.200", "0.250"]
    del runs[0]["predictions"]["probability"]
    assert pooled(runs) == ["5", "-", "-", "0.250"]


def test_an_unknown_type_is_refused(run):
    with pytest.raises(ValueError, match="'dent', 'hole'"):
        run("--protocol", "leave-one-type-out", "--types", "scratch")


# PatchCore ---------------------------------------------------------------------------------------


def test_patchcore_is_left_out_without_anomalib(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "anomalib", None)
    run("--methods", "patchcore", "default")
    printed = capsys.readouterr().out
    assert "plates patchcore split 10: left out" in printed
    assert "pip install anomalib" in printed
    assert "| default | 2 |" in printed


def test_best_balanced_threshold_lies_between_the_scores_it_separates(script):
    threshold = script("patchcore").best_balanced_threshold
    is_defect = np.array([False, False, True, False, True, True])
    score = np.array([1.0, 2.0, 3.0, 4.0, 6.0, 8.0])
    accuracies = [
        ((score >= t)[is_defect].mean() + (score < t)[~is_defect].mean()) / 2 for t in score
    ]
    chosen = threshold(is_defect, score)
    found = ((score >= chosen)[is_defect].mean() + (score < chosen)[~is_defect].mean()) / 2
    assert chosen in {2.5, 5.0} and found == max(accuracies)


@pytest.mark.slow
def test_patchcore_finds_bright_corners(script, plates):
    pytest.importorskip("anomalib.models.image.patchcore.torch_model", exc_type=ImportError)
    data = script("protocols").DataSet.read(str(plates), [])
    train, test = data.split(0, 0.2)
    detector = script("patchcore").PatchCore(
        image_size=64, weights=None, coreset=0.1, min_area=1, device="cpu", max_epochs=1
    )
    detector.fit(data.images[train], data.labels(train))
    found = detector.localize(list(data.images[test]))
    assert [f.is_defect for f in found] == (data.types[test] != "good").tolist()
    assert all(f.heatmap.shape == (20, 24) for f in found)
    assert all((len(f.boxes) > 0) == f.is_defect for f in found)


# Ranking -----------------------------------------------------------------------------------------


class Skilful(Stub):
    """Finds what `skill` says, of generated images by their contrast to the image's median."""

    def fit(self, images: np.ndarray, labels: np.ndarray) -> None:
        Stub.fits += 1

    def localize(self, images: list) -> list[SimpleNamespace]:
        found = []
        for place, image in enumerate(images):
            pixels = cv2.imread(image) if isinstance(image, str) else image
            heatmap = np.abs(pixels[..., 0] - np.median(pixels[..., 0])).astype(float)
            rng = np.random.default_rng(place)
            heatmap += self.parameters["noise"] * rng.standard_normal(heatmap.shape)
            result = self.found(bool(heatmap.max() > 100))
            result.heatmap, result.probability = heatmap, 1 / (1 + np.exp(-heatmap.max() / 50))
            found.append(result)
        return found


@pytest.fixture
def ranking(script, plates, monkeypatch) -> Callable[..., list[dict]]:
    """Return a function that ranks noisy methods on `plates` and on generated castings."""
    module = script("ranking")
    noisy = {f"noise-{noise}": {"noise": noise} for noise in (0, 60, 100, 200)}
    monkeypatch.setattr(module, "CONFIGURATIONS", noisy)
    monkeypatch.setitem(module.accuracy.METHODS, "default", Skilful)
    monkeypatch.setattr(Stub, "fits", 0)
    json_file = plates.parent / "ranking.json"

    def main(*arguments: str) -> list[dict]:
        shared = ["--json", str(json_file), "--splits", "10", "--set", "{}", "--kinds", "cast"]
        module.main([str(plates), *shared, "--n-samples", "40", "--configurations", *noisy])
        return json.loads(json_file.with_suffix(".correlation.json").read_text())

    return main


def test_rankings_are_compared_kept_and_not_repeated(ranking, capsys):
    found = ranking()
    printed = capsys.readouterr().out
    assert ranking() == found and Stub.fits == 2 * 4
    aupro = {tuple(row["sets"]): row for row in found if row["figure"] == "AUPRO"}
    assert set(aupro) == {("generated-cast-40x256", "plates"), ("generated", "plates")}
    for row in aupro.values():  # more noise is worse on both
        assert row["configurations"] == 4 and row["rho"] == pytest.approx(1)
    assert "| AUPRO | generated-cast-40x256 | generated | plates |" in printed
    assert "| generated | plates | AUPRO | 4 | 1.00 | 0.00 |" in printed
    assert "plates noise-60 split 10: balanced accuracy" in printed


def test_correlations_are_spearmans_over_shared_configurations(script):
    module = script("ranking")
    figures = {"generated": [1, 2, 3, 4], "a": [10, 30, 20, 40], "b": [7, 7, 7, 7]}
    means = {
        name: {f"c{i}": {"AUPRO": float(value)} for i, value in enumerate(values)}
        for name, values in figures.items()
    }
    means["a"]["c9"] = {"AUPRO": 0.0}  # not run on the others
    found = module.correlations(means, ["some/a", "some/b"])
    rho = {tuple(row["sets"]): row["rho"] for row in found}
    assert rho == {
        ("generated", "a"): pytest.approx(0.8),
        ("generated", "b"): None,
        ("a", "b"): None,
    }
    assert {row["configurations"] for row in found} == {4}


def test_ranking_needs_some_configurations(script, capsys):
    for names in (["default", "cam"], ["default", "cam", "none"]):
        with pytest.raises(SystemExit):
            script("ranking").parse(["plates", "--configurations", *names])
        assert "--configurations must be at least 3 of" in capsys.readouterr().err


# Speed -------------------------------------------------------------------------------------------

TINY = {"backbone": "test_efficientnet", "weights": None, "image_size": 32, "codebook_size": 8}


def test_speed_is_printed_and_kept_with_the_machine(script, plates, capsys):
    kept = plates.parent / "results" / "speed.json"
    common = [str(plates), "--repeats", "1", "--json", str(kept), "--set", json.dumps(TINY)]
    for part in ("arrays", "files"):
        script("speed").main([*common, "--only", part])
    printed = capsys.readouterr().out
    parts = json.loads(kept.read_text())
    assert list(parts) == ["arrays", "files"]
    for name, part in parts.items():
        assert {"processor", "cores", "torch", "torch threads", "precision"} <= set(part["machine"])
        assert part["figures"]["images"] == 5
        times = {key: t for key, t in part["figures"].items() if key.endswith("ms per image")}
        assert len(times) >= 3 and min(times.values()) > 0
        assert f"| {name} | |" in printed
        assert all(f"| {key} |" in printed for key in times)


def test_the_profile_knows_every_step_by_its_present_name(script, plates):
    kept = plates.parent / "results" / "speed.json"
    tiny = json.dumps(TINY | {"max_epochs": 1, "cv": 2})
    script("speed").main(
        [str(plates), "--only", "profile", "--json", str(kept), "--epochs", "1", "--set", tiny]
    )
    figures = json.loads(kept.read_text())["profile"]["figures"]
    for call in ("fit", "localize"):
        times = {key: t for key, t in figures.items() if key.startswith(f"{call}: ")}
        *steps, whole = times.values()
        assert min(steps) > 0, times
        assert sum(steps) == pytest.approx(whole)


def test_any_first_images_have_the_labels_in_their_proportions(script):
    labels = np.repeat(["anomaly", "good"], [20, 60])
    order = script("speed").proportional(labels)
    assert sorted(order) == list(range(80))
    for n in (1, 4, 10, 37, 80):
        assert abs((labels[order[:n]] == "anomaly").sum() - n / 4) <= 1


def test_few_copies_are_as_large_as_many(script, tmp_path):
    sizes = 8 * (1 + np.arange(40) % 20)  # sorted within each label, as sets are by type
    for i, size in enumerate(sizes):
        Image.fromarray(np.full((size, size), 90, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    subject = SimpleNamespace(
        scratch=tmp_path,
        train=np.array([str(tmp_path / f"{i}.png") for i in range(40)]),
        labels=np.repeat(["anomaly", "good"], 20),
    )
    paths, labels = script("speed").copies(subject, 90, "copies")
    assert Counter(labels[:10]) == {"anomaly": 5, "good": 5}
    sides = [Image.open(path).width for path in paths]
    assert Counter(sides[:40]) == Counter(sides[40:80]) == Counter(sizes.tolist())
    assert np.mean(sides[:20]) == pytest.approx(np.mean(sizes), rel=0.25)


# Methods of class activation maps -----------------------------------------------------------------


@pytest.fixture
def compare(script, plates) -> Callable[..., list[dict]]:
    """Return a function that compares methods with a tiny classifier, and returns what is kept."""
    kept = plates.parent / "cams.json"
    tiny = json.dumps(TINY | {"max_epochs": 1, "cv": None, "device": "cpu", "image_size": 64})

    def main(*arguments: str) -> list[dict]:
        common = [str(plates), "--splits", "10", "--json", str(kept), "--set", tiny]
        script("cam_methods").main([*common, "--test-size", "0.5", *arguments])
        return json.loads(kept.read_text())

    return main


def test_every_method_is_measured_on_the_same_images_kept_and_not_repeated(
    compare, monkeypatch, capsys
):
    from defectcam import DefectCAMClassifier

    pytest.importorskip("pytorch_grad_cam")
    fits = []
    fit = DefectCAMClassifier.fit
    monkeypatch.setattr(
        DefectCAMClassifier, "fit", lambda *arguments: fits.append(1) or fit(*arguments)
    )
    assert [run["method"] for run in compare("--methods", "own")] == ["own"]
    runs = compare()
    capsys.readouterr()
    assert compare() == runs and len(fits) == 2
    printed = capsys.readouterr().out
    methods = ["own", "evidence", "gradcam", "gradcam++", "scorecam", "layercam", "eigencam"]
    assert [run["method"] for run in runs] == methods
    names = ("pixel AUROC", "AUPRO", "pixel AUROC, defective", "AUPRO, defective", "pointing")
    for run in runs:
        assert all(0 <= run[name] <= 1 for name in names)
        assert run["images"] == runs[0]["images"] > 10
        assert run["localize ms per image"] > 0
        assert f"| plates | split | - | {run['method']} | 1 |" in printed
    # One pass after the other: Score-CAM runs the network once per channel.
    times = {run["method"]: run["localize ms per image"] for run in runs}
    assert times["scorecam"] > times["own"]


def test_a_sample_has_all_types_in_their_shares(script):
    sample = script("cam_methods").sample
    types = np.array(["dent", "good"] * 5 + ["good"] * 10)
    test = np.arange(100, 120)
    chosen = sample(test, types, 8)
    assert len(set(chosen)) == 8 and np.isin(chosen, test).all()
    assert np.sum(types[chosen - 100] == "dent") == 2
    assert (sample(test, types, 20) == test).all() and (sample(test, types, None) == test).all()


def test_heatmaps_are_compared_where_there_are_masks(script, monkeypatch):
    cams = script("cam_methods")
    nothing = cams.DataSet("cells", np.zeros(0), np.zeros(0))
    monkeypatch.setattr(cams.DataSet, "read", lambda *_: nothing)
    with pytest.raises(ValueError, match="has no masks"):
        cams.main(["elpv", "--methods", "own"])


# Preprocessing -----------------------------------------------------------------------------------


def test_steps_are_compared_by_splits_and_by_cross_validation(script, plates, capsys):
    kept = plates.parent / "results" / "steps.json"
    options = json.dumps(TINY | {"max_epochs": 1, "cv": None, "device": "cpu", "batch_size": 4})
    common = [str(plates), "--json", str(kept), "--set", options, "--steps", "none", "crop"]
    script("preprocessing").main([*common, "--splits", "10"])
    runs = json.loads(kept.read_text())
    assert [run["method"] for run in runs] == ["none", "crop"]
    assert all(0 <= run["AUPRO"] <= 1 and run["fit seconds"] > 0 for run in runs)
    folds = [*common, "--protocol", "cross-validation", "--folds", "2"]
    script("preprocessing").main(folds)
    runs = json.loads(kept.read_text())
    assert len(runs) == 2 + 2 * 2 * 2
    with_memory = [run for run in runs if run["variant"] == "memory"]
    without = [run for run in runs[2:] if run["variant"] is None]
    for one, other in zip(with_memory, without, strict=True):
        assert one["balanced accuracy"] == other["balanced accuracy"]
    capsys.readouterr()
    script("preprocessing").main(folds)
    assert json.loads(kept.read_text()) == runs  # nothing is measured twice
    assert "| plates | cross-validation | memory | crop | 2 |" in capsys.readouterr().out


def test_the_first_images_keep_masks_and_groups(script):
    data = script("protocols").DataSet(
        "parts",
        np.arange(8),
        np.repeat(["dent", "good"], 4),
        masks=[f"{i}.png" for i in range(4)] + [None] * 4,
        groups=np.arange(8) * 10,
    )
    few = script("preprocessing").first(data, 4)
    assert sorted(few.types) == ["dent", "dent", "good", "good"]
    assert (few.groups == few.images * 10).all()
    assert few.masks == [data.masks[i] for i in few.images]


# Incremental and active learning ------------------------------------------------------------------

LEARNER = TINY | {"max_epochs": 2, "cv": 2, "learning_rate": 1e-2}


def test_days_are_compared_with_one_fit_and_kept(script, plates, capsys):
    kept = plates.parent / "incremental.json"
    arguments = [str(plates), "--splits", "10", "--days", "2", "--json", str(kept)]
    arguments += ["--set", json.dumps(LEARNER)]
    script("incremental").main(arguments)
    (run,) = json.loads(kept.read_text())
    assert [day["images"] for day in run["daily"]] == [10, 10]
    assert run["at once"]["images"] == 20
    assert all(0 <= day["balanced accuracy"] <= 1 for day in run["daily"])
    printed = capsys.readouterr().out
    assert "| plates | 10 |" in printed and "longest update against one fit" in printed
    script("incremental").main(arguments)
    assert "day 1" not in capsys.readouterr().out


def test_labels_are_counted_and_compared(script, plates, capsys):
    kept = plates.parent / "active.json"
    common = [str(plates), "--splits", "10", "--start", "6", "--step", "4", "--most", "14"]
    arguments = [*common, "--json", str(kept), "--set", json.dumps(LEARNER), "--target", "1.1"]
    script("active").main(arguments)
    runs = json.loads(kept.read_text())
    assert [run["method"] for run in runs] == ["random", "query"]
    assert all([n for n, _ in run["curve"]] == [6, 10, 14] for run in runs)
    assert runs[0]["curve"][0] == runs[1]["curve"][0]
    printed = capsys.readouterr().out
    assert "| plates | 10 | inf | inf | - |" in printed
    assert "mean curves: inf and inf labels, share - " in printed
    script("active").main([*arguments[:-1], "0.0"])  # another target, of the curves that are kept
    assert "mean curves: 6 and 6 labels, share 1.00" in capsys.readouterr().out


def test_a_mean_curve_goes_as_far_as_all_curves(script):
    curves = [[(10, 0.5), (20, 0.7), (30, 0.8)], [(10, 0.7), (20, 0.8)]]
    assert script("active").mean_curve(curves) == [
        (10, pytest.approx(0.6)),
        (20, pytest.approx(0.75)),
    ]


def test_needed_labels_lie_between_two_rounds(script):
    needed = script("active").needed
    curve = [(10, 0.8), (20, 0.9), (30, 1.0)]
    assert needed(curve, 0.85) == pytest.approx(15)
    assert needed(curve, 0.7) == 10
    assert needed(curve, 1.01) == float("inf")


# The line ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_watch_that_is_killed_judges_each_image_once(script, tmp_path):
    watch = script("watch")
    tally = watch.run(tmp_path, 60, 20.0, 2, "test_efficientnet", 64)
    assert watch.is_right(tally), tally
    assert (tally["once"], tally["corrupt_listed"], tally["overlays"]) == (60, 1, 59)
    assert tally["latency"]["n"] == 59


def test_a_wrong_tally_is_noticed(script, tmp_path):
    watch = script("watch")
    names = [watch.name_of(number) for number in range(60)]
    bad = watch.name_of(watch.ONE_IN // 2)
    rows = [{"image": name, "error": "cut off" if name == bad else None} for name in names]
    for row in rows:
        row["overlay"] = None
    right = {"images": 60, "exit_code": 0} | watch.check(rows, 60, tmp_path)
    assert not watch.is_right(right)  # overlays are missing
    assert watch.is_right(right | {"overlays": 59})
    for wrong in (rows[1:], [*rows, rows[0]], [{**row, "error": "?"} for row in rows]):
        tally = {"images": 60, "exit_code": 0} | watch.check(wrong, 60, tmp_path)
        assert not watch.is_right(tally | {"overlays": 59})


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_is_killed_leaves_whole_files_and_goes_on(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "kills.py"), "--kills", "2"]
    command += ["--only", "fit", "--json", str(tmp_path / "kills.json")]
    # A process of its own: its children would inherit the threads of this one.
    subprocess.run(command, check=True, capture_output=True)
    tally = json.loads((tmp_path / "kills.json").read_text())["fit"]
    assert (tally["kills"], tally["right"]) == (2, 2)


# Circumstances and changes that mean nothing ----------------------------------------------------


@pytest.mark.slow
def test_circumstances_that_mean_nothing_change_no_bit(script, monkeypatch, capsys):
    determinism = script("determinism")
    how = {"hash_seed": "random", "shuffled": True, "parameters": {"n_jobs": 4}}
    circumstances = {"all": determinism.Circumstance(how)}
    monkeypatch.setattr(determinism, "CIRCUMSTANCES", circumstances)
    rows = determinism.compare(["all"])
    assert rows["all"]["weights"] == rows["all"]["probability"] == 0
    assert rows["all"]["is_right"]
    determinism.print_table({"all": {**rows["all"], "is_right": False}})
    assert "WRONG" in capsys.readouterr().out


def test_changes_that_mean_nothing_are_measured(script, fitted, fitted_parts):
    metamorphic = script("metamorphic")
    images = [read_image(path) for path in sorted((fitted_parts / "scratch").iterdir())]
    rows = metamorphic.measure(fitted, images)
    assert rows.keys() == metamorphic.CHANGES.keys()
    assert all(0 <= row["changed"] <= 1 and row["images"] == 6 for row in rows.values())


def test_boxes_move_with_the_image(script):
    metamorphic = script("metamorphic")
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    image[4:9, 10:17] = 255
    box = np.array([10, 4, 17, 9])
    for name, (change, move) in metamorphic.CHANGES.items():
        changed = change(image)
        assert changed.shape == image.shape, name
        left, top, right, bottom = move(box, (20, 30))
        rows, columns = np.nonzero(changed[..., 0] > 128)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (
            (left, top, right, bottom)
        ), name
    assert metamorphic.overlap(box, box) == 1
    assert metamorphic.overlap(box, box + 100) == 0
    assert metamorphic.overlap(np.array([0, 0, 2, 2]), np.array([1, 0, 3, 2])) == 1 / 3


@pytest.mark.skipif(not Path("/usr/bin/chromium").is_file(), reason="needs Chromium")
def test_a_report_is_made_opened_and_its_slider_moved(script, plates, capsys, monkeypatch):
    pytest.importorskip("playwright")
    report = script("report")
    monkeypatch.setattr(report, "N_OPENED", 1)
    monkeypatch.setattr(report, "N_MOVES", 5)
    report.main([str(plates), "--image-size", "32", "--n-images", "20"])
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("| report | images | MB")
    assert [row.split(" | ")[1] for row in rows][1] == "20" and len(rows) == 2


def test_parity_is_judged_on_all_formats_and_on_mixed_sizes(script, tmp_path):
    export = script("export")
    paths = [str(tmp_path / f"part{i}.jpg") for i in range(3)]
    for path in paths:
        assert cv2.imwrite(path, np.full((40, 60, 3), 99, dtype=np.uint8))
    folder = tmp_path / "made"
    folder.mkdir()
    files = export.mixed_images([SimpleNamespace(paths=paths)], 12, folder)
    images = [cv2.imread(file, cv2.IMREAD_UNCHANGED) for file in files]
    kinds = {(Path(f).suffix, i.ndim, str(i.dtype)) for f, i in zip(files, images, strict=True)}
    assert {(".png", 2, "uint16"), (".png", 2, "uint8"), (".bmp", 3, "uint8")} <= kinds
    assert len({image.shape[:2] for image in images}) == 4


def test_large_surfaces_have_their_scratches_where_the_boxes_are(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    large_images = script("large_images")
    large_images.BASE = 160
    options = argparse.Namespace(train=2, test=2, side=450)
    for images, is_defect, boxes in large_images.surfaces(tmp_path, options):
        assert [image.shape for image in images] == [(450, 450, 3)] * 2
        assert is_defect.tolist() == [False, True]
        assert [len(found) for found in boxes] == [0, large_images.N_SCRATCHES]
        sides = boxes[1][:, 2:] - boxes[1][:, :2]
        assert (sides >= 2).all()
        assert (sides.max(axis=1) >= 9).all()
        assert (sides <= 18).all()


def test_changes_of_a_line_keep_the_images_size(script: Callable[[str], ModuleType]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for change, strengths, _ in script("drift").CHANGES.values():
        for strength in strengths:
            changed = change(image, strength)
            assert (changed.shape, changed.dtype) == (image.shape, image.dtype)
            assert (changed != image).any()
