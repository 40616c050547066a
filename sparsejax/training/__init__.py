"""Training of one trial (a config, several seeds) in a run directory."""

from sparsejax.training.config import default_config, resolve, with_options
from sparsejax.training.errors import ConfigError, NonFiniteLoss, Preempted
from sparsejax.training.loop import train

__all__ = ["ConfigError", "NonFiniteLoss", "Preempted", "default_config", "resolve", "train", "with_options"]
