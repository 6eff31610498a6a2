"""The command line: folders and files in, tables, JSON and pictures out.

Owns options, what is printed, which files are written and the exit codes. The work is done by the
estimator and the metrics, imported inside the commands, so that ``--help`` needs no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import sys
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import defectcam

if TYPE_CHECKING:
    from defectcam.classifier import DefectCAMClassifier
    from defectcam.results import Localization

__all__ = ["main"]

DONE, DEFECTS_FOUND, USAGE, BAD_DATA, BUG, BROKEN_PIPE, INTERRUPTED = 0, 1, 2, 3, 70, 141, 130

_EXIT_CODES = """\
exit codes:
  0    done
  1    done, and an image is called defective (only with --fail-on-defect)
  2    the command or one of its options is wrong
  3    images, folder, model or weights cannot be read, or the output not written
  70   a bug in defectcam; please report it with the traceback
  130  interrupted (Ctrl-C)"""

_RESULTS = "results.json"

#: As `defectcam.attribution` has them, which would load torch.
_METHODS = ("cam", "gradcam", "gradcam++", "scorecam", "layercam", "eigencam")

_T = TypeVar("_T")


class _UsageError(Exception):
    """The command cannot be carried out as it was given."""


# --- Options ----------------------------------------------------------------------------------


class _Parameter(NamedTuple):
    """An estimator's parameter as an option of `fit`; the name is that of the API."""

    name: str
    default: Any
    parse: Callable[[str], Any] | None  # None: a switch, --name and --no-name
    help: str
    choices: tuple[str, ...] | None = None
    metavar: str | None = None


