import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fera.errors import FeraError
from fera.method.partition import partition
from fera.method.router import gate_entropy


def gates_of(inputs, weight, bias):
    return torch.softmax(inputs.double() @ weight.T + bias, dim=1)


def clusters(seed=0, count=50):
    """Three clusters in the plane, far apart in units that differ a thousandfold; and whose each point is."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.0, 0.0], [10.0, 10.0], [20.0, -10.0]])
    points = (centres[:, None] + 0.5 * torch.randn(3, count, 2, generator=generator)).flatten(0, 1)
    return points * torch.tensor([1.0, 1000.0]), torch.arange(3).repeat_interleave(count)


def test_clusters_get_an_expert_each():
    points, owner = clusters()
    gates = gates_of(points, *partition(points, 3, 0.02))
    assert torch.equal(gates.argmax(dim=1), owner)


def test_one_entry_becomes_windows_in_its_order():
    inputs = torch.linspace(0, 1, 301).unsqueeze(1)
    gates = gates_of(inputs, *partition(inputs, 3, 0.5))
    assert gates.argmax(dim=1).diff().ge(0).all()
    # Equal parts: the borders lie at a third and at two thirds, and the middle window is symmetric.
    borders = inputs[1:, 0][gates.argmax(dim=1).diff() == 1]
    torch.testing.assert_close(borders, torch.tensor([1 / 3, 2 / 3]), rtol=0, atol=0.01)
    torch.testing.assert_close(gates[:, 1], gates[:, 1].flip(0), rtol=0, atol=0.01)


@settings(deadline=None, max_examples=30)
@given(experts=st.integers(2, 6), entries=st.integers(1, 4), entropy=st.floats(0.2, 0.95), seed=st.integers(0, 999))
def test_entropy_and_mean_use_are_as_asked(experts, entries, entropy, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(200, entries, generator=generator) * torch.logspace(-3, 3, entries)
    gates = gates_of(inputs, *partition(inputs, experts, entropy))
    assert float(gate_entropy(gates).mean()) == pytest.approx(entropy, abs=0.02)
    torch.testing.assert_close(gates.mean(dim=0), torch.full((experts,), 1 / experts).double(), rtol=0, atol=0.02)


def test_an_entry_that_never_moves_is_not_looked_at():
    inputs = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    weight, bias = partition(inputs, 3, 0.5)
    padded, same = partition(torch.cat([inputs, torch.full((100, 1), 7.0)], dim=1), 3, 0.5)
    torch.testing.assert_close(padded[:, :1], weight)
    assert torch.count_nonzero(padded[:, 1]) == 0
    torch.testing.assert_close(same, bias)


def test_one_expert_takes_all():
    weight, bias = partition(torch.randn(5, 2), 1, 0.5)
    assert weight.shape == (1, 2) and bias.shape == (1,)


@pytest.mark.parametrize(
    ("inputs", "experts", "entropy", "message"),
    [
        (torch.randn(9, 2), 3, 0.0, "entropy .* between 0 and 1, got 0.0"),
        (torch.randn(9, 2), 3, 1.0, "entropy .* between 0 and 1, got 1.0"),
        (torch.randn(2, 2), 3, 0.5, "among 3 experts needs as many inputs, got 2"),
        (torch.ones(9, 2), 3, 0.5, "all inputs of the router are the same"),
    ],
)
def test_what_cannot_be_partitioned(inputs, experts, entropy, message):
    with pytest.raises(FeraError, match=message):
        partition(inputs, experts, entropy)
