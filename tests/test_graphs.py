"""Graphs of a network's forward pass: when one is captured, kept and dropped; and, on CUDA, that
results stay the same to the bit.
"""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from tape import TapeRecorder
from torch import Tensor, nn

from config import UNetConfig
from models import graphs
from models.custom_unet_celeba_ldm import build_unet
from models.graphs import MAX_GRAPHS, GraphedUNet

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Network:
    """A network whose graphs are tapes; counts what runs."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.calls = network, 0
        self.recorders: list[TapeRecorder] = []

    def graphed(self) -> GraphedUNet:
        made = GraphedUNet(self.network, "no")
        made.forward = self.forward
        return made

    def forward(self, given: Tensor) -> Tensor:
        self.calls += 1
        return self.network(given)

    def recorder(self, device: torch.device) -> TapeRecorder:
        self.recorders.append(TapeRecorder(device))
        return self.recorders[-1]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Calls, of which each recording takes two; recordings; replays."""
        return self.calls, len(self.recorders), sum(each.replays for each in self.recorders)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    network = Network(nn.Linear(3, 3))
    monkeypatch.setattr(graphs, "can_graph", lambda inputs: True)
    monkeypatch.setattr(graphs, "Recorder", network.recorder)
    with torch.no_grad():
        yield network


def test_the_second_call_is_recorded_and_later_ones_replay_it(network: Network) -> None:
    call, given = network.graphed(), torch.randn(3, 2, 3)
    outputs = [call(each) for each in given]  # each stays when the graph runs again
    assert network.counts == (3, 1, 2)
    torch.testing.assert_close(torch.stack(outputs), network.network(given))


@pytest.mark.parametrize("change", ["shape", "dtype", "layout"])
def test_inputs_of_another_kind_are_another_graph(network: Network, change: str) -> None:
    network.network = nn.Identity()
    call, given = network.graphed(), torch.randn(3, 3)
    others = {"shape": given[:2], "dtype": given.double(), "layout": given.T}
    call(given), call(given)
    call(others[change])
    assert network.counts == (4, 1, 1)


def test_weights_that_changed_in_place_count_and_moved_ones_are_recorded_anew(
    network: Network,
) -> None:
    call, given = network.graphed(), torch.randn(2, 3)
    call(given), call(given)
    network.network.weight.mul_(2)
    torch.testing.assert_close(call(given), network.network(given))
    assert network.counts == (3, 1, 2)
    network.network.weight.data = network.network.weight.clone()
    call(given), call(given)
    assert network.counts == (6, 2, 3)


def test_a_recording_that_fails_is_said_once_and_the_network_runs_without_it(
    network: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the first error: ending such a capture raises another one."""

    def fail(*_: object) -> None:
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error")

    monkeypatch.setattr(TapeRecorder, "record", fail)
    call, given = network.graphed(), torch.randn(2, 3)
    for _ in range(3):
        torch.testing.assert_close(call(given), network.network(given))
    assert network.counts == (4, 1, 0)
    said = capsys.readouterr().out
    assert said.count("no CUDA graph") == 1 and "not permitted" in said


def test_few_graphs_are_kept(network: Network) -> None:
    call = network.graphed()
    for size in range(1, MAX_GRAPHS + 3):
        call(torch.zeros(size, 3)), call(torch.zeros(size, 3))
    assert len(call.graphs) == MAX_GRAPHS
    before = network.calls
    call(torch.zeros(1, 3))  # the first was dropped
    assert network.calls == before + 1


@needs_cuda
@pytest.mark.parametrize("which", ["the current device", "another device"])
@torch.no_grad()
def test_a_unet_predicts_the_same_to_the_bit(which: str) -> None:
    device = torch.device("cuda", 1 if which == "another device" else 0)
    if device.index >= torch.cuda.device_count():
        pytest.skip("needs two CUDA devices")
    unet = build_unet(UNetConfig(8, 4, (32, 64), 1, 8, 32, text_at_every_layer=True))
    unet = unet.eval().requires_grad_(False).to(device)

    call = GraphedUNet(unet, "bf16")
    predict = call.forward
    for timestep in (900, 500, 100):
        given = torch.randn(4, 4, 8, 8), torch.full((4,), timestep), torch.randn(4, 7, 32)
        given = tuple(value.to(device) for value in given)
        assert torch.equal(call(*given), predict(*given))
    with mock.patch.dict("os.environ", LDM_GRAPHS="0"):
        plain = call(*given)
    unet.conv_out.weight.mul_(2)
    assert torch.equal(call(*given), predict(*given))
    assert not torch.equal(call(*given), plain)
