"""What torch's autograd makes of two small blocks: torch_reference.json, which tests/torch.rs reads.

    python make_reference.py            (torch 2; any version gives the same to six digits)
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F

torch.manual_seed(7)


def rms(x, w, epsilon=1e-5):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + epsilon) * w


def rotate(x, positions, theta):
    """Pairs of halves; x is [tokens, heads, length]."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * theta ** (-torch.arange(half) * 2.0 / x.shape[-1])
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def decoder(x, n1, wq, wk, wv, wo, n2, gate, up, down):
    """A layer of a language model: grouped queries, causal."""
    tokens, length, heads, kv = x.shape[0], 4, 4, 2
    h = rms(x, n1)
    positions = torch.arange(tokens, dtype=torch.float32)
    q = rotate((h @ wq.T).view(tokens, heads, length), positions, 100.0)
    k = rotate((h @ wk.T).view(tokens, kv, length), positions, 100.0)
    v = (h @ wv.T).view(tokens, kv, length)
    k, v = (t.repeat_interleave(heads // kv, 1).transpose(0, 1) for t in (k, v))
    scores = q.transpose(0, 1) @ k.transpose(1, 2) / math.sqrt(length)
    scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf)
    h = (scores.softmax(-1) @ v).transpose(0, 1).reshape(tokens, heads * length) @ wo.T
    x = x + h
    h = rms(x, n2)
    return x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T


def net(x, w1, b1, w2, b2, scale, shift, w3):
    """Convolution, GELU, depthwise convolution, normalization of channels, mean over places, logarithms of probabilities."""
    x = F.gelu(F.conv2d(x, w1, b1, stride=2, padding=1))
    x = F.conv2d(x, w2, b2, padding=1, groups=4)
    x = F.layer_norm(x.permute(0, 2, 3, 1), (4,), scale, shift, 1e-5)
    x = F.hardswish(x).reshape(2, 9, 4).mean(1)
    return F.log_softmax(x @ w3.T, -1)


def case(function, shapes):
    inputs = {name: (torch.randn(shape) * 0.5).requires_grad_() for name, shape in shapes.items()}
    y = function(**inputs)
    cotangent = torch.randn(y.shape)
    (y * cotangent).sum().backward()

    def tensor(t):
        return {"shape": list(t.shape), "values": [float(f"{v:.8g}") for v in t.flatten().tolist()]}

    return {
        "inputs": {name: tensor(t.detach()) for name, t in inputs.items()},
        "y": tensor(y.detach()),
        "cotangent": tensor(cotangent),
        "gradients": {name: tensor(t.grad) for name, t in inputs.items()},
    }


reference = {
    "decoder": case(
        decoder,
        {
            "x": (5, 8), "n1": (8,), "wq": (16, 8), "wk": (8, 8), "wv": (8, 8), "wo": (8, 16),
            "n2": (8,), "gate": (12, 8), "up": (12, 8), "down": (8, 12),
        },
    ),
    "net": case(
        net,
        {
            "x": (2, 3, 6, 6), "w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 1, 3, 3), "b2": (4,),
            "scale": (4,), "shift": (4,), "w3": (3, 4),
        },
    ),
}
path = pathlib.Path(__file__).parent / "torch_reference.json"
path.write_text(json.dumps(reference, separators=(",", ":")) + "\n")
