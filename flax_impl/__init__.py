"""AlexNet in JAX and Flax linen."""

from flax_impl.model import AlexNet, LeNet, build, create

__all__ = ["AlexNet", "LeNet", "build", "create"]
