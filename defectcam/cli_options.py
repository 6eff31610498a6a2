"""Commands and options of the command line, and its exit codes.

Owns their names, defaults and help. It carries nothing out and imports nothing of the library, so
that ``--help`` is quick: what other modules know too is repeated here, and a test compares them.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import defectcam

__all__ = [
    "ANNOTATION_FORMATS",
    "ANSWERS_DIFFER",
    "BAD_DATA",
    "BROKEN_PIPE",
    "BUG",
    "DEFECTS_FOUND",
    "DONE",
    "INTERRUPTED",
    "METHODS",
    "OFF",
    "PARAMETERS",
    "SERVICE_OPTIONS",
    "TABLE_FORMATS",
    "USAGE",
    "make_parser",
]

DONE, DEFECTS_FOUND, USAGE, BAD_DATA, BUG, BROKEN_PIPE, INTERRUPTED = 0, 1, 2, 3, 70, 141, 130
ANSWERS_DIFFER = 4

_EXIT_CODES = """\
exit codes:
  0    done
  1    done, and an image is called defective (only with --fail-on-defect)
  2    the command or one of its options is wrong
  3    images, folder, model or weights cannot be read, or the output not written
  4    an exported model answers otherwise, or int8 costs too much; nothing is written (export)
  70   a bug in defectcam; please report it with the traceback
  130  interrupted (Ctrl-C)"""

#: As `defectcam.tables` and `defectcam.annotations` have them, which would load NumPy.
TABLE_FORMATS = ("csv", "jsonl", "parquet")
ANNOTATION_FORMATS = ("coco", "cvat", "labelme", "labelstudio", "voc", "yolo")

#: As `defectcam.attribution` has them, which would load torch.
METHODS = ("cam", "gradcam", "gradcam++", "scorecam", "layercam", "eigencam")

#: Switches off what a model stores, where an option that is not given leaves it as it is.
OFF = "none"

_T = TypeVar("_T")


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


def _or_off(parse: Callable[[str], _T]) -> Callable[[str], _T | str]:
    def parse_or_off(text: str) -> _T | str:
        return OFF if text.lower() == OFF else parse(text)

    parse_or_off.__name__ = f"{parse.__name__} or none"
    return parse_or_off


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


def _threads(text: str) -> int:
    number = int(text)
    if number == 0:
        raise argparse.ArgumentTypeError("0 threads read nothing: 1 or more, -1 for all processors")
    return number


_threads.__name__ = "int"  # argparse names it where the text is no number


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


_size.__name__, _integers.__name__ = "size", "list of integers"
_tile.__name__, _share_or_pixels.__name__ = "size or auto", "share or number of pixels"

_INT_OR_NONE, _FLOAT_OR_NONE = _or_none(int), _or_none(float)

PARAMETERS: dict[str, tuple[_Parameter, ...]] = {
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
        _Parameter("trainable_stages", 1.5, float, "how many of the last stages are trained"),
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
        _Parameter("cv", 2, _INT_OR_NONE, "folds that thresholds are learned on; none: no folds"),
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
        _Parameter(
            "second_look",
            None,
            _FLOAT_OR_NONE,
            "see defective images again, so many times larger (1.3): a finer heatmap; none: once",
        ),
        _Parameter("box_threshold", 1.0, float, "boxes are where the heatmap is above this"),
        _Parameter("box_peak_fraction", 0.6, float, "and at least this share of its peak"),
        _Parameter("tighten_boxes", True, None, "fitted to the heatmap's hills"),
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
        _Parameter("cache_size", 2**28, int, "bytes of features held in memory"),
        _Parameter(
            "memory",
            None,
            _or_none(str),
            "folder where features and trainings are kept for the next fits; none: nowhere",
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
        _Parameter("n_jobs", None, _or_none(_threads), "threads that read images; none: up to 8"),
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


class _Parser(argparse.ArgumentParser):
    """Complains with the usage of the command that is wrong, and names an option that was meant."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._parser_of(parsed.command).error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        super().error(message + self._meant())

    def _parser_of(self, command: str) -> argparse.ArgumentParser:
        choices = (a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction))
        parser: argparse.ArgumentParser = next(choices)[command]
        return parser

    def _meant(self) -> str:
        """Name the options that those look like which the command does not have."""
        meant = ""
        for argument in self._given:
            name = argument.partition("=")[0]
            if argument == "--":
                break
            if name.startswith("--") and name not in self._option_string_actions:
                near = difflib.get_close_matches(name, self._option_string_actions, n=1)
                meant += "".join(f"; did you mean {one} by {name}?" for one in near)
        return meant


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; what it parses has the command's name as ``command``."""
    parser = _Parser(
        prog="defectcam",
        description="Train on good and defective images, and see where the defect is. Progress "
        "goes to standard error, results to standard output.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"defectcam {defectcam.__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )
    for name, (text, add_options) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text[0].lower() + text[1:].rstrip("."),
            description=text,
            epilog=_EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_argument("--quiet", action="store_true", help="no progress on standard error")
        add_options(command)
    return parser


def _add_fit(fit: Any) -> None:
    fit.add_argument(
        "folder", metavar="FOLDER", help="a sub-folder per class, or the MVTec AD layout"
    )
    fit.add_argument("-o", "--output", metavar="FILE", required=True, help="the model to write")
    _add_recipe(fit)
    fit.add_argument(
        "--config",
        metavar="FILE",
        help="parameters in a TOML file, see `defectcam init`; options given here win over it",
    )
    fit.add_argument(
        "--resume",
        metavar="FILE",
        help="keep the training there after each epoch, and go on from it if it is there",
    )
    _add_output_options(fit)
    for title, parameters in PARAMETERS.items():
        group = fit.add_argument_group(title)
        for parameter in parameters:
            _add_parameter(group, parameter)


def _add_predict(predict: Any) -> None:
    _add_images(predict)
    predict.add_argument(
        "-o", "--output", metavar="FILE", help="write the table there, do not print it"
    )
    predict.add_argument(
        "--format",
        choices=TABLE_FORMATS,
        help="of the table (default: what the file's suffix says); without a file, it is printed",
    )
    predict.add_argument("--csv", metavar="FILE", help="short for -o FILE --format csv")
    _add_output_options(predict)
    _add_loading(predict)


def _add_localize(localize: Any) -> None:
    _add_images(localize)
    localize.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        required=True,
        help="folder for the overlays, in sub-folders as the images are, and results.json",
    )
    localize.add_argument(
        "--format",
        choices=TABLE_FORMATS,
        help="write a table of the results too: results.csv, .jsonl or .parquet",
    )
    localize.add_argument(
        "--method",
        choices=METHODS,
        help="what makes the heatmap: the model's own, or a method of the package grad-cam "
        "(default: cam, the model's own)",
    )
    localize.add_argument(
        "--tile",
        metavar="SIZE",
        type=_or_off(_tile),
        help="see images in tiles of N or HxW pixels; auto: by their size; none: whole (default: "
        "as in fit)",
    )
    localize.add_argument(
        "--overlap",
        metavar="N",
        type=_share_or_pixels,
        help="of tiles: a share such as 0.25, or pixels (default: the model's)",
    )
    _add_output_options(localize)
    _add_loading(localize)


