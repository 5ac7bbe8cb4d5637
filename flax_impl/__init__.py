"""AlexNet in JAX and Flax linen."""

from common.commands.early import answer

answer(__name__)  # help, before the seconds that the framework takes to be imported

from flax_impl.create import create  # noqa: E402
from flax_impl.model import AlexNet, LeNet, build  # noqa: E402

__all__ = ["AlexNet", "LeNet", "build", "create"]
