"""Shapes of networks with known FLOPs and ERK densities: lists of (path, kernel shape, output positions).

A kernel is (height, width, in, out) or (in, out), as in Flax; each weight is used once at every output
position, so multiply-accumulates = prod(shape) * positions. Only convolutions and fully connected layers, in
forward order.
"""

import math

import jax
import jax.numpy as jnp

Network = list[tuple[str, tuple[int, ...], int]]


def resnet50() -> Network:
    """ResNet-50 v1.5 (stride in the 3x3 convolution) for 224 x 224 images and 1000 classes."""
    layers: Network = [("stem", (7, 7, 3, 64), 112**2)]
    width_in, side = 64, 56
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(1, blocks + 1):
            name = f"stage{stage}/block{block}"
            side_in, side = side, side // (2 if stage > 1 and block == 1 else 1)
            layers.append((f"{name}/conv1", (1, 1, width_in, width), side_in**2))
            layers.append((f"{name}/conv2", (3, 3, width, width), side**2))
            layers.append((f"{name}/conv3", (1, 1, width, 4 * width), side**2))
            if block == 1:
                layers.append((f"{name}/shortcut", (1, 1, width_in, 4 * width), side**2))
            width_in = 4 * width
    return [*layers, ("head", (2048, 1000), 1)]


def basic_resnet(blocks: int, widths: tuple[int, ...], stem: int) -> Network:
    """A ResNet of two-convolution blocks for 32 x 32 images, with 1x1 shortcuts where the width changes."""
    layers: Network = [("stem", (3, 3, 3, stem), 32**2)]
    width_in, side = stem, 32
    for stage, width in enumerate(widths, start=1):
        for block in range(1, blocks + 1):
            name = f"stage{stage}/block{block}"
            side = side // 2 if stage > 1 and block == 1 else side
            layers.append((f"{name}/conv1", (3, 3, width_in, width), side**2))
            layers.append((f"{name}/conv2", (3, 3, width, width), side**2))
            if width_in != width:
                layers.append((f"{name}/shortcut", (1, 1, width_in, width), side**2))
            width_in = width
    return [*layers, ("head", (widths[-1], 10), 1)]


def resnet20() -> Network:
    """ResNet-20 of width 16."""
    return basic_resnet(3, (16, 32, 64), stem=16)


def wrn22_2() -> Network:
    """Wide ResNet of depth 22 and widening factor 2."""
    return basic_resnet(3, (32, 64, 128), stem=16)


def vgg19() -> Network:
    """VGG-19 for 32 x 32 images and 10 classes: 16 convolutions and a single fully connected layer."""
    layers: Network = []
    width_in, side = 3, 32
    for stage, (convs, width) in enumerate([(2, 64), (2, 128), (4, 256), (4, 512), (4, 512)], start=1):
        for conv in range(1, convs + 1):
            layers.append((f"stage{stage}/conv{conv}", (3, 3, width_in, width), side**2))
            width_in = width
        side //= 2
    return [*layers, ("head", (512, 10), 1)]


def lenet_300_100() -> Network:
    """The multilayer perceptron 784-300-100-10."""
    return [("fc1", (784, 300), 1), ("fc2", (300, 100), 1), ("fc3", (100, 10), 1)]


def lenet5() -> Network:
    """LeNet-5 for 28 x 28 images: two unpadded 5x5 convolutions (6, 16 channels), then 120-84-10."""
    convs: Network = [("conv1", (5, 5, 1, 6), 24**2), ("conv2", (5, 5, 6, 16), 8**2)]
    return [*convs, ("fc1", (256, 120), 1), ("fc2", (120, 84), 1), ("fc3", (84, 10), 1)]


def weights(network: Network) -> int:
    """Number of weights of a network."""
    return sum(math.prod(shape) for _, shape, _ in network)


def macs(network: Network) -> dict[str, int]:
    """Multiply-accumulates of every layer for one image."""
    return {path: math.prod(shape) * positions for path, shape, positions in network}


def params(network: Network) -> dict[str, jax.ShapeDtypeStruct]:
    """The network's kernels as a flat dict of shapes."""
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape, _ in network}
