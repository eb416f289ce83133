"""The nodes. ComfyUI's own modules are imported when a node runs: without them nothing here can."""

import json
import uuid
from pathlib import Path
from typing import Any

from fera.comfyui.adapter import LiveAdapter, read_adapter
from fera.comfyui.control import GateControl, experts_of, weights_of
from fera.comfyui.patching import loaded, put, routed, scheduled, with_text
from fera.comfyui.picture import draw
from fera.comfyui.schedule import SCHEDULE, read_schedule
from fera.errors import FeraError
from fera.method.routing import Routing

# Of ComfyUI's folders of models: adapters lie in `models/fera`, or among the LoRAs.
FOLDER = "fera"
SCHEDULES = "fera_schedules"
_CATEGORY = "FeRA"
_STRENGTH = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}
_PART = {"min": 0.0, "max": 1.0, "step": 0.01}


class LoadAdapter:
    """Loads a routed adapter onto a model, and its text parts onto a CLIP."""

    CATEGORY = _CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP")
    DESCRIPTION = (
        "Loads a FeRA adapter. At each step its router reads the latent and mixes the experts by it, as in training. "
        "Several can follow each other, and ComfyUI's own LoRAs can stand beside them."
    )

    def __init__(self) -> None:
        self._read: tuple[Path, float, LiveAdapter] | None = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI asks of a node: its inputs."""
        import folder_paths

        return {
            "required": {
                "model": ("MODEL",),
                "adapter_name": (
                    folder_paths.get_filename_list(FOLDER),
                    {"tooltip": "From models/fera or models/loras."},
                ),
                "strength": ("FLOAT", _STRENGTH | {"tooltip": "Multiplies what the experts add; 0 switches them off."}),
            },
            "optional": {
                "clip": ("CLIP", {"tooltip": "Needed where the adapter has parts in the text encoders."}),
                "strength_clip": ("FLOAT", _STRENGTH),
            },
        }

    @classmethod
    def IS_CHANGED(cls, adapter_name: str, **inputs: Any) -> float:
        """What ComfyUI asks of a node: another answer where it must run again."""
        return _path_of(adapter_name).stat().st_mtime

    def load(
        self, model: Any, adapter_name: str, strength: float, clip: Any = None, strength_clip: float = 1.0
    ) -> tuple[Any, Any]:
        """The model with the adapter, and the CLIP with its text parts.

        Raises:
            FeraError: the file is no routed adapter, or one of another model.
        """
        adapter = self._adapter(_path_of(adapter_name))
        return routed(model, adapter, strength), with_text(clip, adapter, strength_clip)

    def _adapter(self, path: Path) -> LiveAdapter:
        changed = path.stat().st_mtime
        if self._read is None or self._read[:2] != (path, changed):
            self._read = (path, changed, read_adapter(path))
        return self._read[2]


class LoadSchedule:
    """Plays the LoRAs of a schedule, each while the latent is as noisy as where it was made for."""

    CATEGORY = _CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP")
    DESCRIPTION = (
        "Plays what fera export --schedule wrote: several LoRAs, one after the other along the steps. The noise in the "
        "latent says which of them acts, whatever the sampler and its number of steps."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI asks of a node: its inputs."""
        import folder_paths

        return {
            "required": {
                "model": ("MODEL",),
                "schedule": (
                    [name for name in folder_paths.get_filename_list(SCHEDULES) if Path(name).name == SCHEDULE],
                    {"tooltip": "A schedule.json in models/fera or models/loras, beside its LoRAs."},
                ),
                "strength": ("FLOAT", _STRENGTH | {"tooltip": "Multiplies what the LoRAs add; 0 switches them off."}),
            },
            "optional": {
                "clip": ("CLIP", {"tooltip": "Needed where the schedule has parts in the text encoders."}),
                "strength_clip": ("FLOAT", _STRENGTH),
            },
        }

    @classmethod
    def IS_CHANGED(cls, schedule: str, **inputs: Any) -> list[float]:
        """What ComfyUI asks of a node: another answer where it must run again."""
        path = _path_of(schedule, SCHEDULES)
        return [file.stat().st_mtime for file in (path, *(part.file for part in read_schedule(path)))]

    def load(
        self, model: Any, schedule: str, strength: float, clip: Any = None, strength_clip: float = 1.0
    ) -> tuple[Any, Any]:
        """The model with the schedule, and the CLIP with its text parts, which are the same in all of its LoRAs.

        Raises:
            FeraError: it is no schedule, its files are not whole, or they are for another model.
        """
        return scheduled(model, clip, _path_of(schedule, SCHEDULES), strength, strength_clip)


