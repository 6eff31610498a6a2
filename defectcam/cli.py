"""The command line: folders and files in, tables, JSON and pictures out.

Owns what is printed, which files are written and when which exit code is given; `cli_options` has
the options. The work is done by the estimator and the metrics, imported inside the commands, so
that ``--help`` needs no torch.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import json
import math
import os
import re
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import defectcam
from defectcam.cli_options import (
    ANSWERS_DIFFER,
    BAD_DATA,
    BROKEN_PIPE,
    BUG,
    DEFECTS_FOUND,
    DONE,
    INTERRUPTED,
    OFF,
    PARAMETERS,
    SERVICE_OPTIONS,
    USAGE,
    make_parser,
)
from defectcam.exceptions import DataError

if TYPE_CHECKING:
    from defectcam.classifier import DefectCAMClassifier
    from defectcam.parity import Parity
    from defectcam.results import Localization

__all__ = ["main"]

_RESULTS = "results.json"

#: What entries of `DefectCAMClassifier.info` are called where people read them.
_ROWS = {"epochs": "epochs, all folds"}

#: What messages of the library say to callers from Python, and what they say here.
_WORDS_OF_PYTHON = (
    (r"pass good_label=\.\.\.", "give --good-label NAME"),
    (r"\bgood_label=(?=['\"])", "--good-label "),
    (
        "The same call goes on with it from `resume`",
        "The same command, with its --resume, goes on with it if --force is added",
    ),
)


class _UsageError(Exception):
    """The command cannot be carried out as it was given."""


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
        args = make_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help or what is wrong
        return stop.code if isinstance(stop.code, int) else USAGE
    _print_any_name()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _COMMANDS[args.command](args)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        print("defectcam: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `defectcam predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        return BROKEN_PIPE
    except _UsageError as error:
        print(f"defectcam: error: {_in_options(error)}", file=sys.stderr)
        return USAGE
    except Exception as error:
        if _is_about_data(error):
            print(f"defectcam: error: {_in_options(error)}", file=sys.stderr)
            return BAD_DATA
        traceback.print_exc()
        return BUG


def _print_any_name() -> None:
    """Let file names be printed that the encoding lacks; where they are bytes, as those bytes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        is_bytes = is_utf8 and os.name == "posix"
        sys.stdout.reconfigure(errors="surrogateescape" if is_bytes else "backslashreplace")