def _add_annotate(annotate: Any) -> None:
    _add_images(annotate)
    annotate.add_argument("--format", choices=ANNOTATION_FORMATS, required=True)
    annotate.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="folder for the annotations"
    )
    annotate.add_argument(
        "--shapes",
        choices=("box", "polygon"),
        help="what is drawn (default: box; for coco, both)",
    )
    annotate.add_argument(
        "--tolerance",
        metavar="PIXELS",
        type=float,
        default=0.0,
        help="how far polygons may run beside a region's edge, to have fewer corners (default: 0)",
    )
    annotate.add_argument(
        "--copy-images", action="store_true", help="copy the images beside their annotations"
    )
    _add_output_options(annotate)
    _add_loading(annotate)


def _add_evaluate(evaluate: Any) -> None:
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
    _add_json(evaluate)
    _add_loading(evaluate)


def _add_report(report: Any) -> None:
    report.add_argument("model", metavar="MODEL", help="a file that fit has written")
    report.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help="a folder as for evaluate; or, without labels, image files and folders",
    )
    report.add_argument("-o", "--output", metavar="FILE", required=True, help="the HTML to write")
    report.add_argument(
        "--no-labels", action="store_true", help="do not take sub-folders for labels"
    )
    report.add_argument(
        "--good-label", metavar="NAME", help="sub-folder of good parts (default: the model's)"
    )
    report.add_argument("--masks", metavar="DIR", help="as for evaluate")
    report.add_argument("--title", metavar="TEXT", help="default: the name of the folder")
    _add_output_options(report)
    _add_loading(report)


