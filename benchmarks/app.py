"""`hmsa app` under load on loopback: requests a second, memory, and whether an answer is lost.

    python benchmarks/app.py --clients 8 --requests 200

The server is a process of its own. Each answer must be the label that the first one gave for the
same image. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch

from hmsa.runs.machine import describe_machine
from hmsa.runs.progress import Progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="aerial")
    parser.add_argument("--images", type=Path, default=Path("examples/aerial/val/images"))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    words = [sys.executable, "-m", "hmsa", "app", options.network, "--port", "0"]
    words += ["--queue", str(options.clients), "--seconds", "3600"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        lines = iter(server.stderr.readline, "")
        address = next(found[0] for found in (re.search("http://[^,]+", e) for e in lines) if found)
        try:
            print(json.dumps(measure(address, options, psutil.Process(server.pid))))
        finally:
            server.terminate()


def measure(address: str, options: argparse.Namespace, server: psutil.Process) -> dict[str, object]:
    """Requests in two halves, so that growth of memory between them shows."""
    contents = [file.read_bytes() for file in sorted(options.images.iterdir())]

    def ask(number: int) -> tuple[int, str]:
        which = number % len(contents)
        request = urllib.request.Request(f"{address}predict?want=label", contents[which])
        with urllib.request.urlopen(request) as answer:  # raises for all but 200
            return which, json.load(answer)["label"]

    labels = dict(map(ask, range(len(contents))))  # also warms up for each size of image
    before = server.cpu_times(), time.monotonic()
    memory, wrong, answers = [server.memory_info().rss / 2**20], 0, 0
    with Progress("requests", options.requests) as progress:
        for _ in range(2):
            with ThreadPoolExecutor(options.clients) as clients:
                for which, label in clients.map(ask, range(options.requests // 2)):
                    wrong, answers = wrong + (label != labels[which]), answers + 1
                    progress.advance()
            memory.append(server.memory_info().rss / 2**20)
    used = server.cpu_times()
    cpu = used.user + used.system - before[0].user - before[0].system
    machine = describe_machine(torch.device("cpu"))
    return {
        "machine": machine, "clients": options.clients, "answers": answers,
        "wrong": wrong, "per_second": round(answers / (time.monotonic() - before[1]), 2),
        "cpu_seconds_each": round(cpu / answers, 3), "memory_mib": [round(each) for each in memory],
    }  # fmt: skip


if __name__ == "__main__":
    main()
