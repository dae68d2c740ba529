"""What a run would be before it is one: sizes, work, time and disk, from settings, model config and the data's manifest."""

import dataclasses

import torch

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.flops import training_flops
from zh_modernbert.train.masking import mlm_probability_at

BYTES_PER_WEIGHT = 4  # float32, whatever the precision of the computation
BYTES_PER_STATE = 12  # of a checkpoint: the weight and the optimizer's two moments


def plan(settings, config: ZhModernBertConfig | None, packed: dict | None, num_processes: int) -> dict:
    """What `--dry_run` prints; what depends on something that is not known yet is None.

    Operations in all depend on the lengths of documents, of which the manifest has the mean: `flops` is what documents of
    that length all take, the least there can be; `flops_at_most` what rows of one document each would.

    Args:
        settings: of train/pretrain.py.
        config: of the model, where all of it is known.
        packed: the result in the manifest of the packed folder.
    """
    rows_per_update = settings.per_device_batch_size * settings.gradient_accumulation_steps * num_processes
    rows = rows_per_update * settings.max_steps
    found = {
        "settings": dataclasses.asdict(settings),
        "num_processes": num_processes,
        "updates": settings.max_steps,
        "rows_per_update": rows_per_update,
        "rows": rows,
        **dict.fromkeys(("tokens_per_update", "tokens", "epochs", "hours", "parameters", "embedding_share")),
        **dict.fromkeys(("flops", "flops_at_most", "checkpoint_bytes", "disk_bytes")),
    }
    if packed:
        found["tokens_per_update"] = round(rows_per_update * packed["tokens"] / packed["rows"])
        found["tokens"] = tokens = round(rows * packed["tokens"] / packed["rows"])
        found["epochs"] = round(rows / packed["rows"], 4)
        if settings.tokens_per_second:
            found["hours"] = round(tokens / settings.tokens_per_second / 3600, 2)
    if config:
        with torch.device("meta"):
            model = ZhModernBertForMaskedLM(config)
        found["parameters"] = parameters = model.num_parameters()
        found["embedding_share"] = round(model.get_input_embeddings().weight.numel() / parameters, 4)
        found["checkpoint_bytes"] = BYTES_PER_STATE * parameters
        # A new checkpoint is whole before the oldest one goes.
        found["disk_bytes"] = (settings.save_total_limit + 1) * found["checkpoint_bytes"] + BYTES_PER_WEIGHT * parameters
        if packed:
            rate = (settings.mlm_probability, settings.num_warmup_steps, settings.max_steps)
            masked = tokens * sum(mlm_probability_at(step, *rate) for step in range(settings.max_steps)) / settings.max_steps
            for name, documents in (("flops", rows * packed["documents"] / packed["rows"]), ("flops_at_most", rows)):
                found[name] = documents * training_flops([tokens / documents], masked / documents, config)
    return found
