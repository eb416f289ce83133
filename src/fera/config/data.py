"""Section `data`: pictures and captions."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fera.config.section import Section
from fera.config.stages import StageConfig, StageDistance, StageOrder, stage_names

Media = Literal["pictures", "clips", "sounds"]

# Of a sound.
_MOST_SECONDS = 3600
# Keys that say nothing of sounds.
_OF_PICTURES = (
    *("resolution", "num_frames", "frame_rate", "enable_bucket", "bucket_reso_steps", "center_crop", "random_flip"),
    *("mask_path", "alpha_mask", "source_path", "class_data_dir", "dataset_name"),
)


class DataConfig(Section):
    """Pictures and their captions; [data.md](data.md) shows the layouts that a folder can have."""

    train_data_dir: Path | None = Field(
        default=None, strict=False, description="Folder of training pictures and captions; this or dataset_name."
    )
    dataset_name: str | None = Field(
        default=None,
        min_length=1,
        description="Dataset of the Hugging Face Hub, or a local path that `datasets.load_dataset` reads, to train on "
        "instead of a folder.",
    )
    dataset_config_name: str | None = Field(
        default=None, min_length=1, description="Configuration of the dataset, where it has several."
    )
    dataset_split: str = Field(
        default="train",
        min_length=1,
        description='Split of the dataset or of a folder of parquet files, or a part of one, such as "train[:100]".',
    )
    dataset_rows: int | None = Field(
        default=None,
        ge=1,
        description="Stream dataset_name and take its first so many rows: the rest is not downloaded.",
    )
    validation_data_dir: Path | None = Field(
        default=None,
        strict=False,
        description="Folder of pictures for the held-out loss, laid out as the training folder.",
    )
    validation_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the training pictures to hold out when validation_data_dir is unset.",
    )
    image_column: str = Field(
        default="file_name",
        min_length=1,
        description="Column of metadata.* with the picture's path, or of a dataset with the picture, where file_name "
        "also stands for image.",
    )
    caption_column: str = Field(
        default="text", min_length=1, description="Column of metadata.* or of a dataset with the caption."
    )
    caption_lines: Literal["join", "first"] = Field(
        default="join",
        description="What to take of a caption of several lines: all, joined by spaces, or the first.",
    )
    instance_prompt: str | None = Field(
        default=None, min_length=1, description="Caption of pictures that have none of their own."
    )
    trigger_word: str | None = Field(
        default=None,
        min_length=1,
        description="Word that every caption shall have: it replaces [trigger], else it is put in front.",
    )
    shuffle_caption: bool = Field(
        default=False, description="Train on the tags of a caption in several orders; a trigger word stays in front."
    )
    keep_tokens: int = Field(
        default=0, ge=0, le=1000, description="Tags at the start of a caption that shuffle_caption leaves in place."
    )
    caption_separator: str = Field(default=",", min_length=1, max_length=8, description="What separates tags.")
    caption_variants: int = Field(
        default=8, ge=1, le=1000, description="Most orders of one caption that shuffle_caption encodes and draws from."
    )
    allow_missing_captions: bool = Field(
        default=False,
        description="Train pictures without a caption on the empty caption instead of refusing them.",
    )
    skip_bad: bool = Field(
        default=False, description="Skip and report pictures that cannot be read instead of stopping."
    )
    follow_symlinks: bool = Field(
        default=False, description="Read files that are links to somewhere outside of the data folder."
    )
    resolution: int | None = Field(
        default=None,
        ge=8,
        le=16384,
        description="Side of the square training pictures in pixels, and the root of the area of those in buckets; the "
        "base's own size when unset.",
    )
    num_frames: list[int] = Field(
        default=[],
        description="Train on clips of so many frames: of several numbers each clip takes the largest that it has "
        "frames for, and a picture is a clip of 1. Videos, animated pictures and folders of frames are clips then. "
        "Empty: pictures alone.",
    )
    frame_rate: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Frames a second that clips are brought to; the base's own when unset.",
    )
    last_frame: bool = Field(
        default=False,
        description="Give the last frame of each clip too, and not the first alone, to a base of image to video that "
        "draws between two pictures.",
    )
    seconds: list[float] = Field(
        default=[],
        description="Train on sounds of so many seconds: of several numbers each sound takes the largest that it is "
        "long enough for. A longer one is cut, a shorter one has silence behind it. Empty: no sounds.",
    )
    enable_bucket: bool = Field(
        default=False,
        description="Keep the aspect of pictures, up to 1:4: each goes to the nearest of a few sizes of about the "
        "area of resolution x resolution, and a batch holds pictures of one size. What does not fill a batch is "
        "trained as a smaller one, in which each picture counts as much as in a full one.",
    )
    bucket_reso_steps: int | None = Field(
        default=None,
        ge=1,
        description="Step between the sides of buckets in pixels; when unset 64, or about an eighth of a resolution "
        "below 512.",
    )
    center_crop: bool = Field(
        default=True,
        description="Crop what sticks out of the training size at the centre; false: at a place drawn once for each.",
    )
    random_flip: bool = Field(default=False, description="Mirror pictures left to right half of the time.")
    mask_path: Path | None = Field(
        default=None,
        strict=False,
        description="Folder of masks, named as the pictures: the loss counts where they are white.",
    )
    alpha_mask: bool = Field(default=False, description="Take the pictures' own opacity for masks.")
    mask_min_value: float = Field(
        default=0.0, ge=0, lt=1, description="Weight of the loss where a mask is black; 1 where it is white."
    )
    source_path: list[str] = Field(
        default=[],
        description="Folders of source pictures for bases that edit or fill, named as the pictures; a folder for each "
        "source of a picture.",
    )
    source_column: str = Field(
        default="source",
        min_length=1,
        description="Column of metadata.* with the paths of a picture's sources, one or a list, or of a dataset with "
        "the pictures.",
    )
    class_data_dir: Path | None = Field(
        default=None,
        strict=False,
        description="Folder of class pictures, in any layout, that keep the base as it is: half of what a run sees.",
    )
    class_prompt: str | None = Field(
        default=None, min_length=1, description="Caption of class pictures without one, and prompt to draw them with."
    )
    num_class_images: int = Field(
        default=0, ge=0, le=100_000, description="Draw class pictures with the base until there are so many."
    )
    prior_loss_weight: float = Field(default=1.0, gt=0, description="Weight of the loss on class pictures.")
    stages: list[StageConfig] = Field(
        default=[],
        description="Folders that the run trains on one after the other, and the last one is what it is for: "
        "tables of train_data_dir, steps or weight, name and, once, target = true "
        "([data.md](data.md#stages)). Of the target alone pictures are held out.",
    )
    stage_order: StageOrder = Field(
        default="given",
        description="Order of the sources, before the target: as given; the nearest to the target first; the farthest "
        "first; path, the shortest way through all of them to the target; or together, the pictures of all stages at "
        "once.",
    )
    stage_distance: StageDistance = Field(
        default="energy",
        description="What the distances between stages are of: energy, the energies of their latents by band; or "
        "features of their pictures, by the judge, CLIP or Inception, as `fera evaluate` has them.",
    )
    stage_clip_model: str = Field(
        default="openai/clip-vit-base-patch32",
        min_length=1,
        description="CLIP for stage_distance = clip: a folder or Hub id.",
    )
    cache_dir: Path | None = Field(
        default=None,
        strict=False,
        description="Folder of encoded pictures and captions; output_dir/cache when unset.",
    )

    @property
    def reads_clips(self) -> bool:
        """Whether videos, animated pictures and folders of frames are clips."""
        return bool(self.num_frames)

    @property
    def reads_sounds(self) -> bool:
        """Whether sounds are trained on, and nothing else."""
        return bool(self.seconds)

    @property
    def reads(self) -> Media:
        """What is trained on: "pictures", "clips" (and pictures) or "sounds"."""
        return "sounds" if self.reads_sounds else "clips" if self.reads_clips else "pictures"

    @property
    def things(self) -> str:
        """The same in words."""
        return "pictures and clips" if self.reads_clips else self.reads

    @property
    def source(self) -> Path | str:
        """Where training pictures come from: a folder, or the name of a dataset."""
        source = self.train_data_dir if self.dataset_name is None else self.dataset_name
        assert source is not None
        return source

    @property
    def held_out_stage(self) -> str:
        """Name of the stage that pictures are held out of, the target; empty where there are no stages."""
        return next((name for name, stage in zip(self.stage_names, self.stages, strict=True) if stage.target), "")

    @property
    def stage_names(self) -> list[str]:
        """What the stages are called, in the given order."""
        return stage_names(self.stages)

    @model_validator(mode="before")
    @classmethod
    def _share_target(cls, values: Any) -> Any:
        """The target's folder and `train_data_dir` are one: either may be left out."""
        stages = values.get("stages") if isinstance(values, dict) else None
        if not isinstance(stages, list):
            return values
        targets = [stage for stage in stages if isinstance(stage, dict) and stage.get("target") is True]
        if len(targets) != 1:
            return values
        folder = targets[0].get("train_data_dir", values.get("train_data_dir"))
        if folder is None:
            return values
        filled = [stage | {"train_data_dir": folder} if stage is targets[0] else stage for stage in stages]
        return {"train_data_dir": folder} | values | {"stages": filled}

    @field_validator("source_path", mode="before")
    @classmethod
    def _take_one(cls, value: Any) -> Any:
        return [str(value)] if isinstance(value, str | Path) else value

    @field_validator("num_frames", mode="before")
    @classmethod
    def _read_num_frames(cls, value: Any) -> Any:
        # One number is a list of one; flags come as texts.
        values = value if isinstance(value, list) else [value]
        return [int(one) if isinstance(one, str) and one.isascii() and one.isdecimal() else one for one in values]

    @field_validator("seconds", mode="before")
    @classmethod
    def _read_seconds(cls, value: Any) -> Any:
        values = value if isinstance(value, list) else [value]
        return [_number(one) for one in values]

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        self._check_stages()
        if self.train_data_dir is None and self.dataset_name is None:
            raise ValueError(
                "missing key data.train_data_dir: set it, or data.dataset_name, in the TOML file or by a flag"
            )
        if self.train_data_dir is not None and self.dataset_name is not None:
            raise ValueError("data.train_data_dir and data.dataset_name are both set; keep one")
        if self.dataset_config_name is not None and self.dataset_name is None:
            raise ValueError("data.dataset_config_name is set, but data.dataset_name is not: set both or neither")
        if self.dataset_rows is not None and self.dataset_name is None:
            raise ValueError("data.dataset_rows is set, but data.dataset_name is not: set both or neither")
        if self.dataset_rows is not None and "[" in self.dataset_split:
            raise ValueError(
                f"data.dataset_rows streams a whole split from its start, and data.dataset_split is "
                f"{self.dataset_split!r}: leave the brackets out, or data.dataset_rows"
            )
        if self.bucket_reso_steps is not None and not self.enable_bucket:
            raise ValueError("data.bucket_reso_steps is set, but data.enable_bucket is off: set both or neither")
        self._check_clips()
        self._check_sounds()
        if self.alpha_mask and self.mask_path is not None:
            raise ValueError("data.mask_path and data.alpha_mask are both set; keep one")
        if self.source_path and self.class_data_dir is not None:
            raise ValueError("class pictures have no sources: leave data.class_data_dir or data.source_path out")
        if self.mask_min_value and not (self.alpha_mask or self.mask_path):
            raise ValueError("data.mask_min_value is set, but there are no masks: set mask_path or alpha_mask")
        if self.keep_tokens and not self.shuffle_caption:
            raise ValueError("data.keep_tokens is set, but data.shuffle_caption is off: set both or neither")
        if self.class_data_dir is None and (self.class_prompt is not None or self.num_class_images):
            raise ValueError("data.class_prompt and data.num_class_images need data.class_data_dir")
        if self.num_class_images and self.class_prompt is None:
            raise ValueError("data.num_class_images needs data.class_prompt, the prompt to draw with")
        return self

    def _check_stages(self) -> None:
        if not self.stages:
            for name in ("stage_order", "stage_distance", "stage_clip_model"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"data.{name} is set, but there are no data.stages: set both or neither")
            return
        targets = [stage for stage in self.stages if stage.target]
        if len(targets) != 1:
            raise ValueError(
                f"data.stages has {len(targets) or 'no'} targets: give the stage that the run is for, and no other, "
                "target = true"
            )
        if len(self.stages) < 2:
            raise ValueError("data.stages has a target and no source: add one, or leave data.stages out")
        if self.train_data_dir != targets[0].train_data_dir:
            raise ValueError(
                f"data.train_data_dir is {self.train_data_dir}, and the target of data.stages is "
                f"{targets[0].train_data_dir}: they are one, so leave either out"
            )
        for what, held in (("folder", [s.train_data_dir for s in self.stages]), ("name", self.stage_names)):
            if twice := [str(one) for place, one in enumerate(held) if one in held[:place]]:
                raise ValueError(f"data.stages has the {what} {twice[0]} twice")
        for name in ("dataset_name", "class_data_dir", "mask_path", "source_path"):
            if getattr(self, name):
                raise ValueError(f"data.stages are folders of pictures: leave data.{name} out")
        if self.reads_clips and self.stage_distance != "energy":
            raise ValueError("clips have no features of pictures: leave data.num_frames or data.stage_distance out")
        if self.stage_order == "together" and any(stage.steps or stage.weight for stage in self.stages):
            raise ValueError(
                'with data.stage_order = "together" each picture counts alike: leave steps and weight of '
                "data.stages out"
            )

    def _check_sounds(self) -> None:
        if any(not 0 < one <= _MOST_SECONDS for one in self.seconds) or len(set(self.seconds)) < len(self.seconds):
            raise ValueError(
                f"data.seconds must be different numbers above 0 and up to {_MOST_SECONDS}, got {self.seconds}"
            )
        if not self.reads_sounds:
            return
        for name in _OF_PICTURES:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"data.{name} is not for sounds: leave it or data.seconds out")

    def _check_clips(self) -> None:
        if any(count < 1 for count in self.num_frames) or len(set(self.num_frames)) < len(self.num_frames):
            raise ValueError(f"data.num_frames must be different numbers from 1 on, got {self.num_frames}")
        if self.frame_rate is not None and not self.reads_clips:
            raise ValueError("data.frame_rate is set, but data.num_frames is not: set both or neither")
        if self.last_frame and not self.reads_clips:
            raise ValueError("data.last_frame is set, but data.num_frames is not: set both or neither")
        if self.reads_clips and (self.mask_path is not None or self.alpha_mask):
            raise ValueError("masks are for pictures: leave data.num_frames or mask_path and alpha_mask out")
        if self.reads_clips and self.source_path:
            raise ValueError("sources are for pictures: leave data.num_frames or data.source_path out")
        if self.reads_clips and self.dataset_name is not None:
            raise ValueError("clips are read from a folder: set data.train_data_dir in the place of data.dataset_name")


def _number(value: Any) -> Any:
    """A number that a flag has as text; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
