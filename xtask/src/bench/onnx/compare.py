"""How far outputs are from those expected: `compare.py ACTUAL.npy EXPECTED.npy...`, in pairs. Prints one JSON object.

max_relative_error: the largest difference as a part of the largest expected magnitude of the same output. cosine: the smallest of all rows of
all outputs that are matrices or sequences of vectors, which are averaged over the sequence first, as sentence embeddings are.
"""

import json
import sys

import numpy as np


def rows(values):
    values = values.astype(np.float64)
    if values.ndim == 3:
        values = values.mean(axis=1)
    return values.reshape(values.shape[0] if values.ndim > 1 else 1, -1)


def main():
    worst, cosine = 0.0, 1.0
    for actual, expected in zip(sys.argv[1::2], sys.argv[2::2]):
        actual, expected = np.load(actual), np.load(expected)
        if actual.shape != expected.shape:
            sys.exit(f"the shape is {list(actual.shape)}, not {list(expected.shape)}")
        if expected.size == 0:
            continue
        difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max()
        error = difference / max(float(np.abs(expected).max()), 1e-30)
        # What is no number is as wrong as can be.
        worst = max(worst, error) if np.isfinite(error) else 1e30
        left, right = rows(actual), rows(expected)
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        products = (left * right).sum(axis=1) / np.maximum(lengths, 1e-30)
        cosine = min(cosine, float(np.nan_to_num(products[lengths > 0], nan=-1.0).min(initial=1.0)))
    print(json.dumps({"max_relative_error": worst, "cosine": cosine}))


if __name__ == "__main__":
    main()
