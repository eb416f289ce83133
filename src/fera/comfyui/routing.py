"""A routed adapter at work in ComfyUI: a gate a call of the model, experts in its layers during that call."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fera.comfyui.acting import ExpertLayers
from fera.comfyui.adapter import LiveAdapter
from fera.comfyui.control import GateControl
from fera.comfyui.latent import frames_of, latent_of, noise_level_of
from fera.method.routing import Routing

# What a call tells that may say which part of the latent is given.
_CONDITIONS = ("denoise_mask", "latent_shapes", "c_concat", "guiding_frame_index")


@dataclass(frozen=True)
class Routed:
    """A wrapper of ComfyUI's `apply_model` that routes one adapter.

    Args:
        adapter: the adapter.
        layers: its experts.
        strength: multiplies what the experts add.
        control: what a person set about the gate.
        traces: lists to append to, one entry a call.
    """

    adapter: LiveAdapter
    layers: ExpertLayers
    strength: float = 1.0
    control: GateControl = GateControl()
    traces: tuple[list[Routing], ...] = ()

    def controlled(self, control: GateControl) -> "Routed":
        """The same under another control.

        Raises:
            FeraError: the control is for another number of experts.
        """
        control.check(self.adapter.num_experts, self.adapter.name)
        return replace(self, control=control)

    def traced(self, trace: list[Routing]) -> "Routed":
        """The same, which appends to a list too."""
        return replace(self, traces=(*self.traces, trace))

    def free(self, *arguments: Any) -> None:
        """Let go of the weights on the device."""
        self.layers.free()

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Route one call of `apply_model`, whose arguments these are.

        Args:
            executor: goes on with the call; `class_obj` is ComfyUI's model.
            x: latents, shape (B, C, H, W), (B, C, T, H, W), (B, C, L), or (B T, C, H, W) of models whose frames are
                rows.
            t: sigmas, one a row.
            c_concat: conditions as channels, of which a mask of frames may be read.
            c_crossattn: text; not read.
            control: of ControlNet; not read.
            transformer_options: ComfyUI's.
            **kwargs: other conditions; some of these are read, see `latent_of`, and `num_video_frames`.

        Raises:
            FeraError: it cannot be told which sample a row of a layer belongs to.
        """
        model = executor.class_obj
        options = transformer_options or {}
        acting: Any = nullcontext()
        if self._acts(model.model_sampling, t):
            gates = self._gates(model.model_sampling, x, t, kwargs | {"c_concat": c_concat})
            frames = len(x) // len(gates)
            acting = self.layers.acting(model, gates * self.strength, options, frames)
        with acting:
            output: Tensor = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        return output

    def _acts(self, sampling: Any, sigma: Tensor) -> bool:
        if (self.control.start, self.control.end) == (0.0, 1.0):
            return True
        latest, earliest = (float(sampling.percent_to_sigma(part)) for part in (self.control.end, self.control.start))
        return latest < float(sigma.max()) <= earliest

    def _gates(self, sampling: Any, x: Tensor, sigma: Tensor, told: Mapping[str, Any]) -> Tensor:
        if (frames := frames_of(self.adapter.denoiser, told.get("num_video_frames"))) > 1:
            x, sigma = x.unflatten(0, (-1, frames)), sigma[::frames]
        conditions = {name: told.get(name) for name in _CONDITIONS}
        latent = latent_of(self.adapter.denoiser, sampling, sigma, x, **conditions)
        read, level = self.adapter.input, None
        if read.reads_timestep:
            level = noise_level_of(sampling, sigma, self.adapter.denoiser).to(latent.device)
        entries = read(latent, level)
        gates = self.control.applied(self.adapter.router.to(entries.device)(entries))
        for trace in self.traces:
            trace.append(
                Routing(self.adapter.name, sigma.detach(), read.indicator(entries, latent), gates, "model").to_cpu()
            )
        return gates
