"""DeepSpeed's side of `versus_deepspeed.py`: ZeRO-3, parameters and optimizer offloaded to NVMe, no GPU.

`versus_deepspeed.py` starts this script, with its job as JSON, in a separate environment: torch, NumPy, deepspeed,
ninja, a C++ compiler and libaio's headers. It prints one JSON line per step, then one with sizes. The very first
run compiles DeepSpeed's operators, which takes ten minutes and more on two cores. If a run was killed while it
compiled, delete that operator's file `lock` under `~/.cache/torch_extensions`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
os.environ.setdefault("MASTER_PORT", "29511")

import deepspeed  # pyright: ignore[reportMissingImports]
import torch

from benchmarks.residual_mlp import (
    LEARNING_RATE,
    ROWS,
    ResidualMLP,
    batch,
    counters,
    initialise,
    report_steps,
)


def configuration(folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's own; `settings` are what is tried in search of its best."""
    nvme = {"device": "nvme", "nvme_path": folder, "pin_memory": settings["pin_memory"]}
    return {
        "train_micro_batch_size_per_gpu": ROWS,
        "steps_per_print": 10**6,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": LEARNING_RATE, "weight_decay": 0.0}},
        "zero_optimization": {
            "stage": 3,
            "offload_param": {
                **nvme,
                "buffer_count": settings["buffers"],
                "buffer_size": int(settings["buffer_size"]),
                "max_in_cpu": 0,
            },
            "offload_optimizer": {
                **nvme,
                "buffer_count": 4,
                "pipeline_read": settings["pipeline"],
                "pipeline_write": settings["pipeline"],
            },
            "sub_group_size": int(settings["sub_group"]),
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": int(settings["live"]),
            "stage3_prefetch_bucket_size": int(settings["prefetch"]),
            "stage3_max_reuse_distance": int(settings["reuse"]),
        },
        "aio": {
            "block_size": settings["block_size"],
            "queue_depth": settings["queue_depth"],
            "thread_count": settings["threads"],
            "single_submit": False,
            "overlap_events": True,
        },
    }


def main() -> None:
    job = json.loads(sys.argv[1])
    before = counters()["peak_bytes"]
    config = configuration(job["folder"], job["settings"])
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = ResidualMLP(job["layers"], job["width"])
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
            initialise(name, parameter)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    inputs = batch(job["width"], torch.bfloat16)

    def step() -> float:
        loss = engine(*inputs)
        engine.backward(loss)
        engine.step()
        return loss.item()

    report_steps(step, job["steps"])
    parameters = sum(parameter.ds_numel for parameter in model.parameters())  # pyright: ignore
    print(json.dumps({"parameters": parameters, "start_bytes": before, "version": deepspeed.__version__}))


if __name__ == "__main__":
    main()