@contextlib.contextmanager
def _usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Take errors of these kinds for wrong usage, unless they are about data."""
    try:
        yield
    except kinds as error:
        if _is_about_data(error):
            raise
        raise _UsageError(error) from error


def _is_about_data(error: Exception) -> bool:
    return isinstance(error, (OSError, DataError))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"defectcam: warning: {_in_options(message)}", file=sys.stderr)


def _in_options(message: object) -> str:
    """Say with options what the library says with parameters."""
    text = str(message)
    for words, options in _WORDS_OF_PYTHON:
        text = re.sub(words, options, text)
    return text


def _fit(args: argparse.Namespace) -> int:
    _refuse_existing(args.output, args.force)
    _refuse_input(args.output, [args.config])
    names = [p.name for parameters in PARAMETERS.values() for p in parameters]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if args.config is not None:
        given = {**_configured(args.config), **given}
    from defectcam.folders import labelled_folder

    _refuse_input(args.output, [given.get("weights")])
    labelled_folder(args.folder, given.get("good_label"))  # refuse a wrong folder early
    split = _train_and_test(args.folder)
    if split is not None and not args.quiet:
        train, _ = split
        print(
            f"defectcam: training on the images of train and test; {train} alone would leave those "
            "of test to evaluate on",
            file=sys.stderr,
        )
    from defectcam.checkpoints import FitCheckpoint
    from defectcam.classifier import DefectCAMClassifier
    from defectcam.training import TrainingDivergedError

    if args.resume is not None and os.path.realpath(args.resume) == os.path.realpath(args.output):
        raise _UsageError(f"--resume and --output are both {args.output}: name two files.")
    given["verbose"] = _verbosity(args)
    if args.recipe is None:
        clf = DefectCAMClassifier(**given)
    else:
        clf = DefectCAMClassifier.from_recipe(args.recipe, **given)
    with _usage_errors(ValueError, TrainingDivergedError), _interruption_noticed() as interruption:
        checkpoint = None if args.resume is None else FitCheckpoint(args.resume)
        clf.fit(args.folder, resume=checkpoint)
    clf.save(args.output, overwrite=args.force)
    if checkpoint is not None:
        checkpoint.close()  # not before: a model that cannot be written would be lost
    report = {"model": args.output, **clf.info()}
    _print_report(report, args.json)
    return INTERRUPTED if interruption else DONE


def _predict(args: argparse.Namespace) -> int:
    table, table_format = _table_of(args)
    if table is not None:
        _refuse_input(table, [args.model, *args.images])
    paths = _list_images(args.images)
    clf = _load(args)
    _check_read_whole(clf, paths)
    records, rows = [], []
    print_rows = table_format is None and not args.json
    answers = []
    for path, found in zip(paths, _found(clf, paths, args.quiet, print_rows), strict=True):
        answers.append((found.is_defect, found.unfamiliar))
        if args.json:
            records.append({**_result_row(found, path), "image": path, "label": found.label})
        if table_format is not None:
            rows.append(_result_row(found, path))
        if print_rows:
            print(f"{_answer(clf, found)}  {path}")
    if table_format is not None:
        _write_table(rows, table, table_format)
    if args.json:
        _print_json(records)
    written = "" if table is None else f"; wrote {table}"
    return _conclude(args, answers, written)


def _localize(args: argparse.Namespace) -> int:
    from defectcam.files import staged_folder

    output = Path(args.output)
    _refuse_existing_folder(output, args.force)
    paths = _list_images(args.images, without=output)
    overlays = _overlay_names(paths, args.images)
    results = output.resolve()
    if args.format is not None:
        _refuse_missing_pyarrow(args.format)
    drawn_over = {(results / name).resolve() for name in overlays} & {
        Path(path).resolve() for path in paths
    }
    if drawn_over:
        raise _UsageError(
            f"the overlay of {min(drawn_over)} would replace the image: give another folder."
        )
    method = args.method or "cam"
    _refuse_missing_method(method)
    if method != "cam" and args.second_look not in (None, OFF):
        raise _UsageError(f"--second-look is of the model's own heatmap, not of --method {method}.")
    clf = _load(args)
    _refuse_wrong_tiles(args, clf)
    tile = None if args.tile == OFF else args.tile
    _check_read_whole(clf, paths, tile)
    records, rows = [], []
    localized = _found(
        clf,
        paths,
        args.quiet,
        rows_printed=not args.json,
        method=method,
        tile=tile,
        overlap=args.overlap,
    )
    with staged_folder(output, last=_RESULTS) as folder:
        for path, name, found in zip(paths, overlays, localized, strict=True):
            if method != "cam" and args.box_threshold is not None:  # such maps have their own
                found = found.with_threshold(args.box_threshold)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            found.save(folder / name)
            records.append({**found.to_dict(), "overlay": name})
            if args.format is not None:
                rows.append(_result_row(found, path, name))
            if not args.json:
                print(f"{_answer(clf, found)}  {_n_boxes(found):>8}  {path}")
        document = {
            "defectcam": defectcam.__version__,
            "model": os.fspath(args.model),
            "method": method,
            "images": records,
        }
        (folder / _RESULTS).write_text(_as_json(document), encoding="utf-8")
        if args.format is not None:
            table = folder / Path(_RESULTS).with_suffix(f".{args.format}")
            _write_table(rows, table, args.format)
    if args.json:
        _print_json(document)
    written = f"; wrote their overlays and {_RESULTS} to {output}"
    answers = [(record["is_defect"], record["unfamiliar"]) for record in records]
    return _conclude(args, answers, written)


def _annotate(args: argparse.Namespace) -> int:
    from defectcam.annotations import check_request, write_annotations

    output = Path(args.output)
    _refuse_existing_folder(output, args.force)
    paths = _list_images(args.images, without=output)
    names = [name.as_posix() for name in _names_below(paths, args.images)]
    options: dict[str, Any] = {
        "shapes": args.shapes,
        "tolerance": args.tolerance,
        "copy_images": args.copy_images,
    }
    with _usage_errors(ValueError):  # an option, or the name of an image
        check_request(paths, output, args.format, names, **options)
    clf = _load(args)
    _check_read_whole(clf, paths)
    results = []
    for path, found in zip(paths, _found(clf, paths, args.quiet, not args.json), strict=True):
        results.append(found)
        if not args.json:
            print(f"{_answer(clf, found)}  {_n_boxes(found):>8}  {path}")
    with _usage_errors(ValueError):  # the name of a label
        write_annotations(
            results,
            output,
            args.format,
            names=names,
            classes=clf.defect_labels_,
            overwrite=args.force,
            **options,
        )
    if args.json:
        n_boxes = [len(found.boxes) for found in results]
        report = {"output": args.output, "format": args.format, "n_images": len(results)}
        _print_json({**report, "n_boxes": sum(n_boxes), "n_with_boxes": sum(map(bool, n_boxes))})
    written = f"; wrote {args.format} annotations to {output}"
    return _conclude(args, [(found.is_defect, found.unfamiliar) for found in results], written)


def _evaluate(args: argparse.Namespace) -> int:
    from defectcam.evaluation import evaluate
    from defectcam.folders import labelled_folder

    folder = _tested(args.folder)
    if args.good_label is not None or not folder.is_dir():
        labelled_folder(folder, args.good_label)  # refuse a wrong folder before loading a model
    _refuse_missing_folder("masks", args)
    clf = _load(args)
    clf.set_params(verbose=_verbosity(args))
    report = evaluate(clf, folder, masks=args.masks, good_label=args.good_label)
    if args.json:
        _print_json(report.to_dict())
    else:
        print(report)
    return DONE


def _report(args: argparse.Namespace) -> int:
    _refuse_existing(args.output, args.force)
    _refuse_input(args.output, [args.model, *args.images])
    may_have_labels = len(args.images) == 1 and os.path.isdir(args.images[0]) and not args.no_labels
    if not may_have_labels and (args.good_label is not None or args.masks is not None):
        raise _UsageError("--good-label and --masks need one folder with a sub-folder per class.")
    _refuse_missing_folder("masks", args)
    clf = _load(args)
    clf.set_params(verbose=_verbosity(args))
    from defectcam.report import write_report

    images: Path | list[str]
    if may_have_labels:
        images = _tested(args.images[0])
    else:
        images = _list_images(args.images)
        _check_read_whole(clf, images)
    write_report(
        clf,
        images,
        path=args.output,
        masks=args.masks,
        good_label=args.good_label,
        title=args.title,
        model=args.model,
    )
    report = {"report": args.output, "bytes": os.path.getsize(args.output)}
    _print_report(report, args.json)
    return DONE


def _export(args: argparse.Namespace) -> int:
    target = Path(args.output)
    _refuse_wrong_export(args, target)
    images = _list_images(args.verify) if args.verify else []
    from defectcam.export import (
        Int8LossError,
        check_packages,
        check_suffix,
        export,
        read_description,
        verify_file,
    )
    from defectcam.files import temporary_folder
    from defectcam.persistence import load

    with _usage_errors(ValueError, ImportError):
        check_suffix(target, is_int8=args.int8 is not None)
        check_packages(target, is_int8=args.int8 is not None)
    clf = load(args.model, device="cpu")
    _check_read_whole(clf, images)
    with temporary_folder(target) as folder:
        staged = folder / target.name
        options = {"int8": args.int8, "X": args.measure, "max_auroc_loss": args.max_auroc_loss}
        with _usage_errors(ValueError, ImportError):  # the model, a missing package
            try:
                loss = export(clf, staged, **options)
            except Int8LossError as error:
                print(f"defectcam: error: {error}", file=sys.stderr)
                return ANSWERS_DIFFER
        report = {"file": args.output, "bytes": staged.stat().st_size, **read_description(staged)}
        parity = verify_file(clf, staged, images) if args.verify else None
        if parity is not None and not _print_parity(parity, args):
            return ANSWERS_DIFFER
        _move_export(folder, target)
    if loss is not None:
        report["int8_loss"] = loss._asdict()
    if parity is not None and args.json:
        report["parity"] = parity.to_dict()
    _print_report(report, args.json)
    return DONE


def _refuse_wrong_export(args: argparse.Namespace, target: Path) -> None:
    from defectcam.images import find_images

    _refuse_existing(args.output, args.force)
    _refuse_input(args.output, [args.model])
    if target.suffix.lower() == ".xml":
        _refuse_existing(os.fspath(target.with_suffix(".bin")), args.force)
    if args.measure is not None and args.int8 is None:
        raise _UsageError("--measure says what --int8 costs: give --int8 too.")
    if args.verify and args.int8:
        raise _UsageError("--verify compares float32, and --int8 reports its own loss: give one.")
    for option in ("int8", "measure"):
        folder = _refuse_missing_folder(option, args)
        if folder is not None and not find_images(folder):
            _find_images([folder])  # which says so, early


def _print_parity(parity: Parity, args: argparse.Namespace) -> bool:
    """Print how far the answers agree, as JSON only where they differ; return whether they do."""
    if not args.json:
        print(parity, end="\n\n")
    if not parity.is_same:
        if args.json:
            _print_json({"parity": parity.to_dict()})
        print(
            f"defectcam: error: answers differ from those of {args.model}; nothing was "
            "written. Please report it with the table.",
            file=sys.stderr,
        )
    return parity.is_same


def _move_export(folder: Path, target: Path) -> None:
    """Move what was written to its place, the file that names the others last."""
    files = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
    if len(files) > 1:  # a graph beside another one's weights would be wrong, and look right
        target.unlink(missing_ok=True)
    for file in files:
        os.replace(file, target.parent / file.name)


def _info(args: argparse.Namespace) -> int:
    from defectcam.persistence import load, read_metadata

    written = read_metadata(args.model)["versions"]
    info = load(args.model, device="cpu").info()
    for here in ("defectcam", "torch", "python", "device"):  # of this machine, not of the file
        info.pop(here, None)
    report = {"file": args.model, "bytes": os.path.getsize(args.model), **info}
    _print_report(report | {"written_with": written}, args.json)
    return DONE


def _serve(args: argparse.Namespace) -> int:
    models = _named_models([args.model, *args.models])
    if not 0 <= args.port <= 65535:
        raise _UsageError(f"--port {args.port}: a number from 0 to 65535 is needed.")
    try:
        from defectcam.service import ServiceSettings, create_app, load_model, serve
    except ModuleNotFoundError as error:
        raise _UsageError(
            f"serve needs the package {error.name}: pip install 'defectcam[serve]'."
        ) from error
    token = None
    if args.token_file is not None:
        try:
            token = Path(args.token_file).read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise _UsageError(f"--token-file {args.token_file}: no text, but {error}.") from error
    given = {name: getattr(args, name) for name, *_ in SERVICE_OPTIONS if hasattr(args, name)}
    with _usage_errors(ValueError):
        settings = ServiceSettings(token=token, **given)
    if args.batch_size is not None and args.batch_size < 1:
        raise _UsageError(f"--batch-size {args.batch_size}: at least 1 is needed.")

    def load(path: Path) -> Any:
        return load_model(path, device=args.device, batch_size=args.batch_size, n_jobs=args.n_jobs)

    with _usage_errors(ImportError, ValueError):  # the device, a name
        app = create_app(models, settings, load=load)

    def announce(address: str) -> None:
        if args.json:
            _print_json({"address": address, "models": list(models)})
            sys.stdout.flush()

    log_level = "warning" if args.quiet else "info"
    serve(app, host=args.host, port=args.port, log_level=log_level, announce=announce)
    return DONE


def _watch(args: argparse.Namespace) -> int:
    from defectcam.watch import Watcher, stopped_by_signals

    def notify(row: dict[str, Any]) -> None:
        answer = row["error"] or f"{row['label']}  {row['probability']:.3f}"
        unfamiliar = ", unfamiliar" if row.get("unfamiliar") else ""
        print(f"{answer}{unfamiliar}  {row['image']}", flush=True)

    def report(sentence: object) -> None:
        if not args.quiet:
            print(f"defectcam: watch: {sentence}", file=sys.stderr, flush=True)

    if not args.report_every > 0:
        raise _UsageError(f"--report-every {args.report_every:g}: more than 0 is needed.")
    _refuse_existing_folder(Path(args.output), force=True)  # what it holds is continued
    with stopped_by_signals() as stop:
        clf = _load(args)
        with _usage_errors(ValueError):
            watcher = Watcher(
                args.folder,
                args.output,
                clf.localize_iter,
                overlays=args.overlays,
                settle=args.settle,
                error_after=args.error_after,
                poll=args.poll,
                batch_size=clf.batch_size,
                about={"model": args.model},
                notify=None if args.json else notify,
                warn=_show_warning,
            )
        with watcher:
            report(f"{args.folder}, {watcher.tally.n_known} images known; Ctrl-C stops")
            tally = watcher.run(stop, report, args.report_every)
    report(f"stopped after {tally.seconds:.1f} s; {tally}")
    if args.json:
        _print_json(tally.to_dict())
    return DONE


def _query(args: argparse.Namespace) -> int:
    paths = _list_images(args.images)
    if not 1 <= args.n <= len(paths):
        raise _UsageError(f"-n {args.n}: from 1 to {len(paths)} of these images can be chosen.")
    clf = _load(args)
    _check_read_whole(clf, paths)
    with _usage_errors(ValueError):  # the model may see images in tiles
        chosen = [paths[i] for i in clf.query(paths, args.n)]
    if args.json:
        _print_json(chosen)
    else:
        print("\n".join(chosen))
    return DONE


def _split(args: argparse.Namespace) -> int:
    from defectcam.files import staged_folder
    from defectcam.splitting import split_folder, write_split

    output = Path(args.output)
    _refuse_existing_folder(output, force=False, advice="give another folder.")
    with _usage_errors(ValueError, re.error):
        split = split_folder(
            args.folder, args.test_size, args.random_state, args.group_pattern, args.good_label
        )
    with staged_folder(output) as folder:
        write_split(split, folder, args.form, final=output)
    if args.json:
        _print_json({"output": args.output, "form": args.form, **split.counts()})
        return DONE
    for side, counts in split.counts().items():
        kinds = ", ".join(f"{n} {kind}" for kind, n in counts.items())
        print(f"{side:<5}  {sum(counts.values())} images: {kinds}")
    return DONE


def _doctor(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from defectcam.doctor import examine

    def bar(items: Any, total: int) -> Any:
        return tqdm(items, "images", total, unit="image", disable=True if args.quiet else None)

    found = examine(args.folder, args.good_label, n_jobs=args.n_jobs, progress=bar)
    if args.json:
        _print_json(found.to_dict())
    else:
        # https://no-color.org: set and not empty, whatever its value.
        text = found.text(colours=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
        print(_in_options(text))
    return BAD_DATA if found.worst == "error" else DONE


def _init(args: argparse.Namespace) -> int:
    _refuse_existing(args.output, args.force)
    from defectcam.classifier import DefectCAMClassifier
    from defectcam.configuration import configuration_text
    from defectcam.files import write_atomically

    clf = DefectCAMClassifier()
    if args.recipe is not None:
        clf = DefectCAMClassifier.from_recipe(args.recipe)
    text = configuration_text(DefectCAMClassifier, clf.get_params())
    write_atomically(args.output, text.encode())
    if args.json:
        _print_json({"config": args.output})
    else:
        print(f"wrote {args.output}: defectcam fit FOLDER -o MODEL --config {args.output}")
    return DONE


def _completion(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError as error:
        raise _UsageError("completion needs shtab: pip install 'defectcam[completion]'.") from error
    parser = make_parser()
    _complete_files(parser, shtab.FILE)
    script = shtab.complete(parser, args.shell)
    if args.json:
        _print_json({"shell": args.shell, "script": script})
    else:
        print(script)
    return DONE


def _complete_files(parser: argparse.ArgumentParser, files: dict[str, Any]) -> None:
    """Mark the arguments of a parser and its commands that are files and folders."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, files)
        elif action.metavar in ("FILE", "FOLDER", "DIR", "IMAGES", "MODEL"):
            action.complete = files  # type: ignore[attr-defined]