def _add_info(info: Any) -> None:
    info.add_argument("model", metavar="MODEL", help="a file that fit has written")
    _add_json(info)


def _add_watch(watch: Any) -> None:
    watch.add_argument("model", metavar="MODEL", help="a file that fit has written")
    watch.add_argument("folder", metavar="FOLDER", help="where images arrive, sub-folders too")
    watch.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        required=True,
        help="gets results.jsonl, a line per image, and overlays/; what it holds is continued",
    )
    watch.add_argument(
        "--overlays",
        choices=("all", "defects", "none"),
        default="all",
        help="of which images overlays are written (default: all)",
    )
    for name, default, text in (
        (
            "settle",
            0.5,
            "a file is read when it has not changed for so long; 0 if the camera writes under "
            "another name and renames",
        ),
        (
            "error-after",
            5.0,
            "a file that cannot be read is recorded as an error when it has not changed for so "
            "long",
        ),
        ("poll", 0.2, "time between looks at the folder"),
        ("report-every", 10.0, "time between reports"),
    ):
        watch.add_argument(
            f"--{name}",
            metavar="SECONDS",
            type=float,
            default=default,
            help=f"{text} (default: {default:g})",
        )
    _add_json(watch)
    _add_loading(watch)


def _add_query(query: Any) -> None:
    query.add_argument("model", metavar="MODEL", help="a file that fit has written")
    query.add_argument("images", metavar="IMAGES", nargs="+", help="image files and folders")
    query.add_argument("-n", metavar="N", type=int, required=True, help="how many")
    _add_json(query)
    _add_machine(query)
    query.set_defaults(
        threshold=None, box_threshold=None, second_look=None
    )  # chosen whatever is decided


def _add_split(split: Any) -> None:
    split.add_argument(
        "folder", metavar="FOLDER", help="a sub-folder per class, or the MVTec AD layout"
    )
    split.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="where to write; new or empty"
    )
    split.add_argument(
        "--form",
        choices=("lists", "links", "copies"),
        default="lists",
        help="train.csv and test.csv, or folders of symbolic links or copies (default: lists)",
    )
    split.add_argument(
        "--test-size",
        metavar="SHARE",
        type=float,
        default=0.2,
        help="share of the images to test on (default: 0.2)",
    )
    split.add_argument(
        "--random-state",
        metavar="N",
        type=_INT_OR_NONE,
        help="seed: the same split every time (default: none)",
    )
    split.add_argument(
        "--group-pattern",
        metavar="REGEX",
        help="what in a file's name names the part, whose pictures stay on one side: '^([^_]+)' "
        "for what is before the first underscore (default: each image is a part)",
    )
    split.add_argument("--good-label", metavar="NAME", help="sub-folder of good parts")
    _add_json(split)


def _add_doctor(doctor: Any) -> None:
    doctor.add_argument("folder", metavar="FOLDER", nargs="?", help="as for fit")
    doctor.add_argument("--good-label", metavar="NAME", help="sub-folder of good parts")
    doctor.add_argument("--n-jobs", metavar="N", type=_threads, help="threads that read images")
    _add_json(doctor)


def _add_init(init: Any) -> None:
    init.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="defectcam.toml",
        help="the file to write (default: defectcam.toml)",
    )
    _add_recipe(init)
    _add_output_options(init)


def _add_completion(completion: Any) -> None:
    completion.add_argument("shell", choices=("bash", "zsh"))
    _add_json(completion)


def _add_recipe(parser: Any) -> None:
    parser.add_argument(
        "--recipe", choices=("vgg16_cam",), help="other defaults: those of a published method"
    )


def _add_export(parser: Any) -> None:
    parser.add_argument("model", metavar="MODEL", help="a file that fit has written")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        required=True,
        help="the graph to write: .onnx, .xml (OpenVINO IR, with a .bin) or .pt2 (torch.export)",
    )
    parser.add_argument(
        "--verify",
        metavar="IMAGES",
        nargs="+",
        help="image files and folders: compare the answers with the model's in float32, print the "
        f"table, and write nothing (exit code {ANSWERS_DIFFER}) where they differ",
    )
    parser.add_argument(
        "--int8", metavar="DIR", help="quantise to int8, calibrated on these training images"
    )
    parser.add_argument(
        "--measure",
        metavar="DIR",
        help="labelled images on which the loss by int8 is measured (default: those of --int8)",
    )
    parser.add_argument(
        "--max-auroc-loss",
        metavar="LOSS",
        type=float,
        default=0.01,
        help="largest loss of ROC AUC by int8 (default: 0.01)",
    )
    _add_output_options(parser)


