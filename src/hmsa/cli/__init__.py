"""The command line: parses, calls one function, prints its result.

Results go to stdout, logs to stderr. Exit codes: 0 done, 1 failure, 2 usage or data, 130 stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .. import __version__
from ..errors import InputError
from .arguments import (
    further,
    graph_size,
    save_list,
    scale_list,
    share,
    show,
    tile_side,
    typed,
    verb,
    whole_number,
)
from .attend import add_attend, attend
from .autolabel import add_autolabel, autolabel
from .data import RESUMING, add_data
from .review import add_review, review
from .selftrain import add_selftrain, selftrain

DESCRIPTION = "Semantic segmentation with hierarchical multi-scale attention."


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse and do; returns the exit code."""
    options = _parser().parse_args(arguments)
    from ..commands.train import Interrupted  # behind the parser: --help need not wait for torch
    from ..runtime import keep_memory, say

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
    if options.verb is _predict:
        return f"; the same command{' without --overwrite' * options.overwrite} goes on"
    if options.verb not in (_train, selftrain):
        resuming = options.verb in (*RESUMING, attend, autolabel, review)
        return "; the same command goes on" if resuming else ""
    typed = [a for a in (arguments or sys.argv[1:]) if a != "--resume"]
    return f"; go on with: hmsa {shlex.join([*typed, '--resume'])}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hmsa", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"hmsa {__version__}")
    parser.add_argument("--debug", action="store_true", help="show where a failure happened")
    verbs = parser.add_subparsers(required=True, metavar="VERB", title="verbs")

    train = verb(
        verbs, "train", _train, "train a network by a recipe",
        "hmsa train configs/camvid.yaml --data CamVid --set joint.steps=100 --out runs/try",
    )  # fmt: skip
    train.add_argument("config", type=Path, metavar="CONFIG", help="recipe, a YAML file")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                       help="change one knob, such as joint.lr=1e-3; again for more")  # fmt: skip
    train.add_argument("--out", type=Path, metavar="RUN", help="run folder (runs/CONFIG)")
    train.add_argument("--data", type=Path, metavar="FOLDER", help="where the pictures are")
    train.add_argument("--resume", action="store_true", help="go on with the run in RUN")

    evaluate = verb(
        verbs, "evaluate", _evaluate, "compare fusions on labelled pictures",
        "hmsa evaluate runs/camvid camvid --data CamVid --split val --scales 0.5,1,2",
    )  # fmt: skip
    evaluate.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="file or run folder")
    evaluate.add_argument(
        "dataset", type=Path, metavar="DATA", help="YAML file, folder or known name"
    )
    evaluate.add_argument("--split", default="val", help="(val)")
    evaluate.add_argument("--data", type=Path, metavar="FOLDER", help="where the pictures are")
    evaluate.add_argument("--report", type=Path, metavar="HTML",
                          help="page (report-SPLIT.html beside the checkpoint)")  # fmt: skip
    evaluate.add_argument("--submission", type=Path, metavar="FOLDER",
                          help="also write labels as the Cityscapes server takes them")  # fmt: skip
    evaluate.add_argument("--json", action="store_true", help="the JSON line alone on stdout")
    _inference(evaluate)

    predict = verb(
        verbs, "predict", _predict, "label pictures and videos",
        "hmsa predict runs/camvid photo.jpg folder/ 'more/*.png' -o out --save label,overlay,rle",
    )  # fmt: skip
    predict.add_argument("checkpoint", type=Path, metavar="CHECKPOINT",
                         help="file or run folder, or what hmsa export wrote")  # fmt: skip
    predict.add_argument("paths", nargs="+", metavar="PATH",
                         help="files, folders, globs, or .txt lists of paths")  # fmt: skip
    predict.add_argument("-o", "--out", type=Path, required=True, metavar="OUT",
                         help="folder; what the same settings did there is kept")  # fmt: skip
    predict.add_argument("--save", type=save_list, metavar="KIND,KIND,...",
                         default=["label", "overlay", "confidence"],
                         help="label, overlay, confidence, weights, panel, npz, rle, "
                              "probabilities, entropy, geotiff (the first three); of a video "
                              "always its overlay")  # fmt: skip
    predict.add_argument("--panel", action="store_true",
                         help="also save panel: prediction and weight of each scale")  # fmt: skip
    predict.add_argument("--batch", type=whole_number, default=1, metavar="N",
                         help="pictures of one size that are looked at together (1)")  # fmt: skip
    predict.add_argument("--overwrite", action="store_true", help="do all of it anew")
    _inference(predict)

    attended = add_attend(verbs)
    attended.add_argument("--scales", type=scale_list, metavar="S,S,...", help="(0.5,1,2)")
    _precision(attended)

    _inference(add_autolabel(verbs))
    add_review(verbs)
    add_selftrain(verbs)

    gate = verb(
        verbs, "gate", _gate, "measure what looking closer only in places saves and costs",
        "hmsa gate runs/camvid camvid --data CamVid --split val --scales 0.5,1,2",
    )  # fmt: skip
    gate.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="file or run folder; "
                      "the curve is kept in it, for predict --budget")  # fmt: skip
    gate.add_argument("dataset", type=Path, metavar="DATA", help="YAML file, folder or known name")
    gate.add_argument("--split", default="val", help="(val)")
    gate.add_argument("--data", type=Path, metavar="FOLDER", help="where the pictures are")
    gate.add_argument("--json", action="store_true", help="the JSON line alone on stdout")
    _chain(gate)
    _precision(gate)

    convert = verb(
        verbs, "convert", _convert, "turn an official checkpoint, or a run, into a folder to share",
        "hmsa convert best_checkpoint.pth cityscapes -o cityscapes",
    )  # fmt: skip
    convert.add_argument("source", type=Path, metavar="CHECKPOINT",
                         help="official .pth, or a file or run of ours")  # fmt: skip
    convert.add_argument("classes", type=Path, nargs="?", metavar="DATA",
                         help="dataset that names the classes of a .pth")  # fmt: skip
    convert.add_argument("-o", "--out", type=Path, required=True, metavar="OUT",
                         help="folder to share, or one .safetensors file")  # fmt: skip

    export = verb(
        verbs, "export", _export, "freeze a network and its scales in one ONNX or torch file",
        "hmsa export runs/camvid -o camvid.onnx --scales 0.5,1 --size 360x480",
    )  # fmt: skip
    export.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="file or run folder")
    export.add_argument("-o", "--out", type=Path, required=True, metavar="OUT",
                        help="file to write: .onnx, or .pt2 for torch")  # fmt: skip
    export.add_argument("--to", choices=("onnx", "torch"), help="(by the suffix of OUT)")
    export.add_argument("--size", type=graph_size, metavar="HxW",
                        help="the one size of pictures that it takes (dynamic: any)")  # fmt: skip
    _chain(export)

    add_data(verbs)

    demo = verb(
        verbs, "demo", _demo, "the whole story on generated scenes", "hmsa demo --out runs/demo"
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="FOLDER")
    demo.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                      help="change one knob of the recipe")  # fmt: skip
    demo.add_argument("--json", action="store_true", help="the JSON line alone on stdout")
    return parser


