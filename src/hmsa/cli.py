"""The command line: parses, calls one function, prints its result.

Results go to stdout, logs to stderr. Exit codes: 0 done, 1 failure, 2 usage or data, 130 stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .errors import InputError

DESCRIPTION = "Semantic segmentation with hierarchical multi-scale attention."


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse and do; returns the exit code."""
    options = _parser().parse_args(arguments)
    from .commands.train import Interrupted  # behind the parser: --help need not wait for torch
    from .runtime import keep_memory, say

    keep_memory()
    try:
        return int(options.verb(options) or 0)
    except InputError as error:
        say(f"hmsa: {error}")
        return 2
    except Interrupted as stop:
        say(f"{stop}{_how_to_go_on(options, arguments)}")
        return 130
    except KeyboardInterrupt:
        say(f"hmsa: stopped{_how_to_go_on(options, arguments)}")
        return 130
    except BrokenPipeError:  # the reader of stdout went away, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        say(f"hmsa: failed: {type(error).__name__}: {error} (--debug shows where)")
        return 1


def _how_to_go_on(options: argparse.Namespace, arguments: Sequence[str] | None) -> str:
    if options.verb is not _train:
        return ""
    typed = [a for a in (arguments or sys.argv[1:]) if a != "--resume"]
    return f"; go on with: hmsa {shlex.join([*typed, '--resume'])}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hmsa", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"hmsa {__version__}")
    parser.add_argument("--debug", action="store_true", help="show where a failure happened")
    verbs = parser.add_subparsers(required=True, metavar="VERB", title="verbs")

    train = _verb(
        verbs, "train", _train, "train a network by a recipe",
        "hmsa train configs/camvid.yaml --set joint.steps=100 --out runs/try",
    )  # fmt: skip
    train.add_argument("config", type=Path, metavar="CONFIG", help="recipe, a YAML file")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                       help="change one knob, such as joint.lr=1e-3; again for more")  # fmt: skip
    train.add_argument("--out", type=Path, metavar="RUN", help="run folder (runs/CONFIG)")
    train.add_argument("--data", type=Path, metavar="FOLDER", help="where the pictures are")
    train.add_argument("--resume", action="store_true", help="go on with the run in RUN")

    evaluate = _verb(
        verbs, "evaluate", _evaluate, "compare fusions on labelled pictures",
        "hmsa evaluate runs/camvid datasets/camvid.yaml --split val --scales 0.5,1,2",
    )  # fmt: skip
    evaluate.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="file or run folder")
    evaluate.add_argument("dataset", type=Path, metavar="DATA", help="YAML file of the dataset")
    evaluate.add_argument("--split", default="val", help="(val)")
    evaluate.add_argument("--data", type=Path, metavar="FOLDER", help="where the pictures are")
    evaluate.add_argument("--report", type=Path, metavar="HTML",
                          help="page (report-SPLIT.html beside the checkpoint)")  # fmt: skip
    evaluate.add_argument("--json", action="store_true", help="the JSON line alone on stdout")
    _inference(evaluate)

    predict = _verb(
        verbs, "predict", _predict, "label pictures",
        "hmsa predict runs/camvid photo.jpg folder/ 'more/*.png' -o out --panel",
    )  # fmt: skip
    predict.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="file or run folder")
    predict.add_argument("paths", nargs="+", metavar="PATH", help="files, folders or globs")
    predict.add_argument("-o", "--out", type=Path, required=True, metavar="OUT")
    predict.add_argument("--panel", action="store_true",
                         help="also image, prediction and weight of each scale")  # fmt: skip
    _inference(predict)

    convert = _verb(
        verbs, "convert", _convert, "turn an official checkpoint into one of ours",
        "hmsa convert best_checkpoint.pth datasets/cityscapes.yaml -o cityscapes.safetensors",
    )  # fmt: skip
    convert.add_argument("source", type=Path, metavar="PTH", help="of the official code")
    convert.add_argument("classes", type=Path, metavar="DATA", help="YAML file with its classes")
    convert.add_argument("-o", "--out", type=Path, required=True, metavar="SAFETENSORS")

    data = verbs.add_parser("data", help="make and look at data")
    kinds = data.add_subparsers(required=True, metavar="WHAT", title="what")
    scenes = _verb(
        kinds, "scenes", _scenes, "draw street scenes as a labelled dataset",
        "hmsa data scenes scenes --count train=400 --count val=40",
    )  # fmt: skip
    scenes.add_argument("folder", type=Path, metavar="FOLDER", help="new or empty")
    scenes.add_argument("--count", action="append", metavar="SPLIT=N", type=_count,
                        help="pictures of a split (train=200, val=40); again for more")  # fmt: skip
    scenes.add_argument("--size", type=_size, default=(256, 512), metavar="HxW", help="(256x512)")
    scenes.add_argument("--seed", type=int, default=0, help="(0)")

    preview = _verb(
        kinds, "preview", _preview, "draw a sheet of what the network will see",
        "hmsa data preview datasets/camvid.yaml --split train --recipe configs/camvid.yaml "
        "-o sheet.png",
    )  # fmt: skip
    preview.add_argument("dataset", type=Path, metavar="DATA", help="YAML file of the dataset")
    preview.add_argument("--split", help="(that which the recipe learns from)")
    preview.add_argument("--recipe", type=Path, metavar="CONFIG", help="(the defaults)")
    preview.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                         help="change one knob of the recipe")  # fmt: skip
    preview.add_argument("--count", type=_positive, default=8, metavar="N", help="samples (8)")
    preview.add_argument("--data", type=Path, metavar="FOLDER", help="where the pictures are")
    preview.add_argument("-o", "--out", type=Path, required=True, metavar="PNG")

    demo = _verb(
        verbs, "demo", _demo, "the whole story on generated scenes", "hmsa demo --out runs/demo"
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="FOLDER")
    demo.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                      help="change one knob of the recipe")  # fmt: skip
    demo.add_argument("--json", action="store_true", help="the JSON line alone on stdout")
    return parser


