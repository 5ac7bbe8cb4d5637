"""AlexNet in JAX and Flax linen."""

from flax_impl.create import create
from flax_impl.model import AlexNet, LeNet, build

__all__ = ["AlexNet", "LeNet", "build", "create"]
