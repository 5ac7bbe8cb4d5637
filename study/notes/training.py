"""The concepts of a training step, with the lines of both frameworks that stand for each."""

from __future__ import annotations

from study.notes.note import Cite, Concept

CONCEPTS = (
    Concept(
        "state",
        "A state in place, and a state returned",
        "PyTorch's step changes the objects that it is given; Flax's returns a new state and leaves the old one alone.",
        (Cite("train", "sums = train_step(state, inputs, batch.first, batch.count)"),),
        (Cite("train", "state, sums = train_step(state, inputs)"),),
        (
            "Forget state = in Flax and nothing is learnt, without an error. In PyTorch there is nothing to forget, "
            "and nothing to go back to.",
            "The old state's memory is reused all the same: donate_argnums=0 gives it away, so reading it after the "
            "step is an error.",
        ),
    ),
    Concept(
        "zero-grad",
        "zero_grad, and gradients that are values",
        "PyTorch adds every gradient to the one that the parameter holds, so a step begins by emptying it.",
        (Cite("train", "state.optimizer.zero_grad()"),),
        (Cite("train", "gradients, batch_stats, loss, logits = accumulate("),),
        (
            "In Flax a gradient is a value that a function returns. Nothing is kept, so nothing is emptied; whoever "
            "wants the sum of several adds them up, as accumulate.py does.",
        ),
    ),
    Concept(
        "backward",
        "loss.backward(), and jax.grad",
        "PyTorch records the forward pass and runs it backwards; JAX makes a function that computes gradients out of "
        "the function that computes the loss.",
        (Cite("train", "state.scaler.scale(loss * state.world.size / count).backward()"),),
        (
            Cite("train", "def loss_fn(params"),
            Cite("train", "gradients, rest = jax.grad(loss_fn, has_aux=True)(state.params)"),
        ),
        (
            "The line with jax.grad does what .backward() does. It differentiates by loss_fn's first argument, "
            "so the parameters have to be an argument.",
            "has_aux=True lets loss_fn hand out what is no loss: batch statistics, and the logits for counting.",
        ),
    ),
    Concept(
        "update",
        "optimizer.step(), and apply_gradients",
        "PyTorch's optimizer reads the gradients off the parameters and changes both them and its memory; optax "
        "returns updates, which the train state adds to the parameters.",
        (Cite("train", "state.scaler.step(state.optimizer)"),),
        (Cite("train", "after = state.apply_gradients(grads=gradients, batch_stats=batch_stats)"),),
        (
            "A momentum of 0.899 in place of 0.9 cannot be seen in the first step: the memory is empty, and both give "
            "the gradient itself. From the second step on the memories part by a thousandth of the first gradient; "
            "the comparer names step 1 (counted from 0), optimizer, momentum_buffer. A curve would hardly show it.",
        ),
    ),
    Concept(
        "dropout",
        "Where dropout's randomness is from",
        "PyTorch draws masks from a hidden global generator; JAX draws nothing without a key that it is handed.",
        (Cite("train", "state.dropout.at(state.step)"),),
        (
            Cite("train", 'rngs = {"dropout": state.dropout_key}'),
            Cite("state", "return jax.random.fold_in(jax.random.wrap_key_data(self.key), self.step)"),
        ),
        (
            "The key of a step is the run's key with the step folded in, so that a resumed run draws the same masks. "
            "torch_impl does likewise: its own dropout computes Flax's masks from the same key.",
            "Section 4.2 of the paper: a rate of 0.5 in the first two dense layers.",
        ),
    ),
    Concept(
        "modes",
        "train(), and train=True",
        "PyTorch's modules remember whether they train; linen's are told at each call.",
        (Cite("train", "state.model.train()"), Cite("evaluate", "    model.eval()")),
        (Cite("train", "logits, updates = state.model.apply(variables, x, train=True"),),
        ("A forgotten .eval() leaves dropout on and gives other scores each time; a forgotten train= is an error.",),
    ),
    Concept(
        "batch-statistics",
        "Batch norm's running statistics",
        "PyTorch's are buffers that the forward pass changes; Flax's are a collection of variables that it returns.",
        (Cite("model", "self.norm = nn.BatchNorm2d(spec.features"),),
        (
            Cite("train", "logits, updates = state.model.apply(variables, x, train=True"),
            Cite("train", 'return state.scaler.scaled(loss / count), (updates.get("batch_stats", {}), loss, logits)'),
            Cite("model", "self.norm = BatchNorm(momentum=1 - spec.norm.momentum"),
        ),
        (
            'Without mutable=["batch_stats"] linen refuses to change them. The momentum is turned round: PyTorch\'s '
            "0.1 is Flax's 0.9.",
        ),
    ),
    Concept(
        "schedule",
        "A scheduler, and a schedule",
        "PyTorch's scheduler is an object that is moved on and writes into the optimizer; optax's schedule is a "
        "function of the count of steps.",
        (Cite("optim", "return LambdaLR(optimizer, lambda step"), Cite("train", "state.schedule.step()")),
        (Cite("optim", "table = jnp.asarray(rates)", 2),),
        (
            "Here both take their factor from the recipe. The paper divided the rate by 10 three times, by hand, when "
            "the validation error stood still (section 5).",
        ),
    ),
    Concept(
        "loss-scaling",
        "Loss scaling in float16",
        "float16 rounds small gradients to zero, so the loss is multiplied before and the gradients divided after; a "
        "step that overflows is left out.",
        (Cite("train", "state.scaler.unscale_(state.optimizer)", 7),),
        (
            Cite("train", "gradients = freeze(state, state.scaler.unscale(gradients))"),
            Cite("train", "finite = jnp.all(", 4),
        ),
        (
            "PyTorch's GradScaler leaves the optimizer's step out. A compiled program has no branch to leave "
            "out: Flax computes both states and picks one with jnp.where.",
        ),
    ),
    Concept(
        "compile",
        "torch.compile, and jax.jit",
        "PyTorch runs line by line and may be compiled; JAX traces a whole step once for each shape, and runs what XLA "
        "made of it.",
        (Cite("state", "model.compile(dynamic=False)", 2),),
        (Cite("train", "@partial(jax.jit, donate_argnums=0)", 2),),
        (
            "Inside jax.jit Python runs once, on stand-ins without values: print and if see shapes and no numbers. The "
            "compiled step fuses operations, one reason why the last bits differ from PyTorch's.",
        ),
    ),
    Concept(
        "precision",
        "autocast, and dtypes that are said",
        "PyTorch's autocast chooses a narrow dtype for each operation inside a block; linen's modules are told one "
        "dtype for the arithmetic and one for the parameters.",
        (Cite("train", "with compute_in(state.recipe.precision, x.device)", 2),),
        (Cite("device", '"""`dtype` and `param_dtype` of a recipe\'s model."""', 2),),
        ("Both keep the parameters in float32, and take the loss in it.",),
    ),
    Concept(
        "augmentation",
        "Crops, flips and colours",
        "Both apply what was drawn once for both: a mirror image, a crop, and noise along the colours' main axes.",
        (Cite("preprocess", 'if "flip" in draws:', 2), Cite("preprocess", 'if "pca" in draws:', 3)),
        (Cite("preprocess", 'if "flip" in draws:', 2), Cite("preprocess", 'if "pca" in draws:', 5)),
        (
            "Section 4.1 of the paper: crops of 224 from 256 pixels with mirror images, and colour noise, without "
            "which the network overfits; in evaluation the mean over ten crops.",
        ),
    ),
    Concept(
        "decay",
        "Weight decay, and its place",
        "PyTorch's SGD adds the decay to the gradient before momentum; optax's parts are chained in the order that "
        "they are written.",
        (Cite("optim", '"weight_decay": weight_decay}'),),
        (Cite("optim", "return optax.chain(decay, optax.trace("),),
        (
            "Decay after the trace would be another method: the momentum would not know of it. The paper has momentum "
            "0.9 and decay 0.0005, and calls the decay necessary for learning, not only a regulariser (section 5).",
        ),
    ),
)
