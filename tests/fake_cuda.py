"""A CUDA device made of shapes, for machines without one: what waits for it, and where.

Inside `FakeCuda`, tensors on "cuda" are torch's fake tensors, which know shape, type and device but
hold no values, and refuse to meet tensors of another device. CPU tensors compute as usual. What the
host reads from the device is 1, and is noted with its place in the repository.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda", 0)
CASTS = ("aten::copy_", "aten::_foreach_copy_")
Place = tuple[str, str]  # file and function of the repository


class FakeCuda(TorchDispatchMode):
    """Runs what touches "cuda" on fake tensors, and notes where the host waits for it.

    Two kinds of wait are noted: reads, from the device to the host, and copies to the device, for
    which CUDA finishes everything before them in the queue, unless they are `non_blocking` and from
    pinned memory. Whatever reads in a way that fake tensors cannot answer (`nonzero`, `equal`) is
    an error. Scalars on the CPU, which may meet tensors of a device, are noted, as a graph would
    keep their value; and so are casts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.reads: list[Place] = []
        self.copies: list[Place] = []
        self.scalars: list[Place] = []
        self.casts = 0  # operators that change the type of a tensor, or of a list of them
        self.pinned: set[int] = set()  # where pinned memory lies

    def __enter__(self) -> "FakeCuda":
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if not any(_is_on_device(leaf) for leaf in leaves):
            with unset_fake_temporarily():
                return operator(*args, **kwargs)
        if operator is torch.ops.aten._local_scalar_dense.default:
            self.reads.append(_place())
            return 1.0
        if self._is_blocking_copy(operator, args, kwargs):
            self.copies.append(_place())
        elif any(isinstance(x, Tensor) and not isinstance(x, FakeTensor) for x in leaves):
            self.scalars.append(_place())
        if operator._schema.name in CASTS and len({x.dtype for x in leaves if _is_fake(x)}) > 1:
            self.casts += 1
        elif operator is torch.ops.aten._to_copy.default:
            self.casts += kwargs.get("dtype") not in (None, args[0].dtype)
        if operator is torch.ops.aten._fused_adamw_.tensor_lr:  # torch has no fake form of it
            return None
        return tree_map(self._to_host, operator(*args, **kwargs))

    def _to_host(self, result: Any) -> Any:
        if not isinstance(result, FakeTensor) or result.device.type != "cpu":
            return result
        self.reads.append(_place())
        with unset_fake_temporarily():
            return torch.ones(result.shape, dtype=result.dtype)

    def _is_blocking_copy(self, operator: Any, args: Any, kwargs: Any) -> bool:
        if operator is torch.ops.aten._to_copy.default:
            source, non_blocking = args[0], kwargs.get("non_blocking", False)
        elif operator is torch.ops.aten.copy_.default:
            source, non_blocking = args[1], (*args, False)[2]
        else:
            return False
        is_free = non_blocking and source.data_ptr() in self.pinned
        return source.device.type == "cpu" and not is_free

    def pin(self, tensor: Tensor) -> Tensor:
        """In place of `Tensor.pin_memory`, which asks the driver; batches do it in a thread."""
        copy = tensor.clone()
        self.pinned.add(copy.data_ptr())
        return copy


def _is_fake(value: Any) -> bool:
    return isinstance(value, FakeTensor)


def _is_on_device(value: Any) -> bool:
    return _is_fake(value) or (isinstance(value, torch.device) and value.type == "cuda")


def _place() -> Place:
    """The innermost function under way that is the repository's own, tests left out."""
    frame = sys._getframe()
    while frame is not None:
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        # A comprehension is a function of its own before Python 3.12.
        if path.is_relative_to(ROOT) and not name.startswith("<"):
            path = path.relative_to(ROOT)
            if path.parts[0] not in ("tests", ".venv"):
                return path.as_posix(), name
        frame = frame.f_back
    return "", ""


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """`FakeCuda` with what else torch asks of the driver, each answered as a GPU of today would.

    autocast and the gradient scaler switch themselves off where CUDA is absent. autograd's engine
    asks the driver for its streams, so the backward pass goes through the graph without it. In
    inference mode operators like `to` arrive whole, so gradients are merely switched off.
    """
    mode = FakeCuda()
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda *_, **__: True),  # autocast asks
        mock.patch("torch.cuda.get_device_capability", lambda device: (9, 0)),
        mock.patch(
            "torch.inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext()
        ),
        mock.patch.dict(os.environ, LDM_GRAPHS="0"),  # a graph needs a real device
        mock.patch.object(Tensor, "backward", backward),
        mock.patch.object(Tensor, "pin_memory", lambda tensor: mode.pin(tensor)),
        # As of a real tensor: one copy, then a list. torch reads a fake one value by value.
        mock.patch.object(FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist()),
        mode,
    ):
        yield mode


def backward(loss: Tensor) -> None:
    """As `Tensor.backward` of a scalar: adds to the gradients of all leaves, without the engine."""
    waiting = _uses(loss.grad_fn)
    arrived = {loss.grad_fn: [torch.ones_like(loss)]}
    ready = [loss.grad_fn]
    # Checkpointing recomputes once a pass, which it tells by its number.
    with torch.no_grad(), mock.patch("torch._C._current_graph_task_id", lambda: 0):
        while ready:
            node = ready.pop()
            gradients = arrived.pop(node)
            if hasattr(node, "variable"):
                leaf = node.variable
                leaf.grad = gradients[0] if leaf.grad is None else leaf.grad + gradients[0]
                continue
            gradients += [None] * (len(node._input_metadata) - len(gradients))
            results = node(*gradients)
            results = results if isinstance(results, tuple) else (results,)
            for (following, place), gradient in zip(node.next_functions, results, strict=True):
                if following is not None:
                    _arrive(arrived.setdefault(following, []), following, place, gradient)
                    waiting[following] -= 1
                    if not waiting[following]:
                        ready.append(following)


def _uses(root: Any) -> dict[Any, int]:
    """How many gradients each node of a graph waits for."""
    counts, seen, todo = {}, {root}, [root]
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                counts[node] = counts.get(node, 0) + 1
                if node not in seen:
                    seen.add(node)
                    todo.append(node)
    return counts


def _arrive(slots: list[Any], node: Any, place: int, gradient: Tensor | None) -> None:
    """Add a gradient to a node's input, brought to its shape and type as the engine does."""
    slots += [None] * (place + 1 - len(slots))
    if gradient is None:
        return
    wanted = node._input_metadata[place]
    if gradient.device != wanted.device:
        raise RuntimeError(f"a gradient on {gradient.device} for a tensor on {wanted.device}")
    gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
    slots[place] = gradient if slots[place] is None else slots[place] + gradient
