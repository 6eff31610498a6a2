"""The fitted network and data sets in the hands of other libraries, each used as its users do."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import cross_val_score
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from defectcam import find_near_duplicates
from defectcam.dataset_images import dataset_images, dataset_labels
from defectcam.images import find_images, read_image
from defectcam.sources import labelled_sources

GRAD_CAM = ("GradCAM", "GradCAMPlusPlus", "ScoreCAM", "LayerCAM", "EigenCAM")
TORCHCAM = ("CAM", "GradCAM", "GradCAMpp", "ScoreCAM", "LayerCAM")


@pytest.fixture
def pixels(fitted, fitted_parts):
    """Return two defective images as the network takes them."""
    paths = find_images(fitted_parts / "scratch")[:2]
    return fitted.preprocess_.batch([read_image(path) for path in paths])


@pytest.fixture
def network(fitted):
    return copy.deepcopy(fitted.network_)


# Class activation maps ---------------------------------------------------------------------------


def by_grad_cam(network: nn.Module, pixels: torch.Tensor, name: str, layers: list) -> np.ndarray:
    cams = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with getattr(cams, name)(network, layers) as method:
        return method(pixels, [ClassifierOutputTarget(1)] * len(pixels))


def by_torchcam(network: nn.Module, pixels: torch.Tensor, name: str, layers: list) -> list:
    methods = pytest.importorskip("torchcam.methods")
    more = {"fc_layer": network.head.convs[-1]} if name == "CAM" else {}
    layers = layers[-1:] if name == "CAM" else layers
    with getattr(methods, name)(network, layers, **more) as method:
        scores = network(pixels)
        return method(1, scores) if method._score_used else method(1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", GRAD_CAM)
def test_pytorch_grad_cam_runs_on_the_network(network, pixels, name, precision):
    network.set_dtype(getattr(torch, precision))
    maps = by_grad_cam(network, pixels, name, network.evidence_layers)
    assert maps.shape == (2, 64, 64)
    assert np.isfinite(maps).all()
    assert maps.min() >= 0 and (maps.max((1, 2)) > 0.9).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TORCHCAM)
def test_torchcam_runs_on_the_network(network, pixels, name, precision):
    network.set_dtype(getattr(torch, precision))
    maps = by_torchcam(network, pixels, name, network.evidence_layers)
    grids = [(4, 4), (2, 2)] if name != "CAM" else [(2, 2)]
    assert [m.shape[-2:] for m in maps] == grids
    for levels in maps:  # Grad-CAM++ of tiny gradients stays far below 1 there
        assert levels.isfinite().all()
        assert (levels.amax((1, 2)) > 0).all()


@pytest.mark.parametrize("name", GRAD_CAM)
def test_pytorch_grad_cam_looks_into_any_layer_in_float32(network, pixels, name):
    network.set_dtype(torch.float32)
    maps = by_grad_cam(network, pixels, name, [network.tail[0], network.tail[-1]])
    assert np.isfinite(maps).all() and (maps.max((1, 2)) > 0.9).all()


@pytest.mark.parametrize("name", ["GradCAM", "GradCAMPlusPlus", "LayerCAM"])
def test_frozen_layers_are_explained_from_pixels_with_gradients(network, pixels, name):
    network.set_dtype(torch.float32)
    pixels = pixels.requires_grad_()
    maps = by_grad_cam(network, pixels, name, [network.trunk[-1]])
    assert np.isfinite(maps).all() and (maps.max((1, 2)) > 0.9).all()


def test_torchcam_finds_a_layer_by_itself(network, pixels):
    methods = pytest.importorskip("torchcam.methods")
    with methods.LayerCAM(network, input_shape=(3, 64, 64)) as method:
        (found,) = method(1, network(pixels))
    assert len(found) == 2 and found.isfinite().all()


# Data sets ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_paths(tiny_classifier, fitted_parts):
    """Return a classifier fitted on paths, and what it says, to compare with."""
    return tiny_classifier(max_epochs=1).fit(fitted_parts)


@pytest.fixture
def image_folder(fitted_parts):
    from torchvision.datasets import ImageFolder

    return ImageFolder(fitted_parts)


def test_a_torchvision_folder_is_as_good_as_its_paths(
    tiny_classifier, fitted_parts, by_paths, image_folder
):
    clf = tiny_classifier(max_epochs=1).fit(image_folder)
    assert clf.classes_.tolist() == ["good", "scratch"]
    expected = by_paths.predict_proba(find_images(fitted_parts))
    np.testing.assert_array_equal(clf.predict_proba(image_folder), expected)
    assert clf.score(image_folder) == by_paths.score(fitted_parts)
    assert clf.evaluate(image_folder).to_dict()["n_defective"] == 6


def test_a_data_loader_with_tensors_is_as_good_as_paths(tiny_classifier, fitted_parts, by_paths):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import ToTensor

    loader = DataLoader(ImageFolder(fitted_parts, transform=ToTensor()), batch_size=3)
    clf = tiny_classifier(max_epochs=1, n_jobs=3).fit(loader)
    expected = by_paths.predict_proba(find_images(fitted_parts))
    np.testing.assert_array_equal(clf.predict_proba(loader), expected)


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_items_are_fetched_a_batch_at_a_time(by_paths, fitted_parts, n_jobs):
    fetched = []

    class Parts(Dataset):
        paths = find_images(fitted_parts)

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, index):
            fetched.append(index)
            return Image.open(self.paths[index])

    clf = copy.deepcopy(by_paths).set_params(n_jobs=n_jobs, batch_size=4)
    stream = clf.localize_iter(Parts())
    first = next(stream)
    assert len(fetched) <= 4 + 2 * n_jobs < len(Parts())
    assert first.image.shape == (48, 48, 3)
    rest = list(stream)
    assert [f.probability for f in (first, *rest)] == [
        f.probability for f in by_paths.localize(Parts.paths)
    ]


def test_lazy_items_are_cross_validated(tiny_classifier, image_folder):
    X, y = list(dataset_images(image_folder)), dataset_labels(image_folder)
    scores = cross_val_score(tiny_classifier(max_epochs=1), X, y, cv=2)
    assert scores.shape == (2,) and np.isfinite(scores).all()


def test_memory_serves_data_sets_too(tiny_classifier, image_folder, by_paths, tmp_path):
    for _ in range(2):
        clf = tiny_classifier(max_epochs=1, memory=tmp_path).fit(image_folder)
        np.testing.assert_array_equal(clf.held_out_probability_, by_paths.held_out_probability_)


def test_near_duplicates_are_found_in_data_sets(image_folder):
    pairs = find_near_duplicates(ConcatDataset([image_folder, Subset(image_folder, [3, 0])]))
    assert [3, 14] in pairs.tolist() and [0, 15] in pairs.tolist()


def test_a_hugging_face_data_set_is_as_good_as_its_paths(tiny_classifier, fitted_parts, by_paths):
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    paths = find_images(fitted_parts)
    names = ["scratch", "good"]  # in this order a bare 0 would be taken for good
    numbers = [names.index(Path(path).parent.name) for path in paths]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    rows = datasets.Dataset.from_dict({"image": paths, "label": numbers}, features=features)
    expected = by_paths.predict_proba(paths)
    for X, y in [(rows, None), (rows["image"], rows["label"]), (rows, rows["label"])]:
        clf = tiny_classifier(max_epochs=1, n_jobs=2).fit(X, y)
        assert clf.classes_.tolist() == ["good", "scratch"]
        np.testing.assert_array_equal(clf.predict_proba(X), expected)
    found = clf.localize(rows["image"])
    assert found[3].image.shape == (48, 48, 3)
    assert clf.score(rows["image"], rows["label"]) == by_paths.score(fitted_parts)


@pytest.mark.parametrize("kind", ["pandas", "arrow", "polars"])
def test_formats_of_hugging_face_are_read_alike(kind):
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    pytest.importorskip(kind.replace("arrow", "pyarrow"))
    images = [Image.new("RGB", (6, 5), (value, 0, 0)) for value in range(3)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    columns = {"image": images, "label": [1, 0, 1]}
    rows = datasets.Dataset.from_dict(columns, features=features).with_format(kind)
    for y in (None, rows["label"]):
        sources, labels = labelled_sources(rows, y, None)
        assert labels == ["good", "bad", "good"]
        assert [np.asarray(source)[0, 0, 0] for source in sources.items] == [0, 1, 2]


# skorch ------------------------------------------------------------------------------------------


def test_skorch_trains_the_network(fitted, fitted_parts):
    skorch = pytest.importorskip("skorch", exc_type=ImportError)
    clf = copy.deepcopy(fitted)
    network = clf.network_.set_dtype(torch.float32)
    paths = find_images(fitted_parts)
    X = clf.preprocess_.batch([read_image(path) for path in paths]).numpy()
    y = np.array([Path(path).parent.name for path in paths])
    nn.init.normal_(network.head.convs[0].weight)  # something to learn again
    nn.init.normal_(network.head.convs[1].weight)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    net = skorch.NeuralNetClassifier(
        network,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=1e-2,
        max_epochs=8,
        batch_size=7,
        train_split=None,
        verbose=0,
    )
    net.fit(X, np.searchsorted(clf.classes_, y))
    losses = net.history[:, "train_loss"]
    assert losses[-1] < losses[0] / 2
    assert net.module_ is network
    after = network.state_dict()
    changed = {name for name in before if (after[name] != before[name]).any()}
    assert {name.split(".")[0] for name in changed} == {"tail", "head"}
    probabilities = net.predict_proba(X)
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(X))
    np.testing.assert_allclose(net.predict(X), logits.argmax(1).numpy())
    assert probabilities.shape == (14, 2)
    assert not (clf.evidence(paths) == fitted.evidence(paths)).all()  # it is the classifier's own
