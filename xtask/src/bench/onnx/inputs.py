"""Writes inputs of models as .npy files, the same in every run: `inputs.py FOLDER NAME:FILLING:EXTENTS...`, extents as in 8x128.

A number without extents is a scalar. FILLING is one of those below.
"""

import sys
from pathlib import Path

import numpy as np


def tokens(shape):
    """Ids of BERT's vocabulary: [CLS], words, [SEP]."""
    words = np.random.default_rng(1).integers(2000, 28000, shape, dtype=np.int64)
    words[:, 0], words[:, -1] = 101, 102
    return words


def image(shape):
    """Normalized pixels: waves of several lengths, and noise."""
    *outer, rows, columns = shape
    y, x = np.mgrid[0:rows, 0:columns] / max(rows, columns)
    waves = sum(np.sin(n * 6.28 * (x + n * y)) / n for n in (1, 3, 7))
    noise = np.random.default_rng(2).standard_normal((*outer, rows, columns))
    return (waves + 0.2 * noise).astype(np.float32)


def audio(shape):
    """Samples at 16 kHz: a tone with overtones that swells, and noise."""
    time = np.arange(shape[-1]) / 16000
    tone = sum(np.sin(6.28 * 150 * n * time) / n for n in range(1, 8))
    noise = np.random.default_rng(3).standard_normal(shape)
    return (0.2 * tone * np.sin(50 * time) + 0.01 * noise).astype(np.float32)


FILLINGS = {
    "tokens": tokens,
    "ones": lambda shape: np.ones(shape, np.int64),
    "zeros": lambda shape: np.zeros(shape, np.int64),
    "zeros_f32": lambda shape: np.zeros(shape, np.float32),
    "image": image,
    "audio": audio,
    "bytes": lambda shape: np.random.default_rng(4).integers(32, 127, shape, dtype=np.int32),
    "rate": lambda shape: np.full(shape, 16000, np.int64),
}


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for entry in sys.argv[2:]:
        name, filling, extents = entry.split(":")
        shape = tuple(int(extent) for extent in extents.split("x") if extent)
        np.save(folder / f"{name}.npy", FILLINGS[filling](shape))


if __name__ == "__main__":
    main()