# --- Inputs -----------------------------------------------------------------------------------


def _named_models(arguments: Sequence[str]) -> dict[str, str]:
    """Map names to model files; a file without a name is called as it is, without its suffix."""
    models: dict[str, str] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or os.path.exists(argument):
            name, path = Path(argument).stem, argument
        if name in models:
            raise _UsageError(f"two models are called {name!r}: give another NAME=MODEL.")
        models[name] = path
    return models


def _configured(path: str) -> dict[str, Any]:
    from defectcam.classifier import DefectCAMClassifier
    from defectcam.configuration import ConfigurationError, read_configuration

    if not os.path.isfile(path):
        raise _UsageError(f"--config {path}: there is no such file; `defectcam init` writes one.")
    try:
        given = read_configuration(path, DefectCAMClassifier)
        DefectCAMClassifier(**given)._validate_params()
    except ConfigurationError as error:
        raise _UsageError(error) from error
    except ValueError as error:  # scikit-learn names the parameter
        raise _UsageError(f"{path}: {error}") from error
    return given


def _train_and_test(folder: str) -> tuple[Path, Path] | None:
    """Find the folders of the MVTec AD layout, if a folder has it."""
    from defectcam.folders import sub_folder

    train, test = sub_folder(folder, "train"), sub_folder(folder, "test")
    return None if train is None or test is None else (train, test)


