"""Section `compress`: the frozen base in less memory."""

from pydantic import Field

from fera.config.section import Section


class CompressConfig(Section):
    """The frozen base's weights held as their principal parts ([memory.md](memory.md#a-compressed-base))."""

    energy: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Hold each weight of the denoiser as two factors, of the leading singular directions with this "
        "share of its energy, where they are smaller. It changes what the base draws. Whole weights when unset.",
    )
