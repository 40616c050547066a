"""Forward passes in plain NumPy and float64, written from the papers: what the zoo's networks compute in evaluation.

Params and statistics are the zoo's trees, whose names these functions therefore pin.
"""

import math

import numpy as np


def relu(x):
    return np.maximum(x, 0)


def conv(x, kernel, stride=1, padding=None, groups=1):
    """Cross-correlation of x (B, H, W, C) with a kernel (h, w, C / groups, D), tap by tap."""
    taps_h, taps_w, _, outputs = kernel.shape
    padding = (taps_h - 1) // 2 if padding is None else padding
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (x.shape[1] - taps_h) // stride + 1, (x.shape[2] - taps_w) // stride + 1
    y = np.zeros((len(x), rows, columns, outputs))
    for row in range(taps_h):
        for column in range(taps_w):
            seen = x[:, row : row + stride * rows : stride, column : column + stride * columns : stride]
            parts = np.split(seen, groups, -1), np.split(kernel[row, column], groups, -1)
            y += np.concatenate([a @ b for a, b in zip(*parts)], -1)
    return y


def pool(x, size, stride, padding=0, reduce=np.max):
    """Pooling with a window that never reaches beyond the padding."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-np.inf)
    rows, columns = (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1
    windows = [
        x[:, row : row + stride * rows : stride, column : column + stride * columns : stride]
        for row in range(size)
        for column in range(size)
    ]
    return reduce(np.stack(windows), axis=0)


def norm(x, params, stats, name):
    """Batch norm by running statistics."""
    scaled = (x - stats[name]["mean"]) / np.sqrt(stats[name]["var"] + 1e-5)
    return scaled * params[name]["scale"] + params[name]["bias"]


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def mlp(params, stats, x, layers):
    """An MLP with SReLU."""
    x = x.reshape(len(x), -1)
    for index in range(layers):
        x, unit = dense(x, params[f"Dense_{index}"]), params[f"SReLU_{index}"]
        left, right = unit["t_left"], unit["t_left"] + np.abs(unit["t_right"])
        low, high = left + unit["a_left"] * (x - left), right + unit["a_right"] * (x - right)
        x = np.where(x >= right, high, np.where(x > left, x, low))
    return dense(x, params[f"Dense_{layers}"])


def lenet5(params, stats, x):
    for index in (1, 2):
        layer = params[f"conv{index}"]
        x = pool(relu(conv(x, layer["kernel"], padding=0) + layer["bias"]), 2, 2)
    x = x.reshape(len(x), -1)
    for index in (1, 2):
        x = relu(dense(x, params[f"fc{index}"]))
    return dense(x, params["head"])


def resnet(params, stats, x, blocks, bottleneck=False, imagenet=False):
    """ResNet; shortcuts by padding where there is no shortcut/kernel."""
    x = conv(x, params["stem"]["kernel"], 2 if imagenet else 1)
    x = relu(norm(x, params, stats, "stem_norm"))
    x = pool(x, 3, 2, 1) if imagenet else x
    for stage, count in enumerate(blocks, start=1):
        for index in range(1, count + 1):
            name, stride = f"stage{stage}_block{index}", 2 if stage > 1 and index == 1 else 1
            block, moments, convs = params[name], stats[name], 3 if bottleneck else 2
            y = x
            for layer in range(1, convs + 1):
                strides = stride if layer == (2 if bottleneck else 1) else 1
                y = norm(conv(y, block[f"conv{layer}"]["kernel"], strides), block, moments, f"norm{layer}")
                y = relu(y) if layer < convs else y
            if "shortcut" in block:
                x = norm(conv(x, block["shortcut"]["kernel"], stride, 0), block, moments, "shortcut_norm")
            elif x.shape != y.shape:
                zeros = np.zeros((*y.shape[:3], (y.shape[3] - x.shape[3]) // 2))
                x = np.concatenate([zeros, x[:, ::2, ::2], zeros], -1)
            x = relu(x + y)
    return dense(x.mean((1, 2)), params["head"])


def wide_resnet(params, stats, x, blocks):
    x = conv(x, params["stem"]["kernel"])
    for stage in (1, 2, 3):
        for index in range(1, blocks + 1):
            name, stride = f"stage{stage}_block{index}", 2 if stage > 1 and index == 1 else 1
            block, moments = params[name], stats[name]
            active = relu(norm(x, block, moments, "norm1"))
            y = relu(norm(conv(active, block["conv1"]["kernel"], stride), block, moments, "norm2"))
            x = conv(active, block["shortcut"]["kernel"], stride, 0) if "shortcut" in block else x
            x = x + conv(y, block["conv2"]["kernel"])
    x = relu(norm(x, params, stats, "head_norm"))
    return dense(x.mean((1, 2)), params["head"])


def vgg(params, stats, x, convs):
    for stage, count in enumerate(convs, start=1):
        x = pool(x, 2, 2) if stage > 1 and min(x.shape[1:3]) > 1 else x
        for index in range(1, count + 1):
            x = conv(x, params[f"stage{stage}_conv{index}"]["kernel"])
            x = relu(norm(x, params, stats, f"stage{stage}_norm{index}"))
    return dense(x.mean((1, 2)), params["head"])


def mobilenet(params, stats, x, blocks):
    def layer(x, name, stride=1, groups=1):
        return relu(norm(conv(x, params[name]["kernel"], stride, groups=groups), params, stats, f"{name}_norm"))

    x = layer(x, "stem", 2)
    for index in range(1, blocks + 1):
        x = layer(x, f"block{index}_depthwise", 2 if index in (2, 4, 6, 12) else 1, x.shape[-1])
        x = layer(x, f"block{index}_pointwise")
    return dense(x.mean((1, 2)), params["head"])


def vit(tensors, x, heads, epsilon, positions=None, token=True):
    """A vision transformer from tensors named and laid out as in `transformers`; images x (B, H, W, C).

    positions (L, D): fixed ones in place of the learned. Without token: the mean over the patches.
    """

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0)

    def layer_norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def attention(x, name):
        def split(part):
            y = linear(x, f"{name}.attention.{part}")
            return y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)

        query, key, value = split("query"), split("key"), split("value")
        scores = np.exp(query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1]))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ value
        return linear(mixed.transpose(0, 2, 1, 3).reshape(x.shape), f"{name}.output.dense")

    kernel = tensors["vit.embeddings.patch_embeddings.projection.weight"]
    patches = conv(x, kernel.transpose(2, 3, 1, 0), kernel.shape[-1], 0)
    h = patches.reshape(len(x), -1, patches.shape[-1]) + tensors["vit.embeddings.patch_embeddings.projection.bias"]
    h = h if positions is None else h + positions
    if token:
        h = np.concatenate([np.repeat(tensors["vit.embeddings.cls_token"], len(x), 0), h], 1)
    h = h + tensors["vit.embeddings.position_embeddings"] if positions is None else h
    gelu = np.vectorize(lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2)
    for index in range(sum(name.endswith("intermediate.dense.weight") for name in tensors)):
        block = f"vit.encoder.layer.{index}"
        h = h + attention(layer_norm(h, f"{block}.layernorm_before"), f"{block}.attention")
        inner = gelu(linear(layer_norm(h, f"{block}.layernorm_after"), f"{block}.intermediate.dense"))
        h = h + linear(inner, f"{block}.output.dense")
    h = layer_norm(h, "vit.layernorm")
    return linear(h[:, 0] if token else h.mean(1), "classifier")