def _chain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scales", type=scale_list, metavar="S,S,...",
                        help="any positive numbers (those it was trained for)")  # fmt: skip
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction,
                        help="mirror the picture, too (as it was trained for)")  # fmt: skip


def _precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
                        help="auto: bf16 where the machine is fast at it")  # fmt: skip
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps (the best there is)")


def _inference(parser: argparse.ArgumentParser) -> None:
    _chain(parser)
    _precision(parser)
    parser.add_argument("--tile", type=tile_side, default="auto", metavar="N",
                        help="pixels of a side that the network sees at once; none: never cut "
                             "(auto: cut what would not fit into memory)")  # fmt: skip
    gate = parser.add_mutually_exclusive_group()
    gate.add_argument("--budget", type=share, metavar="SHARE",
                      help="look at scales above 1 in this share of a picture alone, where they "
                           "weigh most; hmsa gate tells what that costs")  # fmt: skip
    gate.add_argument("--gate", type=share, metavar="W",
                      help="or wherever they weigh this much on the mean")  # fmt: skip


def _train(options: argparse.Namespace) -> None:
    from ..commands.train import train
    from ..config import Recipe, read
    from ..data.layouts import beside
    from ..runtime import say

    recipe = read(Recipe, options.config, options.set)
    folder = options.out or Path("runs") / options.config.stem
    data = beside(options.config.parent, recipe.data.dataset)
    best = train(
        recipe, folder, data,
        pictures=options.data, resume=options.resume, near=options.config.parent,
    )  # fmt: skip
    say(f"done: {best}")
    print(best)


def _evaluate(options: argparse.Namespace) -> None:
    from ..commands.evaluate import evaluate

    source: Path = options.checkpoint
    folder = source if source.is_dir() else source.parent
    show(
        options.json,
        *evaluate(
            source, options.dataset, options.split, options.scales,
            pictures=options.data, precision=options.precision, flip=options.flip,
            submission=options.submission,
            report=options.report or folder / f"report-{options.split}.html",
            command=typed(),
            **further(options),
        ),
    )  # fmt: skip


def _gate(options: argparse.Namespace) -> None:
    from ..commands.gate import gate

    show(
        options.json,
        *gate(
            options.checkpoint, options.dataset, options.split, options.scales,
            pictures=options.data, precision=options.precision, flip=options.flip,
            device=options.device,
        ),
    )  # fmt: skip


def _predict(options: argparse.Namespace) -> int:
    from ..commands.predict import predict
    from ..runtime import say

    done = predict(
        options.checkpoint, options.paths, options.out, options.scales,
        save=options.save + ["panel"] * options.panel, overwrite=options.overwrite,
        batch=options.batch, precision=options.precision, flip=options.flip, **further(options),
    )  # fmt: skip
    for problem in done.problems:
        say(f"hmsa: {problem}")
    before = f" ({done.before} of them before)" if done.before else ""
    say(f"{done.made + done.before} picture(s) labelled in {options.out}{before}, "
        f"{len(done.problems)} could not be read")  # fmt: skip
    return 2 if done.problems else 0


def _convert(options: argparse.Namespace) -> None:
    from rich.console import Console

    from ..commands.convert import convert

    table, problem = convert(options.source, options.out, options.classes)
    if table:
        Console(stderr=True).print(table)
    if problem:
        raise InputError(problem)
    print(options.out)


def _export(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ..commands.export import export
    from ..runtime import say

    table, problem = export(
        options.checkpoint, options.out, options.to, options.scales, options.size, options.flip
    )
    Console(stderr=True).print(table)
    say(f"hmsa: {problem}") if problem else print(options.out)
    return 1 if problem else 0


def _demo(options: argparse.Namespace) -> None:
    from ..commands.demo import demo

    show(options.json, *demo(options.out, options.set))
