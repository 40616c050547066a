"""Data sets: each source is one function from a directory and options to a `Dataset`, a `Corpus` or a `Stream`."""

from collections.abc import Callable

from sparsejax.data.cifar import cifar10, cifar100
from sparsejax.data.corpus import Corpus
from sparsejax.data.digits import digits
from sparsejax.data.image_folder import image_folder
from sparsejax.data.mnist import fashion_mnist, mnist
from sparsejax.data.source import Dataset, standardized
from sparsejax.data.stdlib import stdlib
from sparsejax.data.stream import Batches, Stream
from sparsejax.data.text import bpe, text
from sparsejax.data.token_stream import token_stream
from sparsejax.data.tokens import tokens

# name in a config -> function; the first line of its docstring is what `sparsejax list` shows
DATASETS: dict[str, Callable[..., Dataset | Corpus | Stream]] = {
    "digits": digits, "mnist": mnist, "fashion_mnist": fashion_mnist, "cifar10": cifar10, "cifar100": cifar100,
    "image_folder": image_folder, "tokens": tokens, "text": text, "bpe": bpe, "stdlib": stdlib,
}  # fmt: skip

__all__ = [
    "DATASETS", "Batches", "Corpus", "Dataset", "Stream", "bpe", "cifar10", "cifar100", "digits", "fashion_mnist",
    "image_folder", "mnist", "standardized", "stdlib", "text", "token_stream", "tokens",
]  # fmt: skip