def _verb(group: Any, name: str, work: Any, what: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False,
        epilog=f"example: {example}",
    )  # fmt: skip
    parser.set_defaults(verb=work)
    return parser


def _inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scales", type=_scales, metavar="S,S,...",
                        help="any positive numbers (those it was trained for)")  # fmt: skip
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="auto: bf16 where the machine is fast at it")  # fmt: skip


def _scales(text: str) -> list[float]:
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        scales = []
    if not scales or not all(0 < s < float("inf") for s in scales):
        raise argparse.ArgumentTypeError(f"{text!r} is not positive numbers like 0.5,1,2")
    return scales


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, like 256x512") from None
    return height, width


def _count(text: str) -> tuple[str, int]:
    split, _, number = text.partition("=")
    if not split or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not SPLIT=N, like train=200")
    return split, int(number)


def _train(options: argparse.Namespace) -> None:
    from .commands.train import train
    from .config import Recipe, read
    from .runtime import say

    recipe = read(Recipe, options.config, options.set)
    folder = options.out or Path("runs") / options.config.stem
    data = options.config.parent / recipe.data.dataset
    best = train(
        recipe, folder, data,
        pictures=options.data, resume=options.resume, near=options.config.parent,
    )  # fmt: skip
    say(f"done: {best}")
    print(best)


def _evaluate(options: argparse.Namespace) -> None:
    from .commands.evaluate import evaluate

    source: Path = options.checkpoint
    folder = source if source.is_dir() else source.parent
    _show(
        options.json,
        *evaluate(
            source, options.dataset, options.split, options.scales,
            pictures=options.data, precision=options.precision,
            report=options.report or folder / f"report-{options.split}.html",
            command=_typed(),
        ),
    )  # fmt: skip


def _predict(options: argparse.Namespace) -> int:
    from .commands.predict import predict
    from .runtime import say

    done, problems = predict(
        options.checkpoint, options.paths, options.out, options.scales,
        with_panel=options.panel, precision=options.precision,
    )  # fmt: skip
    for problem in problems:
        say(f"hmsa: {problem}")
    say(f"{done} picture(s) labelled in {options.out}, {len(problems)} could not be read")
    return 2 if problems else 0


def _convert(options: argparse.Namespace) -> None:
    from rich.console import Console

    from .commands.convert import convert

    table, problem = convert(options.source, options.out, options.classes)
    Console(stderr=True).print(table)
    if problem:
        raise InputError(problem)
    print(options.out)


def _scenes(options: argparse.Namespace) -> None:
    from .commands.data import scenes

    counts = dict(options.count or [("train", 200), ("val", 40)])
    print(scenes(options.folder, counts, options.size, options.seed))


def _preview(options: argparse.Namespace) -> None:
    from .commands.data import preview
    from .config import Recipe, changed, read_yaml, validate

    content = read_yaml(options.recipe) if options.recipe else {}
    given = [f"data.dataset={json.dumps(str(options.dataset))}"]
    given += [f"data.train={json.dumps(options.split)}"] if options.split else []
    recipe = validate(
        Recipe, changed(content, [*options.set, *given]), options.recipe or "the default recipe"
    )
    near = (options.recipe or options.dataset).parent
    print(preview(recipe, options.dataset, options.out, options.count,
                  pictures=options.data, near=near))  # fmt: skip


def _demo(options: argparse.Namespace) -> None:
    from .commands.demo import demo

    _show(options.json, *demo(options.out, options.set))


def _show(json_alone: bool, summary: dict[str, Any], table: Any) -> None:
    from .commands.evaluate import print_result

    if not json_alone:
        print_result(summary, table)
    print(json.dumps(summary))


def _typed() -> str:
    return shlex.join(["hmsa", *sys.argv[1:]])
