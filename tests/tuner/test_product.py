"""The routed linear product: values and derivatives against the plain formula, and what its backward pass keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from fera.tuner.fast.product import routed_linear, routed_rows


def by_rows(x, weight, bias, a, b, weights):
    """`routed_rows` with the arguments of `routed_linear`."""
    return routed_rows(x, weight, bias, a, b, weights.expand(-1, x.shape[1:-1].numel(), -1).flatten(0, 1))


both = pytest.mark.parametrize("product", [routed_linear, by_rows])


def parts(shape, out, ranks, bias=True, dtype=torch.float64, seed=0):
    """Random arguments of `routed_linear`; the base is frozen."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(*shape,), (out, shape[-1]), (out,), (ranks, shape[-1]), (out, ranks), (shape[0], 1, ranks)]
    x, weight, offset, a, b, weights = (torch.randn(*size, generator=generator, dtype=dtype) for size in sizes)
    for one in (x, a, b, weights):
        one.requires_grad_()
    return x, weight, offset if bias else None, a, b, weights


def formula(x, weight, bias, a, b, weights):
    """Sample by sample, with a weight of its own for each."""
    rows = [one @ (weight + b @ torch.diag(ranks[0]) @ a).T for one, ranks in zip(x, weights, strict=True)]
    return torch.stack(rows) + (0 if bias is None else bias)


@both
@settings(max_examples=40, deadline=None)
@given(
    middle=st.lists(st.integers(1, 9), max_size=2),
    count=st.integers(1, 4),
    width=st.integers(1, 12),
    out=st.integers(1, 12),
    ranks=st.integers(1, 8),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients_are_those_of_the_formula(product, middle, count, width, out, ranks, bias, seed):
    arguments = parts((count, *middle, width), out, ranks, bias, seed=seed)
    trained = [arguments[index] for index in (0, 3, 4, 5)]
    mine, theirs = product(*arguments), formula(*arguments)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-11)
    slope = torch.randn(mine.shape, generator=torch.Generator().manual_seed(seed), dtype=mine.dtype)
    for one, other in zip(
        torch.autograd.grad(mine, trained, slope), torch.autograd.grad(theirs, trained, slope), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@both
@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4), (2, 2, 3, 4)])
def test_first_and_second_derivatives_are_those_of_differences(product, shape):
    x, weight, bias, a, b, weights = parts(shape, 5, 3)

    def outputs(*trained):
        return product(trained[0], weight, bias, *trained[1:])

    assert gradcheck(outputs, (x, a, b, weights))
    assert gradgradcheck(outputs, (x, a, b, weights))


@both
@pytest.mark.parametrize("frozen", [0, 3, 4, 5])
def test_what_is_frozen_gets_no_gradient_and_leaves_the_others_as_they_are(product, frozen):
    whole, part = parts((2, 3, 4), 5, 3), parts((2, 3, 4), 5, 3)
    part[frozen].requires_grad_(False)
    product(*whole).square().sum().backward()
    product(*part).square().sum().backward()
    for index in (0, 3, 4, 5):
        expected = None if index == frozen else whole[index].grad
        assert (part[index].grad is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(part[index].grad, expected, rtol=0, atol=0)


@both
@pytest.mark.parametrize("trained", [1, 2])
def test_a_base_that_trains_gets_its_gradients(product, trained):
    arguments = parts((2, 3, 4), 5, 3)
    arguments[trained].requires_grad_()
    inputs = [one for one in arguments if one.requires_grad]
    mine = torch.autograd.grad(product(*arguments).square().sum(), inputs)
    theirs = torch.autograd.grad(formula(*arguments).square().sum(), inputs)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@both
def test_an_empty_batch_and_samples_without_tokens(product):
    for shape in [(0, 3, 4), (2, 0, 4), (0, 4)]:
        x, weight, bias, a, b, weights = parts(shape, 5, 3)
        output = product(x, weight, bias, a, b, weights)
        assert output.shape == (*shape[:-1], 5)
        output.sum().backward()
        assert [one.grad.abs().sum() for one in (x, a, b, weights)] == [0, 0, 0, 0]


@both
def test_inputs_that_lie_otherwise_in_memory(product):
    x, weight, bias, a, b, weights = parts((3, 4, 6), 5, 3)
    turned = x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    for one in (x, turned):
        product(one, weight, bias, a, b, weights).square().sum().backward()
    torch.testing.assert_close(turned.grad, x.grad, rtol=1e-12, atol=1e-12)


@both
def test_half_precision_rounds_no_worse_than_a_plain_lora(product):
    exact = parts((4, 64, 32), 48, 12)
    half = [None if one is None else one.detach().bfloat16().requires_grad_(one.requires_grad) for one in exact]
    x, weight, bias, a, b, weights = half
    reference = formula(*(None if one is None else one.double() for one in half))
    plain = torch.nn.functional.linear(x, weight, bias) + ((x @ a.T) * weights) @ b.T
    mine = product(*half)
    assert (mine - reference).norm() <= 1.05 * (plain - reference).norm()
    mine.square().sum().backward()
    assert all(one.grad.dtype == torch.bfloat16 for one in (x, a, b, weights))


def test_the_backward_pass_keeps_the_ranks_once():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(tuple(one.shape)) or one, lambda one: one):
        routed_linear(*parts((2, 7, 4), 5, 3))
    assert sorted(kept) == sorted([(2, 7, 4), (5, 4), (3, 4), (5, 3), (2, 1, 3), (2, 7, 3)])


@both
def test_transforms_of_functions_differentiate_it(product):
    x, weight, bias, a, b, weights = (one if one is None else one.detach() for one in parts((2, 3, 4), 5, 3))

    def loss(a, b):
        return product(x, weight, bias, a, b, weights).square().sum()

    found = torch.func.grad(loss, argnums=(0, 1))(a, b)
    a, b = a.requires_grad_(), b.requires_grad_()
    expected = torch.autograd.grad(formula(x, weight, bias, a, b, weights).square().sum(), (a, b))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
