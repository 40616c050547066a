"""The model zoo: Flax Linen modules, one file each."""

from collections.abc import Callable

import flax.linen as nn

from sparsejax.models.gpt import GPT, GPT2, GPT2Medium, GPTChar, GPTToy
from sparsejax.models.huggingface_vit import load_vit
from sparsejax.models.lenet import LeNet5
from sparsejax.models.mlp import MLP, lenet_300_100, set_mlp
from sparsejax.models.mobilenet import MobileNetV1
from sparsejax.models.resnet import (
    ResNet,
    resnet18,
    resnet20,
    resnet32,
    resnet50,
    resnet56,
    resnet110,
    resnet_cifar,
)
from sparsejax.models.rnn import GRU, LSTM
from sparsejax.models.scanned import stack_blocks, unstack_blocks
from sparsejax.models.vgg import VGG, vgg11, vgg16, vgg19
from sparsejax.models.vit import ViT, vit_b, vit_s, vit_ti
from sparsejax.models.wide_resnet import WideResNet, wrn, wrn16_8, wrn22_2, wrn28_10

# name in a config -> module class or constructor; the first line of its docstring is what `sparsejax list` shows
MODELS: dict[str, Callable[..., nn.Module]] = {
    "gpt": GPT,
    "gpt2": GPT2,
    "gpt2_medium": GPT2Medium,
    "gpt_char": GPTChar,
    "gpt_toy": GPTToy,
    "gru": GRU,
    "lenet5": LeNet5,
    "lenet_300_100": lenet_300_100,
    "lstm": LSTM,
    "mlp": MLP,
    "mobilenet_v1": MobileNetV1,
    "resnet110": resnet110,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet50": resnet50,
    "resnet56": resnet56,
    "resnet_cifar": resnet_cifar,
    "set_mlp": set_mlp,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "vit": ViT,
    "vit_b": vit_b,
    "vit_s": vit_s,
    "vit_ti": vit_ti,
    "wrn": wrn,
    "wrn16_8": wrn16_8,
    "wrn22_2": wrn22_2,
    "wrn28_10": wrn28_10,
}

__all__ = [
    "GPT", "GPT2", "GRU", "LSTM", "MLP", "MODELS", "VGG", "GPT2Medium", "GPTChar", "GPTToy", "LeNet5", "MobileNetV1",
    "ResNet", "ViT", "WideResNet", "load_vit", "stack_blocks", "unstack_blocks",
]  # fmt: skip
