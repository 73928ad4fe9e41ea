"""What a large picture costs whole and in tiles.

    python benchmarks/tiles.py RUN PICTURE [--label LABEL] [--tiles none 2048 1024 512]

Scales 0.5, 1, 2. Each way has its own process; `peak` is what it holds above what it held with the
network loaded, the picture and its label included. `agreement` is the share of pixels with the
label of the first way; `process`: all that the process holds. LABEL: class indices, 255 is ignored.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hmsa.evaluation.confusion import Confusion
from hmsa.inference.predictor import Predictor
from hmsa.runs.machine import describe_machine


def measure(options: argparse.Namespace) -> dict[str, float]:
    (tile,) = options.tiles
    side = None if tile == "none" else tile if tile == "auto" else int(tile)
    predictor = Predictor.load(options.checkpoint, (0.5, 1, 2), options.precision, tile=side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    prediction = predictor(options.picture)
    seconds = time.perf_counter() - start
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.save(Path(options.keep) / f"{tile}.npy", prediction.label)
    return {"seconds": seconds, "peak_mib": (whole - before) / 1024, "process_mib": whole / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--label", type=Path)
    parser.add_argument("--tiles", nargs="+", default=["none", "2048", "1024", "512"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--keep", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keep:
        print(json.dumps(measure(options)))
        return
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(options.picture) as picture:
        width, height = picture.size
    print(f"{options.checkpoint}, {height}x{width}, scales 0.5, 1, 2, {options.precision}, "
          f"{describe_machine(torch.device('cpu'))}")  # fmt: skip
    print(f"{'tile':>8}{'s':>9}{'MiB':>9}{'process':>9}{'agreement':>11}{'mIoU':>9}")
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for tile in options.tiles:
            command = [
                sys.executable, __file__, str(options.checkpoint), str(options.picture),
                "--tiles", tile, "--precision", options.precision, "--keep", folder,
            ]  # fmt: skip
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            row = json.loads(ran.stdout.splitlines()[-1])
            first, label = (np.load(Path(folder) / f"{t}.npy") for t in (options.tiles[0], tile))
            row["agreement"] = float((first == label).mean())
            if options.label:
                truth = np.array(Image.open(options.label))
                confusion = Confusion(int(truth[truth < 255].max()) + 1)
                confusion.add(torch.from_numpy(truth), torch.from_numpy(label))
                row["miou"] = confusion.miou()
            found[tile] = row
            print(f"{tile:>8}{row['seconds']:9.1f}{row['peak_mib']:9.0f}{row['process_mib']:9.0f}"
                  f"{row['agreement']:11.3%}{row.get('miou', float('nan')):9.2%}",
                  flush=True)  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