def _or_none(parse: Callable[[str], _T]) -> Callable[[str], _T | None]:
    def parse_or_none(text: str) -> _T | None:
        return None if text.lower() == "none" else parse(text)

    parse_or_none.__name__ = f"{parse.__name__} or none"  # argparse names it in its message
    return parse_or_none


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _integer_or_text(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _tile(text: str) -> int | tuple[int, int] | str:
    return text if text == "auto" else _size(text)


def _share_or_pixels(text: str) -> float | int:
    return int(text) if text.isdigit() else float(text)


def _size(text: str) -> int | tuple[int, int]:
    height, times, width = text.partition("x")
    return (int(height), int(width)) if times else int(height)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


_size.__name__, _integers.__name__ = "size", "list of integers"
_tile.__name__, _share_or_pixels.__name__ = "size or auto", "share or number of pixels"

_INT_OR_NONE, _FLOAT_OR_NONE = _or_none(int), _or_none(float)

_PARAMETERS: dict[str, tuple[_Parameter, ...]] = {
    "network": (
        _Parameter("backbone", "efficientnet_lite0", str, "torchvision or timm network"),
        _Parameter(
            "weights",
            "imagenet",
            _or_none(str),
            "pre-trained weights: imagenet, a .pth or .safetensors file, or none",
        ),
        _Parameter(
            "image_size", 320, _size, "the network's input in pixels: N, or HxW", metavar="SIZE"
        ),
        _Parameter(
            "resize", "stretch", str, "fill the input, or keep the aspect", ("stretch", "pad")
        ),
        _Parameter("normalisation", "backbone", str, "of the pixels' values", ("backbone", "unit")),
        _Parameter("trainable_stages", 2, int, "how many of the last stages are trained"),
        _Parameter("evidence_stages", 2, int, "how many of the last stages the head reads"),
        _Parameter("normalise_evidence", True, None, "batch-normalise levels before the head"),
        _Parameter(
            "pooling",
            "novelty_top_k",
            str,
            "how a map becomes a class score",
            ("average", "max", "novelty_top_k", "top_k"),
        ),
        _Parameter("pooling_fraction", 0.02, float, "share of positions in the top k"),
        _Parameter(
            "novelty_strides",
            (4, 8),
            _integers,
            "frozen stages that describe a patch",
            metavar="N,N",
        ),
        _Parameter("codebook_size", 1000, int, "patches that stand for all good ones"),
        _Parameter("head_init", "normal", str, "first weights of the head", ("linear", "normal")),
    ),
    "labels": (
        _Parameter(
            "target",
            "anomaly",
            str,
            "all defect types as one class, or a class each",
            ("anomaly", "type"),
        ),
        _Parameter(
            "good_label",
            None,
            _or_none(str),
            "sub-folder of good parts; none: by name (good, ok, normal, ...)",
        ),
        _Parameter(
            "class_weight",
            "balanced",
            _or_none(_number_or_text),
            "in the loss: balanced, none, or a number for defects where good parts have 1",
        ),
    ),
    "training": (
        _Parameter("optimizer", "adamw", str, "optimiser", ("adam", "adamw", "sgd")),
        _Parameter("learning_rate", 3e-4, float, "of the trained stages"),
        _Parameter("head_learning_rate", 1e-2, _FLOAT_OR_NONE, "of the head; none: the same"),
        _Parameter("weight_decay", 1e-2, float, "weight decay"),
        _Parameter(
            "schedule",
            "one_cycle",
            str,
            "course of the learning rates",
            ("constant", "one_cycle"),
        ),
        _Parameter(
            "max_epochs", "auto", _integer_or_text, "passes over the training images, per fold"
        ),
        _Parameter("batch_size", 16, int, "images per step"),
        _Parameter("label_smoothing", 0.0, float, "label smoothing of the loss"),
        _Parameter("deep_supervision", True, None, "a loss for each evidence level"),
        _Parameter("train_batch_norm", True, None, "batch statistics while training"),
        _Parameter("early_stopping", False, None, "stop when the training loss stands still"),
        _Parameter("n_iter_no_change", 3, int, "for that many epochs"),
        _Parameter(
            "stop_at_train_accuracy",
            None,
            _FLOAT_OR_NONE,
            "stop at this share of training images right",
        ),
        _Parameter(
            "augmentation",
            "flips",
            str,
            "views of each training image",
            ("flips", "horizontal_flip", "none"),
        ),
        _Parameter("warm_start", False, None, "of the API: start from the present weights"),
        _Parameter(
            "replay_size", None, _INT_OR_NONE, "of the API: images kept for partial_fit; none: auto"
        ),
        _Parameter("cv", 3, _INT_OR_NONE, "folds that thresholds are learned on; none: no folds"),
    ),
    "answers": (
        _Parameter("heatmap", "fused", str, "kind of heatmap", ("cam", "fused", "min_max_cam")),
        _Parameter(
            "threshold",
            "balanced",
            _number_or_text,
            "defective from this probability: balanced, 'recall>=0.99' (of the defects), "
            "'cost=20:1' (an escape costs 20 times an overkill), or a number",
        ),
        _Parameter("self_training", True, None, "let the heatmap learn from its own peaks"),
        _Parameter("box_threshold", 1.0, float, "boxes are where the heatmap is above this"),
        _Parameter("box_peak_fraction", 0.6, float, "and at least this share of its peak"),
        _Parameter("tighten_boxes", True, None, "cut back to where the heatmap falls most steeply"),
        _Parameter("min_area", 16, int, "smallest region with a box, in pixels of the image"),
        _Parameter("max_boxes", None, _INT_OR_NONE, "most boxes per image"),
        _Parameter("merge_distance", None, _FLOAT_OR_NONE, "boxes this near become one, in pixels"),
        _Parameter(
            "tile",
            None,
            _or_none(_tile),
            "see large images in tiles of N or HxW pixels; auto: by the size of the largest image",
            metavar="SIZE",
        ),
        _Parameter("overlap", 0.125, _share_or_pixels, "of tiles: a share such as 0.25, or pixels"),
    ),
    "machine": (
        _Parameter("cache_size", 2**30, int, "bytes of features held in memory"),
        _Parameter(
            "memory",
            None,
            _or_none(str),
            "folder where features are kept for the next fits on these images; none: nowhere",
            metavar="DIR",
        ),
        _Parameter("device", "auto", str, "auto, cpu, cuda, cuda:1, mps, ..."),
        _Parameter(
            "precision",
            "auto",
            str,
            "what convolutions compute in; auto: bfloat16 where the device is quick at it",
            ("auto", "bfloat16", "float32"),
        ),
        _Parameter("n_jobs", None, _INT_OR_NONE, "threads that read images; none: up to 8"),
        _Parameter("random_state", None, _INT_OR_NONE, "seed of everything random"),
    ),
}


def _add_parameter(group: argparse._ArgumentGroup, parameter: _Parameter) -> None:
    default = "none" if parameter.default is None else parameter.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    options: dict[str, Any] = {
        "dest": parameter.name,
        "default": argparse.SUPPRESS,  # what is not given is left to the API, or to the recipe
        "help": f"{parameter.help} (default: {default})",
    }
    if parameter.parse is None:
        options["action"] = argparse.BooleanOptionalAction
        options["help"] = f"{parameter.help} (default: {'yes' if default else 'no'})"
    else:
        options["type"] = parameter.parse
        options["choices"] = parameter.choices
        if parameter.choices is None:
            options["metavar"] = parameter.metavar or parameter.name.rpartition("_")[2].upper()
    group.add_argument(f"--{parameter.name.replace('_', '-')}", **options)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="defectcam",
        description="Train on good and defective images, and see where the defect is. Progress "
        "goes to standard error, results to standard output.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"defectcam {defectcam.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        added = commands.add_parser(
            name,
            help=text[0].lower() + text[1:].rstrip("."),
            description=text,
            epilog=_EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        added.add_argument("--quiet", action="store_true", help="no progress on standard error")
        return added

    fit = command("fit", _fit, "Train on a folder of good and defective images.")
    fit.add_argument(
        "folder", metavar="FOLDER", help="a sub-folder per class, or the MVTec AD layout"
    )
    fit.add_argument("-o", "--output", metavar="FILE", required=True, help="the model to write")
    fit.add_argument(
        "--recipe", choices=("vgg16_cam",), help="other defaults: those of a published method"
    )
    _add_output_options(fit)
    for title, parameters in _PARAMETERS.items():
        group = fit.add_argument_group(title)
        for parameter in parameters:
            _add_parameter(group, parameter)

    predict = command("predict", _predict, "Print label and probability of a defect per image.")
    _add_images(predict)
    predict.add_argument("--csv", metavar="FILE", help="write the table there, do not print it")
    _add_output_options(predict)
    _add_machine(predict)

    localize = command("localize", _localize, "Find the boxes; write an overlay per image.")
    _add_images(localize)
    localize.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        required=True,
        help=f"folder for the overlays, in sub-folders as the images are, and {_RESULTS}",
    )
    localize.add_argument(
        "--method",
        choices=_METHODS,
        default="cam",
        help="what makes the heatmap: the model's own, or a method of the package grad-cam "
        "(default: cam, the model's own)",
    )
    localize.add_argument(
        "--tile",
        metavar="SIZE",
        type=_tile,
        help="see images in tiles of N or HxW pixels; auto: by their size (default: as in fit)",
    )
    localize.add_argument(
        "--overlap",
        metavar="N",
        type=_share_or_pixels,
        help="of tiles: a share such as 0.25, or pixels (default: the model's)",
    )
    _add_output_options(localize)
    _add_machine(localize)

    evaluate = command("evaluate", _evaluate, "Measure on labelled images: missed defects first.")
    evaluate.add_argument("model", metavar="MODEL", help="a file that fit has written")
    evaluate.add_argument(
        "folder", metavar="FOLDER", help="as for fit; of the MVTec AD layout, test/ is taken"
    )
    evaluate.add_argument(
        "--good-label", metavar="NAME", help="sub-folder of good parts (default: the model's)"
    )
    evaluate.add_argument(
        "--masks",
        metavar="DIR",
        help="masks as DIR/<type>/<stem>_mask.png (default: ground_truth in or beside FOLDER)",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    _add_machine(evaluate)

    info = command("info", _info, "Print what a model file contains.")
    info.add_argument("model", metavar="MODEL", help="a file that fit has written")
    info.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_output_options(parser: Any) -> None:
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_images(parser: Any) -> None:
    parser.add_argument("model", metavar="MODEL", help="a file that fit has written")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="image files and folders")
    parser.add_argument(
        "--fail-on-defect",
        action="store_true",
        help=f"exit with {DEFECTS_FOUND} if an image is called defective",
    )


def _add_machine(parser: Any) -> None:
    parser.add_argument("--device", metavar="DEVICE", help="default: the model's")
    parser.add_argument("--batch-size", metavar="N", type=int, help="default: the model's")
    parser.add_argument("--n-jobs", metavar="N", type=int, help="threads that read images")


# --- Commands ---------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Without the program's name; by default from the process.

    Returns
    -------
    int
        The exit code, as ``--help`` lists them.
    """
    try:
        args = _make_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help or what is wrong
        return stop.code if isinstance(stop.code, int) else USAGE
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = args.run(args)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        print("defectcam: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `defectcam predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        return BROKEN_PIPE
    except _UsageError as error:
        print(f"defectcam: error: {error}", file=sys.stderr)
        return USAGE
    except Exception as error:
        if _is_about_data(error):
            print(f"defectcam: error: {error}", file=sys.stderr)
            return BAD_DATA
        traceback.print_exc()
        return BUG


def _is_about_data(error: Exception) -> bool:
    if isinstance(error, OSError):
        return True
    from defectcam.images import ImageReadError

    if isinstance(error, ImageReadError):
        return True
    from defectcam.persistence import ModelFileError

    return isinstance(error, ModelFileError)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"defectcam: warning: {message}", file=sys.stderr)


def _fit(args: argparse.Namespace) -> int:
    _refuse_existing(args.output, args.force)
    names = [p.name for parameters in _PARAMETERS.values() for p in parameters]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    from defectcam.folders import labelled_folder
    from defectcam.images import ImageReadError

    labelled_folder(args.folder, given.get("good_label"))  # refuse a wrong folder early
    from defectcam.classifier import DefectCAMClassifier
    from defectcam.training import TrainingDivergedError

    given["verbose"] = int(not args.quiet)
    if args.recipe is None:
        clf = DefectCAMClassifier(**given)
    else:
        clf = DefectCAMClassifier.from_recipe(args.recipe, **given)
    try:
        with _interruption_noticed() as interruption:
            clf.fit(args.folder)
    except ImageReadError:
        raise
    except (ValueError, TrainingDivergedError) as error:  # of a parameter: the data are checked
        raise _UsageError(error) from error
    clf.save(args.output, overwrite=args.force)
    report = {"model": args.output, **clf.info()}
    _print_report(report, args.json)
    return INTERRUPTED if interruption else DONE


def _predict(args: argparse.Namespace) -> int:
    if args.csv is not None:
        _refuse_existing(args.csv, args.force)
    paths = _list_images(args.images)
    clf = _load(args)
    records = []
    print_rows = args.csv is None and not args.json
    for path, found in zip(paths, _found(clf, paths, args.quiet, print_rows), strict=True):
        records.append(
            {
                "image": path,
                "label": found.label,
                "probability": found.probability,
                "is_defect": found.is_defect,
            }
        )
        if print_rows:
            print(f"{_answer(clf, found)}  {path}")
    if args.csv is not None:
        from defectcam.files import write_atomically

        write_atomically(args.csv, _as_csv(records).encode())
    if args.json:
        _print_json(records)
    written = "" if args.csv is None else f"; wrote {args.csv}"
    return _conclude(args, [record["is_defect"] for record in records], written)


def _localize(args: argparse.Namespace) -> int:
    output = Path(args.output)
    _refuse_existing_folder(output, args.force)
    paths = _list_images(args.images, without=output)
    overlays = _overlay_names(paths, args.images)
    results = output.resolve()
    drawn_over = {(results / name).resolve() for name in overlays} & {
        Path(path).resolve() for path in paths
    }
    if drawn_over:
        raise _UsageError(
            f"the overlay of {min(drawn_over)} would replace the image: give another folder."
        )
    _refuse_missing_method(args.method)
    clf = _load(args)
    _refuse_wrong_tiles(args, clf)
    records = []
    localized = _found(
        clf,
        paths,
        args.quiet,
        rows_printed=not args.json,
        method=args.method,
        tile=args.tile,
        overlap=args.overlap,
    )
    with _staged(output) as folder:
        for path, name, found in zip(paths, overlays, localized, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            found.save(folder / name)
            records.append({**found.to_dict(), "overlay": name})
            if not args.json:
                boxes = f"{len(found.boxes)} box{'' if len(found.boxes) == 1 else 'es'}"
                print(f"{_answer(clf, found)}  {boxes:>8}  {path}")
        document = {
            "defectcam": defectcam.__version__,
            "model": os.fspath(args.model),
            "method": args.method,
            "images": records,
        }
        (folder / _RESULTS).write_text(_as_json(document), encoding="utf-8")
    if args.json:
        _print_json(document)
    written = f"; wrote their overlays and {_RESULTS} to {output}"
    return _conclude(args, [record["is_defect"] for record in records], written)


def _evaluate(args: argparse.Namespace) -> int:
    from defectcam.evaluation import evaluate
    from defectcam.folders import labelled_folder

    folder = Path(args.folder)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        folder /= "test"
        print(f"defectcam: evaluating on {folder}", file=sys.stderr)
    if args.good_label is not None:
        labelled_folder(folder, args.good_label)  # refuse a wrong folder before loading a model
    if args.masks is not None and not Path(args.masks).is_dir():
        raise _UsageError(f"--masks {args.masks}: there is no such folder.")
    clf = _load(args)
    clf.set_params(verbose=int(not args.quiet and sys.stderr.isatty()))
    report = evaluate(clf, folder, masks=args.masks, good_label=args.good_label)
    if args.json:
        _print_json(report.to_dict())
    else:
        print(report)
    return DONE


def _info(args: argparse.Namespace) -> int:
    from defectcam.persistence import load, read_metadata

    written = read_metadata(args.model)["versions"]
    info = load(args.model, device="cpu").info()
    for here in ("defectcam", "torch", "python", "device"):  # of this machine, not of the file
        info.pop(here, None)
    report = {"file": args.model, "bytes": os.path.getsize(args.model), **info}
    _print_report(report | {"written_with": written}, args.json)
    return DONE


# --- Inputs -----------------------------------------------------------------------------------


def _load(args: argparse.Namespace) -> DefectCAMClassifier:
    from defectcam.persistence import ModelFileError, load

    try:
        clf = load(args.model, device=args.device)
    except ModelFileError:
        raise
    except ValueError as error:  # the device
        raise _UsageError(error) from error
    for name in ("batch_size", "n_jobs"):
        if getattr(args, name) is not None:
            clf.set_params(**{name: getattr(args, name)})
    if clf.batch_size < 1:
        raise _UsageError(f"--batch-size {clf.batch_size}: at least 1 is needed.")
    return clf


def _list_images(arguments: Sequence[str], without: Path | None = None) -> list[str]:
    """List the images of files and folders, each once, and refuse unreadable ones.

    Images below `without` are skipped where it lies in one of the folders: those are overlays.
    """
    from defectcam.images import ImageReadError, check_readable, find_images
    from defectcam.large_images import is_read_in_parts

    paths: dict[str, str] = {}
    for argument in arguments:
        found = find_images(argument) if os.path.isdir(argument) else [argument]
        if without is not None and Path(argument).resolve() in without.resolve().parents:
            found = [p for p in found if without.resolve() not in Path(p).resolve().parents]
        for path in found:
            paths.setdefault(os.path.abspath(path), path)
    if not paths:
        raise ImageReadError(f"found no images in {', '.join(map(repr, arguments))}.")
    # Pillow refuses headers of huge files, which may be read in parts.
    check_readable(path for path in paths.values() if not is_read_in_parts(path))
    return list(paths.values())


def _overlay_names(paths: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Name each overlay as its image, relative to the deepest folder that holds all arguments."""
    folders = [
        os.path.abspath(a) if os.path.isdir(a) else os.path.dirname(os.path.abspath(a))
        for a in arguments
    ]
    base = os.path.commonpath(folders)
    names = [Path(os.path.relpath(os.path.abspath(path), base)) for path in paths]
    short = [name.with_suffix(".png").as_posix() for name in names]
    counts: dict[str, int] = {}
    for name in short:
        counts[name.lower()] = counts.get(name.lower(), 0) + 1
    # part.jpg and part.tif keep their suffixes, or one overlay would replace the other.
    return [
        one if counts[one.lower()] == 1 else f"{name.as_posix()}.png"
        for one, name in zip(short, names, strict=True)
    ]


def _refuse_wrong_tiles(args: argparse.Namespace, clf: DefectCAMClassifier) -> None:
    from defectcam.tiles import as_overlap, as_tile

    tile = clf.tile_ if args.tile is None else args.tile
    if tile is None and args.overlap is not None:
        raise _UsageError("--overlap is about tiles: give --tile too.")
    if tile is not None and args.method != "cam":
        raise _UsageError(f"--method {args.method} does not work on tiles.")
    try:
        if tile not in (None, "auto"):
            as_overlap(clf.overlap if args.overlap is None else args.overlap, as_tile(tile))
    except ValueError as error:
        raise _UsageError(error) from error


def _refuse_missing_method(method: str) -> None:
    if method == "cam":
        return
    from defectcam.attribution import check_method

    try:
        check_method(method)
    except ImportError as error:
        raise _UsageError(error) from error


def _found(
    clf: DefectCAMClassifier,
    paths: Sequence[str],
    quiet: bool,
    rows_printed: bool = False,
    **options: Any,
) -> Iterator[Localization]:
    from tqdm import tqdm

    # Rows on the same terminal are progress enough, and would break up the bar.
    disable = True if quiet or (rows_printed and sys.stdout.isatty()) else None
    with tqdm(total=len(paths), desc="images", unit="image", disable=disable) as bar:
        for found in clf.localize_iter(paths, **options):
            yield found
            bar.update()


@contextlib.contextmanager
def _interruption_noticed() -> Iterator[list[str]]:
    """List the warnings by which `fit` says that Ctrl-C ended it early; all are still shown."""
    noticed: list[str] = []
    show = warnings.showwarning

    def notice(message: Warning | str, *details: Any, **more: Any) -> None:
        if str(message).startswith("Training was interrupted"):
            noticed.append(str(message))
        show(message, *details, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = notice
        yield noticed


# --- Outputs ----------------------------------------------------------------------------------


def _refuse_existing(path: str, force: bool) -> None:
    target = Path(path)
    if target.is_dir():
        raise _UsageError(f"{target} is a folder: give the name of a file.")
    if target.exists() and not force:
        raise _UsageError(f"{target} exists: give another name, or --force to overwrite it.")
    if not target.parent.is_dir():
        raise _UsageError(f"the folder {target.parent} does not exist: make it first.")


def _refuse_existing_folder(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise _UsageError(f"{folder} is a file: give a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise _UsageError(
            f"{folder} is not empty: give another folder, or --force to overwrite files in it."
        )
    if not folder.resolve().parent.is_dir():
        raise _UsageError(f"the folder {folder.parent} does not exist: make it first.")


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Give a folder to write into; its files move to `folder` at the end if nothing fails."""
    target = folder.resolve()
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    staging.mkdir()
    try:
        yield staging
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        for file in sorted(files, key=lambda path: path.name == _RESULTS):  # the list comes last
            place = target / file.relative_to(staging)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _answer(clf: DefectCAMClassifier, found: Localization) -> str:
    width = max(len(str(label)) for label in clf.classes_)
    return f"{found.label!s:<{width}}  {found.probability:.3f}"


def _conclude(args: argparse.Namespace, is_defect: Sequence[bool], written: str) -> int:
    n_defects = sum(is_defect)
    if not args.quiet:
        print(
            f"{len(is_defect)} images: {n_defects} defective, {len(is_defect) - n_defects} good"
            f"{written}",
            file=sys.stderr,
        )
    return DEFECTS_FOUND if n_defects and args.fail_on_defect else DONE


def _as_csv(records: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(records)
    return text.getvalue()


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False, default=lambda label: label.item()) + "\n"


def _print_json(value: Any) -> None:
    print(_as_json(value), end="")


def _print_report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(report)
        return
    width = max(map(len, report))
    for name, value in report.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        print(f"{name:<{width}}  {value}")
