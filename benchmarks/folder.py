"""What `hmsa predict` costs for a folder, reading and writing included, beside the bare runtime.

    python benchmarks/folder.py camvid-noncommercial ../shared/camvid/train/images [--first 200]

network: OpenVINO runs the network at the three sizes, in a bare loop over images in memory; nothing
is fused. graph: the same loop with the graph of `hmsa export`, which fuses, and returns labels.
predict: `hmsa predict`, from files to files, without the time to load the network. Ways take turns
in one process, in blocks of images; CPU seconds of the process. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from hmsa.config.options import Inference
from hmsa.data.images import read_image
from hmsa.data.walk import find_images
from hmsa.inference.predict import predict
from hmsa.model import HMSA
from hmsa.runs.machine import keep_memory
from inference import SCALES, peak_of_processor, runner

SAVED = {"predict label": ["label"], "predict default": ["label", "overlay", "confidence"]}


def tensor(image: np.ndarray) -> torch.Tensor:
    """`[H,W,3]` -> `[1,3,H,W]`."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()


def seconds_of_predict(arguments: list[str], out: Path, save: list[str], first: int) -> float:
    """CPU seconds for the folder, less those for its first image alone, scaled to all images."""
    used = []
    for paths in (arguments[:2], arguments):
        start = time.process_time()
        predict(
            paths, out / str(len(paths)), save, Inference(scales=SCALES, precision="fp32"), True
        )
        used.append(time.process_time() - start)
    return (used[1] - used[0]) * first / (first - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    parser.add_argument("--first", type=int, default=200)
    parser.add_argument("--blocks", type=int, default=4)
    options = parser.parse_args()
    keep_memory()
    files = [*find_images([options.folder]).values()][: options.first]
    sizes = Counter(read_image(file).shape[:2] for file in files)
    files = [file for file in files if read_image(file).shape[:2] == max(sizes, key=sizes.get)]
    example = read_image(files[0])
    model, used = HMSA.from_pretrained(options.checkpoint), Counter()
    bare = {
        name: runner(way, model, example, tensor(example))
        for name, way in (("network", "bare"), ("graph", "graph"))
    }
    for way in bare.values():
        way()  # the first image of a size costs more
    for block in np.array_split(np.array(files, object), options.blocks):
        images = [read_image(file) for file in block]
        for name, way in bare.items():
            start = time.process_time()
            for image in images:
                way(tensor(image))
            used[name] += time.process_time() - start
        for name, save in SAVED.items():
            with tempfile.TemporaryDirectory() as out:
                arguments = [options.checkpoint, *map(str, block)]
                used[name] += seconds_of_predict(arguments, Path(out), save, len(block))
    height, width = example.shape[:2]
    print(
        f"{options.checkpoint}, {len(files)} images of {height}x{width}, scales 0.5, 1, 2, fp32, "
        f"{torch.get_num_threads()} threads, {peak_of_processor():.0f} GFLOP a CPU second"
    )
    rows = {name: len(files) / seconds for name, seconds in used.items()}
    for name, speed in rows.items():
        print(f"{name:>16}{speed:8.2f} images a CPU second{speed / rows['graph']:8.2f} of graph")
    print(json.dumps({"images": len(files), "size": [height, width], "per_cpu_second": rows}))


if __name__ == "__main__":
    main()
