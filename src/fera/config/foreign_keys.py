"""Words of other trainers, diffusers' scripts and kohya's among them, for what fera calls otherwise: for errors."""

from fera.support.hints import did_you_mean

_BUCKETS = "buckets reach from 1:4 to 4:1 at the area of data.resolution; data.bucket_reso_steps is their step"
_CACHE = "fera always caches latents, in data.cache_dir"
_LOADER = "pictures are encoded once, before training; there is no loader to set up"
_REPEATS = "a folder of pictures that is named like '10_words' is seen ten times an epoch"
_STEPS = "{} counts optimizer steps; fera counts no epochs"
_TOKEN = "log in by `hf auth login`, or set HF_TOKEN"

# A key of fera's, or a sentence where there is none that takes the same value.
_WORDS = {
    # diffusers
    "pretrained_model_name_or_path": "base",
    "instance_data_dir": "data.train_data_dir",
    "with_prior_preservation": "data.class_data_dir turns prior preservation on",
    "max_train_samples": 'data.dataset_split = "train[:100]" takes a part of a dataset',
    "repeats": _REPEATS,
    "max_train_steps": "train.steps",
    "num_train_epochs": _STEPS.format("train.steps"),
    "train_batch_size": "train.batch_size",
    "rank": "adapter.r",
    "lora_layers": "adapter.target_modules",
    "use_8bit_adam": 'set train.optimizer = "adamw8bit"',
    "scale_lr": "train.learning_rate is taken as it is; scale it by hand",
    "text_encoder_lr": "text_encoder.learning_rate",
    "proportion_empty_prompts": "train.caption_dropout",
    "validation_prompt": "validation.prompts",
    "validation_epochs": _STEPS.format("validation.steps"),
    "num_validation_images": "validation.prompts draws a picture for each of its prompts; a prompt may come twice",
    "resume_from_checkpoint": "fera train CONFIG.toml --resume goes on from the last checkpoint in output_dir",
    "cache_latents": _CACHE,
    "dataloader_num_workers": _LOADER,
    "enable_xformers_memory_efficient_attention": "PyTorch's own memory-efficient attention is used as it is",
    "hub_token": _TOKEN,
    "initializer_concept": "tokens.initializer_token",
    "token_abstraction": "tokens.placeholder_token",
    "num_new_tokens_per_abstraction": "tokens.num_vectors",
    "train_text_encoder_ti": "tokens.placeholder_token turns the training of a word on",
    "train_text_encoder_ti_frac": "tokens.train_frac",
    # ai-toolkit
    "only_if_contains": "adapter.target_modules",
    "ignore_if_contains": "adapter.exclude_modules",
    # kohya
    "network_weights": "adapter.start_from",
    "init_lora": "adapter.start_from",
    "include_patterns": "adapter.target_modules",
    "exclude_patterns": "adapter.exclude_modules",
    "train_blocks": "adapter.blocks",
    "train_double_block_indices": "adapter.blocks",
    "train_single_block_indices": "adapter.blocks",
    "block_dims": "adapter.rank_pattern",
    "block_alphas": "adapter.alpha_pattern",
    "network_reg_dims": "adapter.rank_pattern",
    "pretrained_model_name": "base",
    "network_dim": "adapter.r",
    "network_alpha": "adapter.lora_alpha",
    "network_dropout": "adapter.lora_dropout",
    "network_module": "adapter.expert chooses another scheme for the experts, adapter.plain an adapter without routing",
    "network_args": "adapter.expert chooses another scheme for the experts, with its settings",
    "network_train_unet_only": "only the denoiser trains, unless text_encoder.train_text_encoder is set",
    "reg_data_dir": "data.class_data_dir",
    "conditioning_data_dir": "data.mask_path",
    "masked_loss": "data.mask_path or data.alpha_mask turns masks on",
    "num_repeats": _REPEATS,
    "class_tokens": "data.instance_prompt",
    "caption_extension": "captions are read from .txt and .caption files",
    "caption_dropout_rate": "train.caption_dropout",
    "keep_tokens_separator": "data.keep_tokens counts tags that stay in front",
    "flip_aug": "data.random_flip",
    "random_crop": "set data.center_crop = false",
    "min_bucket_reso": _BUCKETS,
    "max_bucket_reso": _BUCKETS,
    "cache_latents_to_disk": _CACHE,
    "max_train_epochs": _STEPS.format("train.steps"),
    "unet_lr": "train.learning_rate",
    "optimizer_type": "train.optimizer",
    "min_snr_gamma": "train.snr_gamma",
    "loraplus_unet_lr_ratio": "train.loraplus_lr_ratio",
    "v_parameterization": 'set train.prediction_type = "v_prediction"; auto reads it from the base',
    "save_every_n_steps": "train.checkpointing_steps",
    "save_every_n_epochs": _STEPS.format("train.checkpointing_steps"),
    "output_name": "output_dir names the run's folder",
    "sample_prompts": "validation.prompts",
    "sample_every_n_steps": "validation.steps",
    "sample_every_n_epochs": _STEPS.format("validation.steps"),
    "max_data_loader_n_workers": _LOADER,
    "fp8_base": 'set quantization = "fp8"',
    "log_with": "train.report_to",
    "log_tracker_name": "train.tracker_project_name",
    "huggingface_repo_id": "hub_model_id",
    "huggingface_token": _TOKEN,
}


def word_for(name: str, *, as_flag: bool = False) -> str | None:
    """What fera offers for a key of another trainer's, to end an error message with.

    Args:
        name: the name of the key, with or without a section; dashes stand for underscores.
        as_flag: name fera's key as a flag.

    Returns:
        "did you mean 'train.steps'?" or a sentence; None for words that none of them has.
    """
    found = _WORDS.get(name.rpartition(".")[2].replace("-", "_"))
    if found is None or " " in found:
        return found
    return did_you_mean(f"--{found}" if as_flag else found)
