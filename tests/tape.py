"""A CUDA graph made of a list, on a CPU: operators are recorded once and replayed on their memory.

As in a graph, Python does not run again: a number that was baked in, or a tensor that was made
anew, shows in the results.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What a graph cannot hold: reads by the host, shapes that depend on values, random numbers.
REFUSED = {
    *("_local_scalar_dense", "nonzero", "equal", "is_nonzero"),
    *("rand", "randn", "randint", "normal_", "uniform_", "bernoulli_", "native_dropout"),
}


class Tape(TorchDispatchMode):
    """Notes operators with their arguments and results, and undoes what they wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        library, name = operator._schema.name.split("::")
        if library == "profiler":  # marks of the optimiser, which compute nothing
            return operator(*args, **kwargs)
        if name in REFUSED:
            raise RuntimeError(f"{name} cannot be recorded")
        for argument, value in zip(operator._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_leaves(value):
                    storage = tensor.untyped_storage()
                    self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = operator(*args, **kwargs)
        self.operators.append((operator, args, kwargs, result))
        return result

    def undo(self) -> None:
        """Put back what was there before the recording, which executes nothing on a GPU."""
        for storage, content in self.before.values():
            storage.copy_(content)
        self.before.clear()

    @torch.no_grad()
    def replay(self) -> None:
        """Run the operators again."""
        for operator, args, kwargs, result in self.operators:
            again = operator(*args, **kwargs)
            for held, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(held, Tensor) and held.data_ptr() != value.data_ptr():
                    held.copy_(value)


class TapeRecorder:
    """In place of `models.graphs.Recorder`."""

    replays = 0

    def __init__(self, device: torch.device) -> None:
        pass

    def run(self, call: Callable[[], Tensor]) -> Tensor:
        """See `Recorder.run`."""
        return call()

    def record(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """See `Recorder.record`."""
        tape = Tape()
        with tape:
            result = call()
        tape.undo()

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay, result


class RefusingRecorder(TapeRecorder):
    """A device on which every recording fails half-way."""

    def record(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Run the call without effect, and raise as a failed capture does."""
        tape = Tape()
        with tape:
            call()
        tape.undo()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
