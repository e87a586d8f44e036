"""Times a model in ONNX Runtime on the processor: `onnxruntime_latency.py MODEL THREADS RUNS --input NAME=FILE.npy... [--output FOLDER]`

Two runs before those that count. Prints one JSON object: version, milliseconds of every run, and where each output is; then the resident
memory of the interpreter with numpy before ONNX Runtime came to it, which is not the peer's own.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np


def resident_bytes():
    """Of this process; nothing where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("threads", type=int)
    parser.add_argument("runs", type=int)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--input", action="append", required=True)
    arguments = parser.parse_args()
    feed = {}
    for entry in arguments.input:
        name, path = entry.split("=", 1)
        feed[name] = np.load(path)
    baseline = resident_bytes()

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(arguments.model, options, providers=["CPUExecutionProvider"])
    load_seconds = time.perf_counter() - start
    for _ in range(2):
        outputs = session.run(None, feed)
    milliseconds = []
    for _ in range(arguments.runs):
        start = time.perf_counter()
        outputs = session.run(None, feed)
        milliseconds.append((time.perf_counter() - start) * 1e3)
    files = []
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        for index, (output, values) in enumerate(zip(session.get_outputs(), outputs)):
            file = arguments.output / f"{index}.npy"
            np.save(file, values)
            files.append({"name": output.name, "file": str(file)})
    report = {
        "version": onnxruntime.__version__,
        "load_seconds": load_seconds,
        "milliseconds": milliseconds,
        "median_milliseconds": float(np.median(milliseconds)),
        "minimum_milliseconds": min(milliseconds),
        "baseline_bytes": baseline,
        "outputs": files,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
