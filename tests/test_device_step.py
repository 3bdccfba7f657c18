"""A step that was recorded once and is replayed without Python is the same step, to the bit."""

import pytest
import torch
from conftest import Opening, difference, left_in
from tape import RefusingRecorder, TapeRecorder

from models import graphs as graphs_module
from models.custom_unet_celeba_ldm import compile_blocks
from training import checkpoints, device_step, loop, run_folder
from training.batches import Batch, Batches
from training.device_step import PLAIN_STEPS
from training.experiment import Experiment
from training.loop import train

STEPS = 9  # three epochs
BASE = {"num_epochs": 3, "lr_decay": "cosine", "learning_rate": 3e-3, "skip_not_finite": 1}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host reads nothing of the device for free."""
    monkeypatch.setattr(loop, "_reads_for_free", lambda value: False)


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[TapeRecorder]:
    """Those that training made; `record_with` chooses their class."""
    made: list[TapeRecorder] = []
    record_with(monkeypatch, TapeRecorder, made)
    return made


def record_with(
    monkeypatch: pytest.MonkeyPatch, kind: type[TapeRecorder], made: list[TapeRecorder]
) -> None:
    def make(device: torch.device) -> TapeRecorder:
        made.append(kind(device))
        return made[-1]

    monkeypatch.setattr(loop, "open_recorder", make)


def poison(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the batch of a step (counted from 1) one whose loss is not finite."""
    make = Batches.__getitem__

    def poisoned(self: Batches, number: int) -> Batch:
        batch = make(self, number)
        if number == step - 1:
            batch.latents[0] = float("nan")
        return batch

    monkeypatch.setattr(Batches, "__getitem__", poisoned)


@pytest.mark.parametrize(
    ("precision", "micro_batch_size", "not_finite"),
    [("no", None, 6), ("bf16", 3, None), ("fp16", 3, 8)],
)
def test_a_replayed_step_is_the_step_to_the_bit(
    opening: Opening,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    micro_batch_size: int | None,
    not_finite: int | None,
) -> None:
    """In float16 with overflows before the recording and after it."""
    if not_finite:
        poison(monkeypatch, not_finite)
    found, recorders = [], []
    for kind in (RefusingRecorder, TapeRecorder):
        record_with(monkeypatch, kind, recorders)
        changes = {"mixed_precision": precision, "micro_batch_size": micro_batch_size}
        opened = opening(name=kind.__name__, **BASE, **changes)
        opened.state.scaler._init_scale = 2.0**26
        moved = [step.moved for step in train(opened)]
        assert len(moved) == STEPS and moved.count(False) >= (not_finite is not None)
        if precision == "fp16":
            assert not moved[PLAIN_STEPS] and moved[-1]
        found.append(left_in(opened.folder))
    assert [recorder.replays for recorder in recorders] == [0, STEPS - PLAIN_STEPS]
    assert difference(*found) == ""


def test_graphs_are_recorded_on_cuda_unless_they_are_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphs_module, "Recorder", TapeRecorder)
    assert graphs_module.open_recorder(torch.device("cuda"))
    assert graphs_module.open_recorder(torch.device("cpu")) is None
    monkeypatch.setenv("LDM_GRAPHS", "0")
    assert graphs_module.open_recorder(torch.device("cuda")) is None


def test_a_compiler_that_fails_is_said_and_training_continues(
    opening: Opening,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As without a C compiler."""

    def backend(graph: torch.fx.GraphModule, examples: object) -> None:
        raise FileNotFoundError("Failed to find C compiler")

    want = [step.loss for step in train(opening(name="a", num_epochs=1))]
    monkeypatch.setattr(device_step, "can_compile", lambda device: True)
    monkeypatch.setattr(device_step, "compile_blocks", lambda unet: compile_blocks(unet, backend))
    opened = opening(name="b", num_epochs=1, compile=None)
    assert [step.loss for step in train(opened)] == want
    said = capsys.readouterr().out
    assert said.count("torch.compile") == 1 and "Failed to find C compiler" in said
    torch._dynamo.reset()


@pytest.mark.parametrize("is_old", [True, False])
def test_a_run_goes_on_between_devices_with_and_without_graphs(
    opening: Opening,
    recorders: list[TapeRecorder],
    monkeypatch: pytest.MonkeyPatch,
    is_old: bool,
) -> None:
    """A checkpoint holds the rate as a number, whoever wrote it."""
    whole = opening(name="whole", **BASE)
    list(train(whole))
    graphs = loop.open_recorder
    monkeypatch.setattr(loop, "open_recorder", lambda device: None if is_old else graphs(device))
    first = opening(name="parts", **BASE)
    list(zip(range(3), train(first), strict=False))
    first.close()
    _, checkpoint = checkpoints.open_newest(first.folder)
    (group,) = checkpoint.optimizer["param_groups"]
    assert type(group["lr"]) is float and group["capturable"] is False
    monkeypatch.setattr(loop, "open_recorder", lambda device: graphs(device) if is_old else None)
    second = opening(name="parts", **BASE)
    assert second.state.step == 3
    list(train(second))
    assert recorders[-1].replays == STEPS - 3 - PLAIN_STEPS if is_old else len(recorders) == 2
    losses = [[x["loss"] for x in run_folder.read_losses(run.folder)] for run in (whole, second)]
    assert len(losses[0]) == STEPS and losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_stop_and_a_resume_change_nothing(
    opening: Opening, recorders: list[TapeRecorder]
) -> None:
    """In float16 with a scale that falls before the recording and after it, and then fits."""

    def take(name: str, stop: int) -> Experiment:
        opened = opening(name=name, **BASE, mixed_precision="fp16")
        if opened.state.step == 0:
            opened.state.scaler._init_scale = 2.0**25
        list(zip(range(stop - opened.state.step), train(opened), strict=False))
        opened.close()
        return opened

    whole = take("whole", STEPS)
    assert 0 < take("parts", 6).state.updates < 6 - PLAIN_STEPS
    parts = take("parts", STEPS)
    assert difference(left_in(whole.folder), left_in(parts.folder)) == ""


def small_device(opened: Experiment, most: int) -> list[int]:
    """Lets the UNet take so many samples at once; returns the sizes that were tried."""
    tried: list[int] = []

    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        tried.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    opened.state.unet.register_forward_pre_hook(refuse)
    return tried


def test_out_of_memory_halves_the_micro_batch_with_the_same_result(
    opening: Opening, recorders: list[TapeRecorder]
) -> None:
    want = [step.loss for step in train(opening(name="a", **BASE))]
    opened = opening(name="b", **BASE)
    tried = small_device(opened, most=3)
    assert [step.loss for step in train(opened)] == pytest.approx(want, rel=1e-3)
    # Halved twice, and then it stays; the graph does not come by here.
    assert tried == [8, 4, *[2] * 4 * (PLAIN_STEPS + 1)]
    assert recorders[-1].replays == STEPS - PLAIN_STEPS
    opened = opening(name="c")
    small_device(opened, most=0)
    with pytest.raises(RuntimeError, match="out of memory with 1 "):
        next(train(opened))
