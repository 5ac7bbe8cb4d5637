"""Exercises made of planted faults: which lines they are in, and why they show where they show."""

from __future__ import annotations

from dataclasses import dataclass

from study.notes.note import Cite


@dataclass(frozen=True)
class Exercise:
    """A fault to be found by its first symptom.

    Attributes:
        fault: the right answer, by its name in the table of planted faults.
        others: four wrong answers, by theirs; each shows first elsewhere or otherwise.
        why: why it shows there, in a sentence or two.
        torch, flax: the lines at fault, and those that they have to agree with.
    """

    fault: str
    others: tuple[str, str, str, str]
    why: str
    torch: tuple[Cite, ...]
    flax: tuple[Cite, ...]

    @property
    def choices(self) -> list[str]:
        """All five answers, in an order that does not tell which is right."""
        return sorted((self.fault, *self.others), key=str.lower)


EXERCISES = (
    Exercise(
        '"SAME" padding of a strided convolution',
        (
            "a pool that rounds its size up",
            "another standard deviation",
            "TF32 in PyTorch's convolutions",
            "local response norm's k of 2",
        ),
        "The input agrees, the first convolution does not. With a stride of 2, SAME pads one pixel more on one side "
        "than on the other, so that every window looks a pixel aside. A pool or a norm shows a step later, after the "
        "convolution itself agreed.",
        (Cite("model", "channels, spec.features, spec.kernel, spec.stride, spec.padding"),),
        (Cite("model", "padding=spec.padding,  # explicit"),),
    ),
    Exercise(
        "fc6 transposed but not reordered",
        (
            "square fc7 not transposed",
            "a dense layer in float32",
            "fc6's dropout mask not permuted",
            "an adaptive pool that interpolates",
        ),
        "All convolutions agree, and the shapes fit: a dense layer's matrix was transposed, but its inputs still come "
        "in the order C, H, W. The difference is as large as the values themselves, so it is no rounding.",
        (Cite("model", "Flax flattens H * W * C, so the converter"),),
        (Cite("convert", "return array.reshape(-1, channels, height, width).transpose(2, 3, 1, 0)"),),
    ),
    Exercise(
        "a dense layer in float32",
        (
            "fc6 transposed but not reordered",
            "TF32 in PyTorch's dense layers",
            "bfloat16 in Flax's first convolution",
            "noise in a gradient",
        ),
        "The same layer, but the size tells: 2e-8 is what float32 leaves in a float64 comparison. TF32 would leave "
        "some 3e-4, a wrong order everything.",
        (Cite("model", "self.fc6 = nn.Linear("),),
        (Cite("model", "self.fc6 = dense("),),
    ),
    Exercise(
        "another dropout rate",
        (
            "dropout keys a step ahead",
            "fc6's dropout mask not permuted",
            "flips the other way",
            "square fc7 not transposed",
        ),
        "Both compare the same random numbers, with another threshold: a few zeros more or less. With other keys the "
        "numbers themselves are others, and nearly half of the zeros are in other places.",
        (Cite("dropout", "mask = bernoulli(key, 1 - self.rate, x.numel()"),),
        (Cite("model", "self.drop6 = nn.Dropout(fc6.dropout)"),),
    ),
    Exercise(
        "a pool's gradient shared by ties",
        (
            "a pool that rounds its size up",
            "an average pool for a max pool",
            "noise in a gradient",
            "NaN in a gradient after the backward pass",
        ),
        "Every activation agrees, for the largest of equal values is the same whichever is taken. The gradient goes to "
        "one of them in one framework, to all in the other.",
        (Cite("model", "return nn.MaxPool2d("),),
        (Cite("layers", "def _to_largest("),),
    ),
    Exercise(
        "batch norm's momentum turned round",
        (
            "batch norm's biased running variance",
            "batch norm's eps of 1e-3",
            "momentum of 0.8",
            "local response norm's k of 2",
        ),
        "Activations agree, for training normalises by the batch itself. The running mean is off by a factor: the new "
        "batch weighs 0.9 in place of 0.1. A biased variance would leave the mean alone.",
        (Cite("model", "spec.norm.eps, spec.norm.momentum"),),
        (Cite("model", "momentum=1 - spec.norm.momentum"),),
    ),
    Exercise(
        "label smoothing on one side",
        (
            "a small batch's sum over the full batch's size",
            "another standard deviation",
            "noise in a gradient",
            "micro-batches of a ragged batch weighed alike",
        ),
        "The logits agree and the loss does not, from the first step on: it is defined differently. What goes wrong "
        "with small batches waits for the last batch of the epoch.",
        (Cite("train", "loss = F.cross_entropy("),),
        (Cite("train", "smooth = optax.smooth_labels(targets, smoothing)"),),
    ),
    Exercise(
        "a small batch's sum over the full batch's size",
        (
            "label smoothing on one side",
            "the next step's learning rate",
            "milestones counted in steps",
            "dropout keys a step ahead",
        ),
        "Three steps agree. The fourth batch is the epoch's last and has 5 rows in place of 8: 8 / 5 = 1.6 is the "
        "factor that the comparer reports.",
        (Cite("train", "loss, logits = accumulate(backward"),),
        (Cite("accumulate", "count = rows if real is None else real.sum()"),),
    ),
    Exercise(
        "weight decay after the momentum",
        (
            "momentum of 0.8",
            "plain momentum for Nesterov's",
            "optax's default decay in AdamW",
            "the next step's learning rate",
        ),
        "Gradients agree, and after one step the momentum does not: in one framework it holds the decay, in the other "
        "the gradient alone. A wrong momentum could not show in a memory that was empty.",
        (Cite("optim", '"weight_decay": weight_decay}'),),
        (Cite("optim", "return optax.chain(decay, optax.trace("),),
    ),
    Exercise(
        "momentum of 0.8",
        (
            "weight decay after the momentum",
            "plain momentum for Nesterov's",
            "the next step's learning rate",
            "milestones counted in steps",
        ),
        "The first step agrees: m · 0 + gradient is the gradient, whatever m is. The second shows it. A momentum of "
        "0.899 in place of 0.9 would show at the same place, at a hundredth of the size; in a curve, hardly at all.",
        (Cite("optim", "optimizer = torch.optim.SGD(groups, spec.lr, spec.momentum"),),
        (Cite("optim", "optax.trace(spec.momentum, spec.nesterov)"),),
    ),
    Exercise(
        "optax's default decay in AdamW",
        (
            "decoupled decay in Adam",
            "Adam's eps of 1e-7",
            "plain momentum for Nesterov's",
            "weight decay after the momentum",
        ),
        "The memories agree, so the decay is decoupled as it should be; the parameters part by a multiple of "
        "themselves, so its size is another: PyTorch's default is 1e-2, optax's 1e-4.",
        (Cite("optim", "return torch.optim.AdamW("),),
        (Cite("optim", "optax.add_decayed_weights("),),
    ),
    Exercise(
        "the next step's learning rate",
        (
            "milestones counted in steps",
            "momentum of 0.8",
            "plain momentum for Nesterov's",
            "Adam's eps of 1e-7",
        ),
        "Gradients and memory agree, and for three steps the parameters, too: the rate is the same until the schedule "
        "changes it, which one framework does a step too early.",
        (Cite("train", "state.schedule.step()"),),
        (Cite("optim", "return lambda count: table[count]"),),
    ),
)
