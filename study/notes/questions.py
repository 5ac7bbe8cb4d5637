"""What people ask first, answered from the 2012 network's numbers whatever network the pages show."""

from __future__ import annotations

from dataclasses import dataclass

from study.anatomy import follows, shares, sides
from study.notes import convolution, flatten, response_norm, training
from study.notes.note import PAPER, TORCHVISION, Cite, percent


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    Attributes:
        ask: the question.
        answer: paragraphs.
        link, to: words of a link to more of it, and where it leads.
        torch, flax: lines that show it, if any do.
        fault: whose measured losses show it, by its name, if any do.
    """

    ask: str
    answer: tuple[str, ...]
    link: str
    to: str
    torch: tuple[Cite, ...] = ()
    flax: tuple[Cite, ...] = ()
    fault: str = ""


def questions() -> tuple[Question, ...]:
    """All of them, in the order in which the pages treat of them."""
    backward, update = (next(one for one in training.CONCEPTS if one.key == key) for key in ("backward", "update"))
    return (
        Question(
            "Why is conv1's output 55 × 55?",
            (
                f"A window of {PAPER.convs[0].kernel} pixels moves {PAPER.convs[0].stride} at a time, and this many "
                f"places fit: in the 2012 network {follows(PAPER, 'conv1')[0][1]}, in torchvision's "
                f"{follows(TORCHVISION, 'conv1')[0][1]}.",
                convolution.two_hundred_and_twenty_four(),
            ),
            "conv1 of the network shown here",
            "model.html#layer-conv1",
        ),
        Question(
            f"Where are {shares(PAPER)['dense_parameters']:.0%} of the parameters?".replace("%", " %"),
            (_where(),),
            "the shares of the network shown here",
            "model.html",
        ),
        Question(
            "What does local response norm do, and where did it go?",
            response_norm.told(),
            "which networks have it",
            "deviations.html",
            (Cite("model", "return LocalResponseNorm(step.size"),),
            (Cite("layers", "squares = jax.lax.reduce_window(x * x", 2),),
        ),
        Question(
            "Which line in Flax does what loss.backward() does?",
            (backward.text[0], backward.lead),
            "loss.backward() and jax.grad",
            "training.html#idea-backward",
            backward.torch,
            backward.flax[-1:],
        ),
        Question(
            "Why must fc6's weights be permuted?",
            (flatten.permuted(PAPER),),
            "what it looks like when they are not: exercise 2",
            "break.html#exercise-2",
            (Cite("model", "Flax flattens H * W * C, so the converter"),),
            (Cite("convert", "return array.reshape(-1, channels, height, width).transpose(2, 3, 1, 0)"),),
        ),
        Question(
            "What would a momentum of 0.899 look like?",
            update.text,
            "a momentum of 0.8, with its curves: exercise 10",
            "break.html#exercise-10",
            fault="momentum of 0.899",
        ),
    )


def _where() -> str:
    into, rows = sides(PAPER), {row.name: row.parameters for row in PAPER.layers()}
    parts = [
        f"{name} {percent(rows[name] / PAPER.parameters)} ({into[name][2]:,} · {spec.features:,} weights and as many "
        "biases as outputs)"
        for name, spec in PAPER.named_dense()
    ]
    return (
        f"In the dense layers. Of the 2012 network's {PAPER.parameters:,}: {', '.join(parts)}. The convolutions have "
        f"the rest, and do {percent(shares(PAPER)['conv_multiply_adds'])} of the multiply-adds: a kernel's weights are "
        "used at every place, a dense layer's once an image (section 3.5; Krizhevsky 2014)."
    )