def _add_json(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_output_options(parser: Any) -> None:
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    _add_json(parser)


def _add_images(parser: Any) -> None:
    parser.add_argument("model", metavar="MODEL", help="a file that fit has written")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="image files and folders")
    parser.add_argument(
        "--fail-on-defect",
        action="store_true",
        help=f"exit with {DEFECTS_FOUND} if an image is called defective",
    )


def _add_loading(parser: Any) -> None:
    """Add what every command that asks a model of its own takes, see `_load`."""
    parser.add_argument(
        "--threshold",
        metavar="P",
        type=float,
        help="defective from this probability (default: the model's)",
    )
    parser.add_argument(
        "--box-threshold",
        metavar="T",
        type=float,
        help="boxes, in tables and JSON and on overlays, are where the heatmap is above this "
        "(default: the model's)",
    )
    parser.add_argument(
        "--second-look",
        metavar="F",
        type=_or_off(float),
        help="see defective images again, F times larger, for a finer heatmap and its boxes: 1.3, "
        "for instance; none: once (default: the model's)",
    )
    _add_machine(parser)


def _add_machine(parser: Any) -> None:
    """Add where and how a model computes."""
    parser.add_argument("--device", metavar="DEVICE", help="default: the model's")
    parser.add_argument("--batch-size", metavar="N", type=int, help="default: the model's")
    parser.add_argument("--n-jobs", metavar="N", type=_threads, help="threads that read images")


def _add_service(parser: Any) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model that answers at /localize")
    parser.add_argument(
        "models",
        metavar="NAME=MODEL",
        nargs="*",
        help="more models, at /models/NAME/localize; the first may have a name too",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", metavar="N", type=int, default=8000, help="0: a free one (default: 8000)"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="holds the bearer token that requests must bring (default: none is needed)",
    )
    for name, metavar, parse, text in SERVICE_OPTIONS:
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=metavar,
            type=parse,
            default=argparse.SUPPRESS,
            help=text,
        )
    parser.add_argument(
        "--json", action="store_true", help="print the address and the models' names as JSON"
    )
    _add_machine(parser)


#: Parameters of `ServiceSettings`, which are not imported for `--help`.
SERVICE_OPTIONS: tuple[tuple[str, str, Callable[[str], Any], str], ...] = (
    ("queue_size", "N", int, "most requests at once; more get 429 (default: 64)"),
    ("batch_wait", "SECONDS", float, "that an image waits for others (default: 0.002)"),
    ("max_body_bytes", "N", int, "largest body of a request (default: 33554432)"),
    ("max_pixels", "N", int, "largest image (default: 50000000)"),
    (
        "max_included_pixels",
        "N",
        int,
        "largest image that an overlay or a heatmap is sent of (default: 25000000)",
    ),
    ("body_timeout", "SECONDS", float, "that a body may take to arrive (default: 10)"),
    ("request_timeout", "SECONDS", float, "from an image to its answer (default: 30)"),
    (
        "reload_interval",
        "SECONDS",
        float,
        "between looks for new model files; 0: none (default: 1)",
    ),
)


_COMMANDS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "fit": ("Train on a folder of good and defective images.", _add_fit),
    "predict": ("Print label and probability of a defect per image.", _add_predict),
    "localize": ("Find the boxes; write an overlay per image.", _add_localize),
    "annotate": ("Write what is found as annotations, for tools where people draw.", _add_annotate),
    "evaluate": ("Measure on labelled images: missed defects first.", _add_evaluate),
    "report": ("Write one HTML file: pictures, figures, thresholds to move.", _add_report),
    "export": ("Write a model as a graph that runs without PyTorch.", _add_export),
    "info": ("Print what a model file contains.", _add_info),
    "serve": ("Answer requests over HTTP (extra: serve).", _add_service),
    "watch": ("Judge images as they arrive in a folder, until stopped.", _add_watch),
    "query": ("Choose the images to label next.", _add_query),
    "split": ("Split a folder into training and test images, by type.", _add_split),
    "doctor": ("Examine the installation and a folder of images.", _add_doctor),
    "init": ("Write all parameters, explained, to a file for fit --config.", _add_init),
    "completion": ("Print a script that completes commands.", _add_completion),
}
