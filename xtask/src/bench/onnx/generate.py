"""Writes the models that `cargo xtask bench onnx` measures and no package carries.

    generate.py KIND OUT.onnx [CONFIG.json MODEL.safetensors]

KIND is one of MODELS below. Operators and their order are those of torch's exporter, which most ONNX files come from: linear layers
as MatMul and an Add with the bias first, GELU as Div, Erf, Add, Mul, Mul, shapes computed from the inputs' by Shape, Gather, Unsqueeze
and Concat, scalars as Constant nodes. Weights are random unless a file with weights is given; seeds are fixed.
"""

import json
import sys

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

BERT_BASE = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def read_safetensors(path):
    """Its F32 and I64 tensors by name."""
    numpy_types = {"F32": "<f4", "I64": "<i8"}
    with open(path, "rb") as file:
        data = file.read()
    length = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[begin:end], dtype=numpy_types[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


class Weights:
    """Weights by their names in the checkpoint, from a file or random."""

    def __init__(self, file=None):
        self.file = file
        self.random = np.random.default_rng(20)

    def get(self, name, shape, scale=0.02, mean=0.0):
        if self.file is not None:
            values = self.file[name]
            assert values.shape == tuple(shape), (name, values.shape, shape)
            return values
        return (mean + scale * self.random.standard_normal(shape)).astype(np.float32)


class Exporter:
    """A graph under construction, with names of values as torch's exporter makes them from modules."""

    def __init__(self, opset):
        self.opset = opset
        self.nodes = []
        self.initializers = []
        self.used = {}

    def weight(self, name, values):
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def numbered_weight(self, kind, values):
        """A weight that the exporter changed, so that it lost its name."""
        return self.weight(f"onnx::{kind}_{len(self.initializers) + len(self.nodes)}", values)

    def node(self, operator, scope, inputs, output=None, **attributes):
        count = self.used.get((scope, operator), 0)
        self.used[scope, operator] = count + 1
        name = f"{scope}/{operator}" + (f"_{count}" if count else "")
        result = output or f"{name}_output_0"
        self.nodes.append(helper.make_node(operator, inputs, [result], name=name, **attributes))
        return result

    def constant(self, scope, value, dtype=np.float32):
        return self.node("Constant", scope, [], value=numpy_helper.from_array(np.array(value, dtype)))

    def unsqueeze(self, scope, value, axis):
        if self.opset < 13:
            return self.node("Unsqueeze", scope, [value], axes=[axis])
        return self.node("Unsqueeze", scope, [value, self.constant(scope, [axis], np.int64)])

    def extent(self, scope, value, axis):
        """One extent of a value, as a vector of one element."""
        shape = self.node("Shape", scope, [value])
        scalar = self.node("Gather", scope, [shape, self.constant(scope, axis, np.int64)], axis=0)
        return self.unsqueeze(scope, scalar, 0)

    def view(self, scope, value, extents):
        """A reshape to extents that are numbers or positions in the value's own shape, written as ("axis", n)."""
        parts = []
        for extent in extents:
            if isinstance(extent, tuple):
                parts.append(self.extent(scope, value, extent[1]))
            else:
                parts.append(self.constant(scope, [extent], np.int64))
        return self.node("Reshape", scope, [value, self.node("Concat", scope, parts, axis=0)])

    def save(self, path, name, inputs, outputs):
        def values(entries):
            return [helper.make_tensor_value_info(*entry) for entry in entries]

        graph = helper.make_graph(self.nodes, name, values(inputs), values(outputs), self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="polaris-bench")
        checker.check_model(model)
        save(model, path)


class Bert:
    """BERT's encoder as transformers' BertModel is exported."""

    def __init__(self, config, weights, opset, scaled_attention):
        self.config = config
        self.weights = weights
        self.graph = Exporter(opset)
        self.scaled_attention = scaled_attention

    def linear(self, name, value, rows, columns):
        scope = "/" + name.replace(".", "/").replace("layer/", "layer.")
        matrix = self.weights.get(name + ".weight", (columns, rows)).T
        bias = self.graph.weight(name + ".bias", self.weights.get(name + ".bias", (columns,)))
        product = self.graph.node("MatMul", scope, [value, self.graph.numbered_weight("MatMul", matrix)])
        return self.graph.node("Add", scope, [bias, product])

    def layer_norm(self, name, value, output=None):
        graph = self.graph
        scope = "/" + name.replace(".", "/").replace("layer/", "layer.")
        width = self.config["hidden_size"]
        epsilon = self.config["layer_norm_eps"]
        weight = graph.weight(name + ".weight", self.weights.get(name + ".weight", (width,), mean=1.0))
        bias = graph.weight(name + ".bias", self.weights.get(name + ".bias", (width,)))
        if graph.opset >= 17:
            return graph.node(
                "LayerNormalization", scope, [value, weight, bias], output, axis=-1, epsilon=epsilon
            )
        mean = graph.node("ReduceMean", scope, [value], axes=[-1])
        centred = graph.node("Sub", scope, [value, mean])
        squares = graph.node("Pow", scope, [centred, graph.constant(scope, 2.0)])
        variance = graph.node("ReduceMean", scope, [squares], axes=[-1])
        shifted = graph.node("Add", scope, [variance, graph.constant(scope, epsilon)])
        normal = graph.node("Div", scope, [centred, graph.node("Sqrt", scope, [shifted])])
        return graph.node("Add", scope, [graph.node("Mul", scope, [normal, weight]), bias], output)

    def gelu(self, scope, value):
        graph = self.graph
        inner = graph.node("Div", scope, [value, graph.constant(scope, 2.0**0.5)])
        erf = graph.node("Erf", scope, [inner])
        shifted = graph.node("Add", scope, [erf, graph.constant(scope, 1.0)])
        return graph.node("Mul", scope, [graph.node("Mul", scope, [value, shifted]), graph.constant(scope, 0.5)])

    def mask(self):
        """1 for tokens and 0 for padding become 0 and the lowest number, [batch, 1, 1, sequence]."""
        graph = self.graph
        wide = graph.unsqueeze("", graph.unsqueeze("", "attention_mask", 1), 2)
        ones = graph.node("Cast", "", [wide], to=TensorProto.FLOAT)
        inverse = graph.node("Sub", "", [graph.constant("", 1.0), ones])
        return graph.node("Mul", "", [inverse, graph.constant("", np.finfo(np.float32).min)])

    def embeddings(self):
        graph, config = self.graph, self.config
        scope, width = "/embeddings", config["hidden_size"]

        def table(kind, rows):
            name = f"embeddings.{kind}.weight"
            return graph.weight(name, self.weights.get(name, (rows, width)))

        positions = np.arange(config["max_position_embeddings"], dtype=np.int64)[None]
        positions = graph.weight("embeddings.position_ids", positions)
        starts, axes, steps = (graph.constant(scope, [n], np.int64) for n in (0, 1, 1))
        length = graph.extent(scope, "input_ids", 1)
        positions = graph.node("Slice", scope, [positions, starts, length, axes, steps])
        words = table("word_embeddings", config["vocab_size"])
        words = graph.node("Gather", scope + "/word_embeddings", [words, "input_ids"])
        types = table("token_type_embeddings", config["type_vocab_size"])
        types = graph.node("Gather", scope + "/token_type_embeddings", [types, "token_type_ids"])
        both = graph.node("Add", scope, [words, types])
        places = table("position_embeddings", config["max_position_embeddings"])
        places = graph.node("Gather", scope + "/position_embeddings", [places, positions])
        return self.layer_norm("embeddings.LayerNorm", graph.node("Add", scope, [both, places]))

    def attention(self, name, value, mask):
        graph = self.graph
        scope = "/" + name.replace(".", "/").replace("layer/", "layer.")
        width, heads = self.config["hidden_size"], self.config["num_attention_heads"]
        head = width // heads
        split = [("axis", 0), ("axis", 1), heads, head]

        def projected(kind, order):
            flat = self.linear(f"{name}.{kind}", value, width, width)
            return graph.node("Transpose", scope, [graph.view(scope, flat, split)], perm=order)

        queries = projected("query", [0, 2, 1, 3])
        if self.scaled_attention:
            # scaled_dot_product_attention: the root of the scale, computed from the shape, goes to both sides.
            keys = projected("key", [0, 2, 1, 3])
            values = projected("value", [0, 2, 1, 3])
            shape = graph.node("Shape", scope, [queries])
            ends = [graph.constant(scope, [n], np.int64) for n in (-1, np.iinfo(np.int64).max)]
            last = graph.node("Slice", scope, [shape, *ends])
            root = graph.node("Sqrt", scope, [graph.node("Cast", scope, [last], to=TensorProto.FLOAT)])
            scale = graph.node("Div", scope, [graph.constant(scope, [1.0]), root])
            keys = graph.node("Transpose", scope, [keys], perm=[0, 1, 3, 2])
            left = graph.node("Mul", scope, [queries, graph.node("Sqrt", scope, [scale])])
            right = graph.node("Mul", scope, [keys, graph.node("Sqrt", scope, [scale])])
            scores = graph.node("MatMul", scope, [left, right])
        else:
            keys = projected("key", [0, 2, 3, 1])
            values = projected("value", [0, 2, 1, 3])
            scores = graph.node("MatMul", scope, [queries, keys])
            scores = graph.node("Div", scope, [scores, graph.constant(scope, float(head) ** 0.5)])
        scores = graph.node("Add", scope, [scores, mask])
        context = graph.node("MatMul", scope, [graph.node("Softmax", scope, [scores], axis=-1), values])
        context = graph.node("Transpose", scope, [context], perm=[0, 2, 1, 3])
        return graph.view(scope, context, [("axis", 0), ("axis", 1), width])

    def layer(self, number, value, mask, output):
        graph, config = self.graph, self.config
        name = f"encoder.layer.{number}"
        scope = f"/encoder/layer.{number}"
        width, inner = config["hidden_size"], config["intermediate_size"]
        context = self.attention(f"{name}.attention.self", value, mask)
        attended = self.linear(f"{name}.attention.output.dense", context, width, width)
        attended = graph.node("Add", f"{scope}/attention/output", [attended, value])
        attended = self.layer_norm(f"{name}.attention.output.LayerNorm", attended)
        hidden = self.linear(f"{name}.intermediate.dense", attended, width, inner)
        hidden = self.gelu(f"{scope}/intermediate/intermediate_act_fn", hidden)
        hidden = self.linear(f"{name}.output.dense", hidden, inner, width)
        hidden = graph.node("Add", f"{scope}/output", [hidden, attended])
        return self.layer_norm(f"{name}.output.LayerNorm", hidden, output)

    def save(self, path):
        value, mask = self.embeddings(), self.mask()
        layers = self.config["num_hidden_layers"]
        for number in range(layers):
            output = "last_hidden_state" if number + 1 == layers else None
            value = self.layer(number, value, mask, output)
        extents = ["batch", "sequence"]
        inputs = [
            (name, TensorProto.INT64, extents) for name in ("input_ids", "attention_mask", "token_type_ids")
        ]
        outputs = [("last_hidden_state", TensorProto.FLOAT, [*extents, self.config["hidden_size"]])]
        self.graph.save(path, "main_graph", inputs, outputs)


class ConvNet:
    """What torchvision's convolutional networks have in common. `folded`: batch normalizations are part of the convolutions' weights, as
    the exporter makes it by itself; else they are nodes, as it leaves them when it is told to keep them."""

    EPSILON = 1e-5

    def __init__(self, folded):
        self.folded = folded
        self.graph = Exporter(17)
        self.weights = Weights()

    def conv(self, name, value, channels, to, kernel, stride=1, groups=1, gain=1.0):
        """A convolution with batch normalization; the same function whether folded or not."""
        graph, scope = self.graph, "/" + name.replace(".", "/")
        fan_in = channels // groups * kernel * kernel
        shape = (to, channels // groups, kernel, kernel)
        filters = self.weights.get(name, shape, scale=(2.0 / fan_in) ** 0.5)
        scale = gain * self.weights.get(name, (to,), scale=0.1, mean=1.0)
        shift, mean = (self.weights.get(name, (to,), scale=0.1) for _ in range(2))
        variance = np.abs(self.weights.get(name, (to,), scale=0.1, mean=1.0)) + np.float32(0.1)
        attributes = {
            "dilations": [1, 1],
            "group": groups,
            "kernel_shape": [kernel, kernel],
            "pads": [(kernel - 1) // 2] * 4,
            "strides": [stride, stride],
        }
        if self.folded:
            factor = scale / np.sqrt(variance + np.float32(self.EPSILON))
            filters = filters * factor[:, None, None, None]
            inputs = [graph.numbered_weight("Conv", filters), graph.numbered_weight("Conv", shift - mean * factor)]
            return graph.node("Conv", scope, [value, *inputs], **attributes)
        value = graph.node("Conv", scope, [value, graph.weight(name + ".weight", filters)], **attributes)
        parts = {"weight": scale, "bias": shift, "running_mean": mean, "running_var": variance}
        inputs = [graph.weight(f"{name}_bn.{part}", values) for part, values in parts.items()]
        return graph.node(
            "BatchNormalization", scope + "_bn", [value, *inputs], epsilon=self.EPSILON, momentum=0.9, training_mode=0
        )

    def classify(self, name, value, channels):
        graph = self.graph
        value = graph.node("GlobalAveragePool", "/avgpool", [value])
        value = graph.node("Flatten", "", [value], axis=1)
        matrix = graph.weight(name + ".weight", self.weights.get(name, (1000, channels), scale=channels**-0.5))
        bias = graph.weight(name + ".bias", self.weights.get(name, (1000,)))
        graph.node("Gemm", "/" + name, [value, matrix, bias], "output", alpha=1.0, beta=1.0, transB=1)

    def save(self, path):
        self.build()
        inputs = [("input", TensorProto.FLOAT, ["batch", 3, 224, 224])]
        self.graph.save(path, "main_graph", inputs, [("output", TensorProto.FLOAT, ["batch", 1000])])


class ResNet50(ConvNet):
    """He et al. 2015; the stride of a block is in its 3x3 convolution, as in torchvision."""

    BLOCKS = [3, 4, 6, 3]

    def relu(self, scope, value):
        return self.graph.node("Relu", scope, [value])

    def build(self):
        value = self.relu("/relu", self.conv("conv1", "input", 3, 64, 7, stride=2))
        value = self.graph.node(
            "MaxPool", "/maxpool", [value], ceil_mode=0, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]
        )
        channels = 64
        for stage, blocks in enumerate(self.BLOCKS):
            width = 64 << stage
            for block in range(blocks):
                name = f"layer{stage + 1}.{block}"
                scope = f"/layer{stage + 1}/layer{stage + 1}.{block}"
                stride = 2 if block == 0 and stage > 0 else 1
                inner = self.relu(f"{scope}/relu", self.conv(f"{name}.conv1", value, channels, width, 1))
                inner = self.relu(f"{scope}/relu", self.conv(f"{name}.conv2", inner, width, width, 3, stride))
                inner = self.conv(f"{name}.conv3", inner, width, 4 * width, 1, gain=0.3)
                if block == 0:
                    value = self.conv(f"{name}.downsample.0", value, channels, 4 * width, 1, stride)
                value = self.relu(f"{scope}/relu", self.graph.node("Add", scope, [inner, value]))
                channels = 4 * width
        self.classify("fc", value, channels)


class MobileNetV2(ConvNet):
    """Sandler et al. 2018."""

    # Expansion, channels, blocks, stride of the first.
    STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]

    def relu6(self, scope, value):
        bounds = [self.graph.constant(scope, bound) for bound in (0.0, 6.0)]
        return self.graph.node("Clip", scope, [value, *bounds])

    def build(self):
        value = self.relu6("/features/features.0", self.conv("features.0.0", "input", 3, 32, 3, stride=2))
        channels, number = 32, 0
        for expansion, to, blocks, first_stride in self.STAGES:
            for block in range(blocks):
                number += 1
                name, scope = f"features.{number}.conv", f"/features/features.{number}"
                stride = first_stride if block == 0 else 1
                inner, width = value, channels * expansion
                if expansion > 1:
                    inner = self.relu6(f"{scope}/conv/conv.0", self.conv(f"{name}.0.0", inner, channels, width, 1))
                inner = self.conv(f"{name}.1.0", inner, width, width, 3, stride, groups=width)
                inner = self.relu6(f"{scope}/conv/conv.1", inner)
                inner = self.conv(f"{name}.2", inner, width, to, 1)
                same = stride == 1 and channels == to
                value = self.graph.node("Add", scope, [value, inner]) if same else inner
                channels = to
        value = self.relu6("/features/features.18", self.conv("features.18.0", value, channels, 1280, 1))
        self.classify("classifier.1", value, 1280)


def minilm(opset):
    def build(arguments):
        config, weights = arguments
        with open(config, encoding="utf-8") as file:
            return Bert(json.load(file), Weights(read_safetensors(weights)), opset, scaled_attention=False)

    return build


MODELS = {
    "minilm": minilm(17),
    "minilm-opset13": minilm(13),
    "bert-base": lambda _: Bert(BERT_BASE, Weights(), 17, scaled_attention=True),
    "resnet50": lambda _: ResNet50(folded=True),
    "resnet50-bn": lambda _: ResNet50(folded=False),
    "mobilenetv2": lambda _: MobileNetV2(folded=True),
    "mobilenetv2-bn": lambda _: MobileNetV2(folded=False),
}


def main():
    kind, path, *arguments = sys.argv[1:]
    MODELS[kind](arguments).save(path)


if __name__ == "__main__":
    main()
