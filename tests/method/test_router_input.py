import pytest
import torch

from fera import FrequencyBands
from fera.errors import FeraError
from fera.method.fixed_routers import RankMaskRouter, UniformRouter
from fera.method.released_bands import ReleasedBands
from fera.method.router_input import RouterInput
from fera.method.settings import ROUTER_INPUTS

LATENT = torch.randn(4, 3, 8, 10, generator=torch.Generator().manual_seed(0))
LEVEL = torch.tensor([0.0, 0.25, 0.5, 1.0])


def read(kind, latent=LATENT, **bands):
    return RouterInput(kind, FrequencyBands(**bands))(latent, LEVEL)


def test_each_kind_is_its_formula():
    bands = FrequencyBands()
    energies = bands.energies(LATENT)
    shares, level = bands.indicator(LATENT), LEVEL.unsqueeze(1)
    log_energies = (energies / (3 * 8 * 10)).log()
    expected = {
        "shares": shares,
        "log_shares": shares.log(),
        "log_energies": log_energies,
        "timestep": level,
        "shares+timestep": torch.cat([shares, level], dim=1),
        "log_energies+timestep": torch.cat([log_energies, level], dim=1),
    }
    assert tuple(expected) == ROUTER_INPUTS
    for kind, value in expected.items():
        torch.testing.assert_close(read(kind), value)
        assert RouterInput(kind, bands).size == value.shape[1]
        assert RouterInput(kind, bands).reads_timestep == kind.endswith("timestep")


def test_log_energies_know_the_scale_and_shares_do_not():
    torch.testing.assert_close(read("shares", 3 * LATENT), read("shares"))
    torch.testing.assert_close(read("log_energies", 3 * LATENT), read("log_energies") + torch.tensor(9.0).log())


@pytest.mark.parametrize("kind", ROUTER_INPUTS)
def test_empty_and_half_precision_latents_give_finite_float32(kind):
    assert read(kind, torch.zeros_like(LATENT)).isfinite().all()
    assert read(kind, LATENT.half()).dtype == torch.float32


def test_the_released_bands_have_shares_alone():
    assert RouterInput("shares", ReleasedBands())(LATENT).shape == (4, 3)
    with pytest.raises(FeraError, match="'log_energies' needs indicator='bands'"):
        RouterInput("log_energies", ReleasedBands())
    with pytest.raises(FeraError, match="router_input must be one of .*, got 'energy'"):
        RouterInput("energy", FrequencyBands())


def test_a_uniform_router():
    assert torch.equal(UniformRouter(4)(torch.randn(2, 7)), torch.full((2, 4), 0.25))


def test_the_rank_mask_is_that_of_t_lora():
    experts, least = 12, 6
    gates = RankMaskRouter(experts)(torch.linspace(0, 1, 101).unsqueeze(1))
    for level, gate in zip(torch.linspace(0, 1, 101).tolist(), gates, strict=True):
        rank = int((experts - least) * (1 - level) + 1e-5) + least
        assert gate.tolist() == pytest.approx([1 / experts] * rank + [0.0] * (experts - rank))
    assert float(gates[0].sum()) == pytest.approx(1)
