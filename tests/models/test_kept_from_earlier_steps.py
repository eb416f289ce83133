"""What a step takes over from an earlier one has the earlier gate; docs/models.md says where that is so."""

import torch
from peft import inject_adapter_in_model
from rows_cases import by_hand
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera import models as denoisers
from fera.models import table
from models import flux2


def test_flux2_klein_keeps_the_references_keys_from_its_first_step():
    """In the first call the layer sees the reference's tokens, under that call's gate; later it sees the picture's."""
    (case,) = [case for case in flux2.CASES if case.name == "flux2-klein-kv"]
    pipe = case.pipeline()
    pipe.set_progress_bar_config(disable=True)
    fill(inject_adapter_in_model(FeraConfig(r=2), pipe.transformer))
    to_k, seen = pipe.transformer.transformer_blocks[0].attn.to_k, []
    to_k.register_forward_hook(lambda layer, args, output: seen.append((args[0], output)))
    with fera.trace(pipe) as steps:
        pipe(**case.call, generator=torch.Generator().manual_seed(0))
    gates = [routing.gates for routing in steps]
    assert (gates[0] - gates[-1]).abs().max() > 1e-3
    tokens = [x.shape[1] for x, _ in seen]
    assert tokens[0] > tokens[1] == tokens[2]
    for (x, output), gate in zip(seen, gates, strict=True):
        expected = by_hand(to_k, x.flatten(0, 1), gate.expand(x.shape[1], -1)).view_as(output)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_the_page_says_so_where_the_pipeline_is_listed():
    listed = {pipeline for entry in denoisers.known().values() for pipeline in entry.pipelines}
    assert "Flux2KleinKVPipeline" in table.LIMITED.keys() & listed
    assert f"| `Flux2KleinKVPipeline` | {table.LIMITED['Flux2KleinKVPipeline']} |" in table.to_markdown()