def _tested(folder: str) -> Path:
    """Give the folder `test` of the MVTec AD layout, any other folder as it is."""
    split = _train_and_test(folder)
    if split is None:
        return Path(folder)
    _, test = split
    print(f"defectcam: evaluating on {test}", file=sys.stderr)
    return test


def _load(args: argparse.Namespace) -> DefectCAMClassifier:
    from defectcam.persistence import load

    with _usage_errors(ValueError):  # the device
        clf = load(args.model, device=args.device)
    for name in ("batch_size", "n_jobs"):
        if getattr(args, name) is not None:
            clf.set_params(**{name: getattr(args, name)})
    if clf.batch_size < 1:
        raise _UsageError(f"--batch-size {clf.batch_size}: at least 1 is needed.")
    _set_thresholds(clf, args.threshold, args.box_threshold)
    if args.second_look == OFF:
        clf.set_params(second_look=None)
    elif args.second_look is not None:
        from defectcam.second_look import MAX_FACTOR

        if not 1 <= args.second_look <= MAX_FACTOR:
            raise _UsageError(
                f"--second-look {args.second_look}: a number from 1 to {MAX_FACTOR} is needed."
            )
        clf.set_params(second_look=args.second_look)
    return clf


def _verbosity(args: argparse.Namespace) -> int:
    return int(not args.quiet and sys.stderr.isatty())