class SetGate:
    """Sets what a person wants of a gate."""

    CATEGORY = _CATEGORY
    FUNCTION = "set_gate"
    RETURN_TYPES = ("MODEL",)
    DESCRIPTION = (
        "Steers the gate of FeRA adapters that were loaded before: a fixed gate, some experts alone or left out, a "
        "sharper or softer choice, a part of sampling."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI asks of a node: its inputs."""
        return {
            "required": {
                "model": ("MODEL",),
                "adapter": ("STRING", {"default": "", "tooltip": "Name of the adapter; all of them when empty."}),
                "fixed_gate": (
                    "STRING",
                    {"default": "", "tooltip": "One weight an expert in place of the router's: 0.2, 0.3, 0.5."},
                ),
                "solo": ("STRING", {"default": "", "tooltip": "Only these experts act, counted from 1: 1, 3."}),
                "mute": ("STRING", {"default": "", "tooltip": "These experts do not act, counted from 1: 2."}),
                "temperature": (
                    "FLOAT",
                    {
                        **{"default": 1.0, "min": 0.05, "max": 20.0, "step": 0.05},
                        "tooltip": "In relation to that of training: below 1 the choice is sharper, above 1 softer.",
                    },
                ),
                "start_percent": ("FLOAT", {"default": 0.0, **_PART, "tooltip": "The adapter acts from here on."}),
                "end_percent": ("FLOAT", {"default": 1.0, **_PART, "tooltip": "The adapter acts up to here."}),
            }
        }

    def set_gate(
        self,
        model: Any,
        adapter: str,
        fixed_gate: str,
        solo: str,
        mute: str,
        temperature: float,
        start_percent: float,
        end_percent: float,
    ) -> tuple[Any]:
        """The model with the gate set.

        Raises:
            FeraError: a text cannot be read, or is for another number of experts, or there is no such adapter.
        """
        found = loaded(model)
        chosen = {key: one for key, one in found.items() if adapter in ("", one.adapter.name)}
        if not chosen:
            names = ", ".join(sorted({one.adapter.name for one in found.values()}))
            raise FeraError(
                f"the model has no FeRA adapter {adapter!r}; it has: {names or 'none'}. Load it before this node"
            )
        model = model.clone()
        for key, one in chosen.items():
            everyone = frozenset(range(one.adapter.num_experts))
            alone, muted = experts_of(solo), experts_of(mute)
            for listed in (alone, muted):  # before they are turned round: a number too large would vanish
                GateControl(muted=listed).check(one.adapter.num_experts, one.adapter.name)
            control = GateControl(
                fixed=weights_of(fixed_gate),
                muted=(everyone - alone if alone else frozenset()) | muted,
                temperature=temperature,
                start=start_percent,
                end=end_percent,
            )
            put(model, key, one.controlled(control))
        return (model,)


class RecordGates:
    """Records gates and energies while a sampler draws."""

    CATEGORY = _CATEGORY
    FUNCTION = "record"
    RETURN_TYPES = ("MODEL", "FERA_TRACE")
    DESCRIPTION = "Records the gates and energies of FeRA adapters while a sampler draws; show them with Show gates."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI asks of a node: its inputs."""
        return {"required": {"model": ("MODEL",)}}

    def record(self, model: Any) -> tuple[Any, list[Routing]]:
        """The model, and the list that its calls append to; it is emptied when a sampler starts.

        Raises:
            FeraError: the model has no FeRA adapter.
        """
        found = loaded(model)
        if not found:
            raise FeraError("the model has no FeRA adapter whose gates could be recorded; load one before this node")
        trace: list[Routing] = []
        model = model.clone()
        for key, one in found.items():
            put(model, key, one.traced(trace))
        model.add_callback_with_key("on_pre_run", f"fera.{uuid.uuid4()}", lambda patcher: trace.clear())
        return model, trace


class ShowGates:
    """Shows what was recorded."""

    CATEGORY = _CATEGORY
    FUNCTION = "show"
    RETURN_TYPES = ("IMAGE", "STRING", "LATENT")
    RETURN_NAMES = ("picture", "json", "latent")
    DESCRIPTION = "Draws recorded gates and energies. Connect the latent of the sampler: they are complete after it."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI asks of a node: its inputs."""
        return {"required": {"trace": ("FERA_TRACE",), "latent": ("LATENT",)}}

    def show(self, trace: list[Routing], latent: Any) -> tuple[Any, str, Any]:
        """A picture, the numbers as JSON, and the latent as it came.

        Raises:
            FeraError: nothing was recorded.
        """
        if not trace:
            raise FeraError(
                "nothing was recorded: the sampler must draw with the model that Record gates gives, and its latent "
                "must go into this node"
            )
        rows = [
            {
                "adapter": routing.adapter,
                "sigma": float(routing.timestep.max()) if routing.timestep is not None else None,
                "shares": routing.indicator.mean(dim=0).tolist(),
                "gate": routing.gates.mean(dim=0).tolist(),
            }
            for routing in trace
        ]
        return draw(trace), json.dumps(rows), latent


NODES: dict[str, tuple[type, str]] = {
    "FeraLoadAdapter": (LoadAdapter, "Load FeRA adapter"),
    "FeraLoadSchedule": (LoadSchedule, "Load LoRA schedule"),
    "FeraSetGate": (SetGate, "FeRA gate"),
    "FeraRecordGates": (RecordGates, "FeRA record gates"),
    "FeraShowGates": (ShowGates, "FeRA show gates"),
}
"""The nodes by the name that workflows keep, with what people read."""


def register_folder() -> None:
    """Tell ComfyUI where adapters lie: `models/fera`, and where LoRAs do."""
    import folder_paths

    paths = [str(Path(folder_paths.models_dir) / FOLDER), *folder_paths.get_folder_paths("loras")]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})
    folder_paths.folder_names_and_paths[SCHEDULES] = (paths, {".json"})


def _path_of(name: str, folder: str = FOLDER) -> Path:
    import folder_paths

    return Path(folder_paths.get_full_path_or_raise(folder, name))
