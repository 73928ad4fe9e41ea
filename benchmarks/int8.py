"""What 8-bit integers would save and cost on this CPU, beside bf16: why hmsa export has no int8.

    pip install nncf
    python benchmarks/int8.py CHECKPOINT DATASET --calibrate train --judge val [--data FOLDER]

The graph of `hmsa export` at the size of the first image, quantised after training by NNCF with
some images of the split `calibrate`, by its defaults. OpenVINO runs it, and the graph in fp32 and
bf16, on some images of `judge`: CPU seconds, mIoU, labels as in fp32. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch

from hmsa.data.datasets import Dataset, open_dataset
from hmsa.evaluation.confusion import Confusion
from hmsa.inference.export import export


def some(dataset: Dataset, count: int) -> list[int]:
    """Numbers of images, evenly."""
    return np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist()


def tensor(image: np.ndarray) -> np.ndarray:
    """`[H,W,3]` -> `[1,3,H,W]`."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--calibrate", default="train")
    parser.add_argument("--judge", default="val")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--first", type=int, default=30, help="images of each, evenly")
    options = parser.parse_args()
    learn = open_dataset(options.dataset, options.calibrate, options.data)
    judge = open_dataset(options.dataset, options.judge, options.data)
    size = judge.read(0)[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        export(options.checkpoint, file := Path(folder) / "network.onnx", size)
        graph = openvino.Core().read_model(file)
        images = nncf.Dataset(some(learn, options.first), lambda n: tensor(learn.read(n)[0]))
        small = nncf.quantize(graph.clone(), images, subset_size=options.first)
    ways = {"fp32": (graph, "f32"), "bf16": (graph, "bf16"), "int8": (small, "f32")}
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    runs = {
        name: openvino.Core().compile_model(
            each, "CPU", threads | {"INFERENCE_PRECISION_HINT": precision}
        )
        for name, (each, precision) in ways.items()
    }
    k = len(judge.labels.names)
    rows = {name: {"cpu": [], "same": [], "confusion": Confusion(k)} for name in ways}
    for image, truth in map(judge.read, some(judge, options.first)):
        if image.shape[:2] != size:
            continue
        labels = {}
        for name, run in runs.items():
            start = time.process_time()
            labels[name] = run(tensor(image))[0][0].copy()
            rows[name]["cpu"].append(time.process_time() - start)
            rows[name]["confusion"].add(truth, labels[name])
            rows[name]["same"].append(float((labels[name] == labels["fp32"]).mean()))
    print(f"{options.checkpoint}, {size[0]}x{size[1]}, {threads}, OpenVINO {openvino.__version__}")
    found = {
        name: {
            "cpu": min(row["cpu"]), "miou": row["confusion"].miou(), "same": np.mean(row["same"])
        }
        for name, row in rows.items()
    }  # fmt: skip
    for name, row in found.items():
        print(
            f"{name:6}{row['cpu']:8.3f} s{row['miou']:9.2%} mIoU{row['same']:9.2%} labels as fp32"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