def _set_thresholds(
    clf: DefectCAMClassifier, threshold: float | None, box_threshold: float | None
) -> None:
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise _UsageError(f"--threshold {threshold}: a probability from 0 to 1 is needed.")
        clf.threshold_ = threshold
    if box_threshold is not None:
        if not math.isfinite(box_threshold):
            raise _UsageError(f"--box-threshold {box_threshold}: a finite number is needed.")
        clf.set_params(box_threshold=box_threshold)


def _list_images(arguments: Sequence[str], without: Path | None = None) -> list[str]:
    """List the images of files and folders, each once, and refuse unreadable ones.

    Files that may be read in parts are left to `_check_read_whole`, which knows the model. Images
    below `without` are skipped where it lies in one of the folders: those are overlays.
    """
    from defectcam.large_images import check_readable_whole

    paths = _find_images(arguments, without)
    check_readable_whole(paths)
    return paths


def _check_read_whole(clf: DefectCAMClassifier, paths: Sequence[str], tile: Any = None) -> None:
    """Refuse what `_list_images` has left; not for tiles: Pillow would refuse huge files."""
    if tile is not None or clf.tile_ is not None:
        return
    from defectcam.images import check_readable
    from defectcam.large_images import is_read_in_parts

    check_readable(path for path in paths if is_read_in_parts(path))


