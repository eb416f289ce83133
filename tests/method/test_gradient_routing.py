"""Which experts a step updates: AdamW's own step for those that are chosen, and none for the others."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from fera.errors import FeraError
from fera.method.gradient_routing import StackedExperts, UpdateRouter

BETAS, EPS, DECAY, LR = (0.9, 0.99), 1e-8, 0.1, 0.05
RANKS = (3, 1, 2)


def layer(seed, convolution=False):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(6, 5, *((3, 3) if convolution else ()), generator=generator, dtype=torch.float64)
    b = torch.randn(4, 6, *((1, 1) if convolution else ()), generator=generator, dtype=torch.float64)
    return StackedExperts(nn.Parameter(a), nn.Parameter(b), RANKS)


def gradients(layers, step):
    generator = torch.Generator().manual_seed(100 + step)
    for number, one in enumerate(layers):
        for matrix in (one.a, one.b):
            matrix.grad = torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype)
        # A different expert leads in each layer and at each step.
        lead = (number + step) % 3
        start = sum(RANKS[:lead])
        one.a.grad[start : start + RANKS[lead]] *= 5


def adamw(layers, lr_b=LR):
    groups = [{"params": [one.a for one in layers]}, {"params": [one.b for one in layers], "lr": lr_b}]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)


def by_hand(layers, steps, top_k, lr_b=LR):
    """The method in words of its own: every expert is a pair of matrices with moments of its own."""
    experts = []
    for one in layers:
        edges = [sum(RANKS[:e]) for e in range(len(RANKS) + 1)]
        experts.append([(one.a.detach()[i:j].clone(), one.b.detach()[:, i:j].clone()) for i, j in pairwise(edges)])
    moments = [[[(0 * w, 0 * w) for w in pair] for pair in row] for row in experts]
    chosen = []
    for step in range(1, steps + 1):
        gradients(layers, step)
        picked = []
        for number, one in enumerate(layers):
            scores = []
            for e in range(len(RANKS)):
                i, j = sum(RANKS[:e]), sum(RANKS[: e + 1])
                score = 0.0
                for part, (gradient, rate) in enumerate(((one.a.grad[i:j], LR), (one.b.grad[:, i:j], lr_b))):
                    m, v = moments[number][e][part]
                    m = BETAS[0] * m + (1 - BETAS[0]) * gradient
                    v = BETAS[1] * v + (1 - BETAS[1]) * gradient**2
                    moments[number][e][part] = (m, v)
                    score += float(rate * (m**2 / (v.sqrt() + EPS)).sum())
                scores.append(score / sum(w.numel() for w in experts[number][e]))
            best = sorted(range(len(RANKS)), key=lambda e: -scores[e])[:top_k]
            picked.append(best)
            for e in best:
                for part, rate in enumerate((LR, lr_b)):
                    m, v = moments[number][e][part]
                    step_of = (m / (1 - BETAS[0] ** step)) / ((v / (1 - BETAS[1] ** step)).sqrt() + EPS)
                    weight = experts[number][e][part]
                    weight.mul_(1 - rate * DECAY).sub_(rate * step_of)
        chosen.append(picked)
    return experts, chosen


@pytest.mark.parametrize(("top_k", "lr_b"), [(1, LR), (2, LR), (1, 16 * LR)])
def test_chosen_experts_take_adamws_step_and_the_others_none(top_k, lr_b):
    layers = [layer(0), layer(1, convolution=True), layer(2)]
    expected, chosen = by_hand(copy.deepcopy(layers), 6, top_k, lr_b)
    assert len({tuple(row) for step in chosen for row in step}) > 2, "the experts take turns"
    optimizer = adamw(layers, lr_b)
    router = UpdateRouter(optimizer, layers, top_k=top_k)
    for step in range(1, 7):
        gradients(layers, step)
        before = [(one.a.detach().clone(), one.b.detach().clone()) for one in layers]
        optimizer.step()
        counts = [sum(e in row for row in chosen[step - 1]) / 3 for e in range(3)]
        assert router.updates.tolist() == pytest.approx(counts)
        for one, (a, b), row in zip(layers, before, chosen[step - 1], strict=True):
            for e in set(range(3)) - set(row):
                i, j = sum(RANKS[:e]), sum(RANKS[: e + 1])
                assert torch.equal(one.a[i:j], a[i:j]) and torch.equal(one.b[:, i:j], b[:, i:j])
    for one, row in zip(layers, expected, strict=True):
        torch.testing.assert_close(one.a.detach(), torch.cat([a for a, _ in row]), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(one.b.detach(), torch.cat([b for _, b in row], dim=1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_with_all_experts_chosen_it_is_adamw_bit_for_bit(fused):
    layers = [layer(0), layer(1)]
    twins = copy.deepcopy(layers)
    others = [nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
    optimizers = [
        torch.optim.AdamW([one.a for one in held] + [one.b for one in held] + [other], lr=LR, fused=fused)
        for held, other in zip((layers, twins), others, strict=True)
    ]
    UpdateRouter(optimizers[0], layers, top_k=3)
    for step in range(3):
        for held, other, optimizer in zip((layers, twins), others, optimizers, strict=True):
            gradients(held, step)
            other.grad = torch.ones(3, dtype=torch.float64)
            optimizer.step()
    for one, twin in zip(layers, twins, strict=True):
        assert torch.equal(one.a, twin.a) and torch.equal(one.b, twin.b)
    assert torch.equal(*others)


def test_a_restored_optimizer_goes_on_bit_for_bit():
    layers = [layer(0), layer(1)]
    optimizer = adamw(layers)
    UpdateRouter(optimizer, layers, top_k=1)
    for step in range(3):
        gradients(layers, step)
        optimizer.step()
    resumed = copy.deepcopy(layers)
    again = adamw(resumed)
    UpdateRouter(again, resumed, top_k=1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for held, one in ((layers, optimizer), (resumed, again)):
        for step in range(3, 6):
            gradients(held, step)
            one.step()
    assert all(torch.equal(x.a, y.a) and torch.equal(x.b, y.b) for x, y in zip(layers, resumed, strict=True))


def test_a_layer_without_a_gradient_stays_and_others_learn():
    layers = [layer(0), layer(1)]
    optimizer = adamw(layers)
    UpdateRouter(optimizer, layers, top_k=1)
    gradients(layers, 0)
    layers[0].a.grad = layers[0].b.grad = None
    before = copy.deepcopy(layers)
    optimizer.step()
    assert torch.equal(layers[0].a, before[0].a) and not torch.equal(layers[1].a, before[1].a)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda one: UpdateRouter(torch.optim.SGD([one.a, one.b], lr=1), [one], top_k=1), "moments, which a SGD"),
        (lambda one: UpdateRouter(adamw([one]), [], top_k=1), "no experts"),
        (lambda one: UpdateRouter(adamw([one]), [one], top_k=4), "top_k must lie between 1 and .* 3; got 4"),
        (lambda one: UpdateRouter(adamw([layer(1)]), [one], top_k=1), "does not hold all experts"),
    ],
)
def test_what_cannot_be_routed_is_one_clear_error(make, message):
    with pytest.raises(FeraError, match=message):
        make(layer(0))
