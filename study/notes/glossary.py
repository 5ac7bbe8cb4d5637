"""Words that the two communities use differently, each with the lines of both that show it."""

from __future__ import annotations

from dataclasses import dataclass

from study.notes.note import Cite


@dataclass(frozen=True)
class Term:
    """One thing and its two names.

    Attributes:
        torch_word, flax_word: what PyTorch's users and Flax's call it.
        text: what differs, in a sentence or two.
        torch, flax: the lines that show it.
    """

    torch_word: str
    flax_word: str
    text: str
    torch: tuple[Cite, ...]
    flax: tuple[Cite, ...]


TERMS = (
    Term(
        "module with its parameters",
        "module and variables",
        "PyTorch's module holds its tensors. linen's holds settings alone: the numbers are a tree beside it, which "
        "apply is given.",
        (Cite("model", "self.conv3 = ConvBlock(conv3, conv2.features, arch.activation)"),),
        (Cite("train", 'variables = {"params": params}'),),
    ),
    Term(
        "__init__",
        "setup",
        "PyTorch makes the tensors here, so it has to know the input's channels. linen's setup names the parts; their "
        "shapes are found from the first input.",
        (Cite("model", "self.fc6 = nn.Linear("),),
        (Cite("model", "self.fc6 = dense("),),
    ),
    Term(
        "forward, called as model(x)",
        "__call__, called as model.apply(variables, x)",
        "A Flax module cannot be called by itself: it has no numbers.",
        (Cite("train", "logits = state.network(x)"),),
        (Cite("train", "logits, updates = state.model.apply("),),
    ),
    Term(
        "state_dict",
        "tree of params",
        "A flat dictionary, conv1.conv.weight, against nested ones, params / conv1 / conv / kernel. The converter goes "
        "from one to the other.",
        (Cite("checkpoint", '"model": state.model.state_dict()'),),
        (Cite("convert", "def flax_path("),),
    ),
    Term(
        "weight",
        "kernel",
        "(out, in, height, width) against (height, width, in, out), and (out, in) against (in, out).",
        (Cite("convert", "return array.transpose(3, 2, 0, 1)", side="flax"),),
        (Cite("convert", "return array.transpose(2, 3, 1, 0)"),),
    ),
    Term(
        "NCHW",
        "NHWC",
        "The order of a batch's axes. PyTorch's may lie in memory as Flax's do: channels_last changes the memory and "
        "not the axes.",
        (Cite("state", "to(memory_format=torch.channels_last)"),),
        (Cite("model", '"""(N, H, W, C) -> (N, H\', W\', features)."""'),),
    ),
    Term(
        "buffers",
        "collections",
        "What a module keeps and no gradient changes: PyTorch's running_mean is a buffer, Flax's mean lies in the "
        "collection batch_stats.",
        (Cite("layers", "self._parameters, self._buffers = norm._parameters, norm._buffers"),),
        (Cite("layers", 'old: Array = self.get_variable("batch_stats", "var")'),),
    ),
    Term(
        "model.train(), model.eval()",
        "train=True, train=False",
        "A mode that is remembered, against an argument of every call.",
        (Cite("train", "state.model.train()"),),
        (Cite("train", "x, train=True, rngs=rngs"),),
    ),
    Term(
        "zero_grad",
        "nothing",
        "PyTorch's gradients add up in the parameters; JAX's are returned.",
        (Cite("train", "state.optimizer.zero_grad()"),),
        (Cite("train", "gradients, batch_stats, loss, logits = accumulate("),),
    ),
    Term(
        "loss.backward()",
        "jax.grad(loss_fn)(params)",
        "A recorded pass run backwards, against a function made out of a function.",
        (Cite("train", "/ count).backward()"),),
        (Cite("train", "jax.grad(loss_fn, has_aux=True)(state.params)"),),
    ),
    Term(
        "optimizer.step()",
        "update, then apply_updates",
        "PyTorch's optimizer knows the parameters; optax is given gradients, its own state and the parameters. "
        "TrainState.apply_gradients does both.",
        (Cite("train", "state.scaler.step(state.optimizer)"),),
        (Cite("train", "state.apply_gradients("),),
    ),
    Term(
        "scheduler",
        "schedule",
        "An object to be moved on by .step(), against a function of the count.",
        (Cite("train", "state.schedule.step()"),),
        (Cite("optim", "return lambda count: table[count]"),),
    ),
    Term(
        "momentum of batch norm",
        "momentum of batch norm",
        "The weight of the new batch in PyTorch (0.1), of the old statistics in Flax (0.9): the same word for m and "
        "1 − m.",
        (Cite("model", "spec.norm.eps, spec.norm.momentum"),),
        (Cite("model", "momentum=1 - spec.norm.momentum"),),
    ),
    Term(
        "weight_decay",
        "add_decayed_weights",
        "An argument of the optimizer, against a part of its chain, whose place decides what it means.",
        (Cite("optim", '"weight_decay": weight_decay}'),),
        (Cite("optim", "optax.add_decayed_weights("),),
    ),
    Term(
        "dropout's p",
        "dropout's rate",
        "Both are the share that is dropped. Srivastava et al. 2014 and TensorFlow 1 (keep_prob) give the share that "
        "is kept.",
        (Cite("dropout", "mask = bernoulli(key, 1 - self.rate, x.numel()"),),
        (Cite("model", "self.drop6 = nn.Dropout(fc6.dropout)"),),
    ),
    Term(
        "manual_seed",
        "key",
        "A generator's hidden state that each draw moves on, against a value: the same key draws the same numbers, so "
        "new ones are folded or split off it.",
        (Cite("dropout", "self.key = fold_in(seed_key(self.seed), step)"),),
        (Cite("state", "return jax.random.fold_in("),),
    ),
    Term(
        "DataLoader",
        "any iterator",
        "JAX brings no loader. Here one pipeline of numpy arrays feeds both, and each side puts them on its device.",
        (Cite("feed", "return one_ahead((batch, self._put(batch)) for batch in read)"),),
        (Cite("feed", "return one_ahead((batch, self._put(batch)) for batch in read)"),),
    ),
    Term(
        "collate, then .to(device)",
        "stack, then device_put",
        "A DataLoader's collate_fn makes tensors of examples. Here the batch is one array from the start, and is "
        "copied as it is.",
        (Cite("feed", ".to(device, non_blocking=True)"),),
        (Cite("feed", "return jax.device_put(arrays, device)"),),
    ),
    Term(
        "device",
        "device or sharding",
        "PyTorch's tensor lies on one device; JAX's array may be spread over many, as its sharding says.",
        (Cite("device", 'return torch.device("cuda")'),),
        (Cite("feed", "rows = NamedSharding("),),
    ),
    Term(
        "DistributedDataParallel",
        "one program over a mesh",
        "PyTorch's processes each run the step and exchange gradients; JAX compiles one step for all devices, in which "
        "a sum over the batch is a sum over all.",
        (Cite("world", "state.network = DistributedDataParallel("),),
        (Cite("world", 'mesh = jax.make_mesh((world.size,), ("data",)'),),
    ),
    Term(
        "broadcast_buffers",
        "replicated variables",
        "PyTorch copies process 0's buffers before each pass unless told not to; in JAX whatever is not sharded is the "
        "same everywhere by construction.",
        (Cite("world", "state.model, broadcast_buffers=False"),),
        (Cite("world", "host_local_array_to_global_array(state, mesh, PartitionSpec())"),),
    ),
    Term(
        "torch.compile",
        "jax.jit",
        "An option that may fall back to Python, against the way to run: traced whole, once for each shape.",
        (Cite("state", "model.compile(dynamic=False)"),),
        (Cite("train", "@partial(jax.jit, donate_argnums=0)"),),
    ),
    Term(
        "requires_grad_(False)",
        "frozen labels, zeroed gradients",
        "PyTorch's parameter says that it wants no gradient; optax is told by labels which parameters to leave alone, "
        "or is given zeros.",
        (Cite("state", "parameter.requires_grad_(False)"),),
        (Cite("optim", "direction = optax.partition("),),
    ),
    Term(
        "autocast",
        "dtype and param_dtype",
        "A block in which operations choose, against two settings of each module: what it computes in, and what it "
        "keeps.",
        (Cite("device", "return torch.autocast("),),
        (Cite("device", 'return {"dtype": compute_dtype('),),
    ),
    Term(
        "torch.save",
        "orbax",
        "One file of pickled objects, opened with weights_only=True, against a folder of arrays.",
        (Cite("checkpoint", "torch.save(content, file)"),),
        (Cite("checkpoint", "checkpointer.save(part, content)"),),
    ),
)