def _find_images(arguments: Sequence[str], without: Path | None = None) -> list[str]:
    """Do the same, but open none."""
    from defectcam.folders import warn_of_skipped
    from defectcam.images import ImageReadError, find_images, find_skipped, skipped_text

    paths: dict[str, str] = {}
    all_skipped = []
    for argument in arguments:
        found = find_images(argument) if os.path.isdir(argument) else [argument]
        skipped = find_skipped(argument) if os.path.isdir(argument) else []
        all_skipped += skipped
        if found:
            warn_of_skipped(argument, skipped)
        if without is not None and Path(argument).resolve() in without.resolve().parents:
            found = [p for p in found if without.resolve() not in Path(p).resolve().parents]
        for path in found:
            paths.setdefault(os.path.abspath(path), path)
    if not paths:
        raise ImageReadError(
            f"found no images in {', '.join(map(repr, arguments))}."
            + (f" {skipped_text(all_skipped)}." if all_skipped else "")
        )
    return list(paths.values())


def _overlay_names(paths: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Name each overlay as its image, relative to the deepest folder that holds all arguments."""
    names = _names_below(paths, arguments)
    short = [name.with_suffix(".png").as_posix() for name in names]
    whole = [f"{name.as_posix()}.png" for name in names]
    folders = {folder.as_posix().lower() for name in names for folder in name.parents}
    counts = Counter(name.lower() for name in short)
    # part.jpg and part.tif keep their suffixes, or one overlay would replace the other; and so
    # does part.jpg.bmp then, whose short name is the whole one of part.jpg.
    kept = {i for i, name in enumerate(short) if counts[name.lower()] > 1}
    while True:
        taken = folders | {whole[i].lower() for i in kept}
        more = {i for i, name in enumerate(short) if name.lower() in taken} - kept
        if not more:
            return [whole[i] if i in kept else name for i, name in enumerate(short)]
        kept |= more


def _names_below(paths: Sequence[str], arguments: Sequence[str]) -> list[Path]:
    """Name images relative to the deepest folder that holds all arguments."""
    folders = [
        os.path.abspath(a) if os.path.isdir(a) else os.path.dirname(os.path.abspath(a))
        for a in arguments
    ]
    base = os.path.commonpath(folders)
    return [Path(os.path.relpath(os.path.abspath(path), base)) for path in paths]


def _refuse_missing_folder(option: str, args: argparse.Namespace) -> str | None:
    """Return the folder that an option names, if it was given, once it is known to be there."""
    folder: str | None = getattr(args, option)
    if folder is not None and not Path(folder).is_dir():
        raise _UsageError(f"--{option} {folder}: there is no such folder.")
    return folder


def _refuse_wrong_tiles(args: argparse.Namespace, clf: DefectCAMClassifier) -> None:
    from defectcam.tiles import as_overlap, as_tile

    if args.tile == OFF and clf.tile_ is not None:
        raise _UsageError(
            "--tile none: this model has learned from tiles, and its probability and threshold are "
            "those of tiles. Fit one without --tile to see images whole."
        )
    tile = clf.tile_ if args.tile in (None, OFF) else args.tile
    if tile is None and args.overlap is not None:
        raise _UsageError("--overlap is about tiles: give --tile too.")
    if tile is not None and args.method not in (None, "cam"):
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
    from defectcam.files import refuse_special
    from defectcam.images import IMAGE_SUFFIXES

    target = Path(path)
    _refuse_standard_output(path)
    if target.is_dir():
        raise _UsageError(f"{target} is a folder: give the name of a file.")
    with _converted(OSError):
        refuse_special(target)
    if target.suffix.lower() in IMAGE_SUFFIXES:
        raise _UsageError(f"{target} would be called as an image is: give another name.")
    if target.exists() and not force:
        raise _UsageError(f"{target} exists: give another name, or --force to overwrite it.")
    if not target.parent.is_dir():
        raise _UsageError(f"the folder {target.parent} does not exist: make it first.")


@contextlib.contextmanager
def _converted(*kinds: type[Exception]) -> Iterator[None]:
    """Take all errors of these kinds for wrong usage."""
    try:
        yield
    except kinds as error:
        raise _UsageError(error) from error


def _refuse_standard_output(path: str) -> None:
    if path == "-":
        raise _UsageError(
            "-o - : files are written, not printed. `predict` without -o prints a table with "
            "--format csv or jsonl, and each command prints JSON with --json. A file that is "
            "called so is ./-"
        )


def _refuse_input(output: str, inputs: Sequence[str | os.PathLike[str] | None]) -> None:
    """Refuse to replace what the same command reads, with --force too."""
    target = os.path.realpath(output)
    if any(target == os.path.realpath(path) for path in inputs if path is not None):
        raise _UsageError(f"{output} is read by this command: give another name to write to.")


def _refuse_existing_folder(
    folder: Path,
    force: bool,
    advice: str = "give another folder, or --force to overwrite files in it.",
) -> None:
    _refuse_standard_output(os.fspath(folder))
    if folder.exists() and not folder.is_dir():
        raise _UsageError(f"{folder} is a file: give a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise _UsageError(f"{folder} is not empty: {advice}")
    if not folder.resolve().parent.is_dir():
        raise _UsageError(f"the folder {folder.parent} does not exist: make it first.")


def _answer(clf: DefectCAMClassifier, found: Localization) -> str:
    width = max(len(str(label)) for label in clf.classes_)
    unfamiliar = ", unfamiliar" if found.unfamiliar else ""
    return f"{found.label!s:<{width}}  {found.probability:.3f}{unfamiliar}"


def _conclude(args: argparse.Namespace, answers: Sequence[tuple[bool, bool]], written: str) -> int:
    """Sum up the images, each of them (defective, unfamiliar), and give the exit code."""
    n_defects = sum(is_defect for is_defect, _ in answers)
    n_unfamiliar = sum(is_unfamiliar for _, is_unfamiliar in answers)
    if not args.quiet:
        unfamiliar = f", {n_unfamiliar} unfamiliar" if n_unfamiliar else ""
        print(
            f"{len(answers)} images: {n_defects} defective, {len(answers) - n_defects} good"
            f"{unfamiliar}{written}",
            file=sys.stderr,
        )
    return DEFECTS_FOUND if n_defects and args.fail_on_defect else DONE


def _n_boxes(found: Localization) -> str:
    return f"{len(found.boxes)} box{'' if len(found.boxes) == 1 else 'es'}"


def _table_of(args: argparse.Namespace) -> tuple[str | None, str | None]:
    """File and format of the table that is asked for; no file: standard output."""
    if args.csv is not None:
        if args.output is not None or args.format not in (None, "csv"):
            raise _UsageError("--csv FILE is short for -o FILE --format csv: give one of them.")
        args.output, args.format = args.csv, "csv"
    if args.output is None:
        if args.format is not None and args.json:
            raise _UsageError("--json and --format both print the results: give one of them.")
        if args.format == "parquet":
            raise _UsageError("--format parquet is not for reading: give a file, -o FILE.")
        return None, args.format
    _refuse_existing(args.output, args.force)
    if args.format is None:
        from defectcam.tables import format_of

        try:
            args.format = format_of(args.output)
        except ValueError as error:
            raise _UsageError(f"{error} Give --format.") from error
    _refuse_missing_pyarrow(args.format)
    return args.output, args.format


def _refuse_missing_pyarrow(table_format: str) -> None:
    from defectcam.tables import encode_rows

    try:
        encode_rows([], table_format)
    except ImportError as error:
        raise _UsageError(error) from error


def _result_row(found: Localization, path: str, overlay: str | None = None) -> dict[str, Any]:
    from defectcam.tables import result_row

    return result_row(found, path, overlay)


def _write_table(
    rows: Sequence[dict[str, Any]], target: str | Path | None, table_format: str
) -> None:
    from defectcam.files import write_atomically
    from defectcam.tables import encode_rows

    data = encode_rows(rows, table_format)
    if target is None:
        print(data.decode(), end="")
    else:
        write_atomically(target, data)


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False, default=lambda label: label.item()) + "\n"


def _print_json(value: Any) -> None:
    print(_as_json(value), end="")


def _print_report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(report)
        return
    rows = {_ROWS.get(name, name): value for name, value in report.items()}
    width = max(map(len, rows))
    for name, value in rows.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        print(f"{name:<{width}}  {value}")


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "fit": _fit,
    "predict": _predict,
    "localize": _localize,
    "annotate": _annotate,
    "evaluate": _evaluate,
    "report": _report,
    "export": _export,
    "info": _info,
    "serve": _serve,
    "watch": _watch,
    "query": _query,
    "split": _split,
    "doctor": _doctor,
    "init": _init,
    "completion": _completion,
}
