"""UNets of videos that grew out of Stable Diffusion's: AnimateDiff, ModelScope's text to video, I2VGen-XL."""

from fera.models import layouts_video
from fera.models.registry import Denoiser, add

add("UNetMotionModel", Denoiser("sample", layouts_video.channels_first, pipelines=("AnimateDiffPipeline",)))
add("UNet3DConditionModel", Denoiser("sample", layouts_video.channels_first, pipelines=("TextToVideoSDPipeline",)))
# The given picture's latent is an argument of its own.
add("I2VGenXLUNet", Denoiser("sample", layouts_video.channels_first, pipelines=("I2VGenXLPipeline",)))
