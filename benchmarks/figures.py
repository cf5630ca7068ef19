"""The figures of README.md and docs/benchmarks.md: the result file of each, and its name in plain words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a table: `key` of `benchmark`, and beside it the figure to compare it with."""

    label: str
    benchmark: str
    key: str
    form: str = "{:.2f}"
    versus: str = ""  # a key of the same result
    versus_label: str = ""
    versus_form: str = ""  # "" = as `form`
    readme: str = ""  # its name in the README, where the rows around it are missing; "" = not shown there


TABLES: dict[str, list[Row]] = {
    "The shipped model": [
        Row(
            "English name of an unseen picture, exactly right",
            "quality",
            "caption_en_exact",
            versus="knn_efficientnet",
            versus_label="name of the most similar picture, by EfficientNet-Lite0",
            readme="Emoji in a style that training did not show: share of English names exactly right",
        ),
        Row(
            "Chinese name of an unseen picture, exactly right",
            "quality",
            "caption_zh_exact",
            versus="knn_efficientnet",
            versus_label="name of the most similar picture, by EfficientNet-Lite0",
        ),
        Row(
            "Questions about an unseen picture, answered right",
            "quality",
            "ask_accuracy",
            readme="The same pictures: share of questions answered right",
        ),
        Row("Picture to name among all names, the right one first", "quality", "match_r1"),
        Row("Drawings with the right thing among their 10 most similar pictures", "quality", "draw_recall10"),
        Row("Image tokenizer on unseen pictures, PSNR in dB", "quality", "tokenizer_psnr", "{:.1f}"),
        Row("Sampled poems with correct form", "quality", "poem_form"),
        Row(
            "Poems held out, perplexity per character",
            "quality",
            "poem_ppl",
            "{:.1f}",
            versus="poem_ppl_ngram",
            versus_label="n-gram model",
        ),
    ],
    "Exactness and speed in memory": [
        Row(
            "Delinking: largest change of any logit",
            "delink",
            "max_abs_diff",
            "{:.1f}",
            readme="Largest change of any output when shared layers get parameters of their own",
        ),
        Row("Qwen3 checkpoint in the M6 stack: largest difference", "parity", "qwen3_max_abs_diff", "{:.1e}"),
        Row("ResNet backbone: largest difference", "parity", "resnet_max_abs_diff", "{:.1e}"),
        Row("Training step: share of the processor's rate of matrix products", "step", "gemm_share"),
        Row("Training speed over that of `transformers`", "step", "vs_transformers", "{:.2f}x"),
        Row("Losses on 1, 2 and 4 processes: largest difference", "parallel", "max_loss_diff", "{:.1e}"),
        Row(
            "Bytes sent to other processes in a step: Real over Pseudo Giant",
            "parallel",
            "comm_ratio",
            "{:.1f}",
            versus="comm_ratio_theory",
            versus_label="by counting",
        ),
    ],
    "Models that do not fit in memory": [
        Row(
            "Peak memory over the budget, the worst of 2, 4 and 8 GiB",
            "budget",
            "worst_peak_over_budget",
            readme="Training within a memory budget: peak memory over the budget, worst of 2, 4 and 8 GiB",
        ),
        Row(
            "Streamed from the disk, large steps: share of the speed in memory",
            "stream",
            "compute_bound_ratio",
        ),
        Row("Streamed from the disk, small steps: share of the disk's own speed", "stream", "disk_share"),
        Row(
            "Qwen3 of 4B trained in 6 GiB, of 8B generating in 4 GiB: peak memory over the budget",
            "hugging_face",
            "worst_peak_over_budget",
        ),
        Row(
            "19.6 billion parameters (one GPU's share of M6-10T) in 12 GiB: peak memory over the budget",
            "headline",
            "peak_over_budget",
        ),
        Row(
            "The same: seconds a step as a Real Giant",
            "headline",
            "real_seconds_a_step",
            "{:.0f}",
            readme="19.6 billion parameters in 12 GiB: seconds for one training step",
        ),
        Row(
            "2.4 billion parameters in 4 GiB: how much sooner Pseudo-to-Real has the same loss (one run)",
            "pseudo_to_real_giant",
            "time_to_loss_speedup",
            "{:.1f}x",
            readme="2.4 billion parameters in 4 GiB: how much sooner Pseudo-to-Real has the same loss (one run)",
        ),
        Row(
            "Kills (SIGKILL) of a streamed run",
            "faults",
            "kills",
            "{}",
            versus="lost",
            versus_label="runs lost",
            readme="Kills of a training run at random moments",
        ),
        Row(
            "Training speed over DeepSpeed ZeRO-3's, weights on the same disk",
            "versus_deepspeed",
            "speedup",
            "{:.1f}x",
            versus="memory_ratio",
            versus_label="of its peak memory",
            versus_form="{:.2f}",
            readme="Training speed over DeepSpeed ZeRO-3's, weights on the same disk",
        ),
    ],
    "Search and ranking": [
        Row(
            "Photos of clothes, unseen: category of the nearest, by the trained encoder",
            "clothing",
            "category_at_1",
            versus="plain_category_at_1",
            versus_label="pretrained features",
            readme="Photo search: share of nearest clothes in the right category",
        ),
        Row(
            "The same: precision at 5",
            "clothing",
            "precision_at_5",
            versus="plain_precision_at_5",
            versus_label="pretrained features",
        ),
        Row(
            "Garments pasted on clutter: IoU of the learned mask, no box in training", "clothing", "mask_iou"
        ),
        Row(
            "An unseen emoji finds the same thing in other styles, recall at 1",
            "cross_family",
            "r1",
            versus="plain_r1",
            versus_label="EfficientNet-Lite0 features",
        ),
        Row(
            "Search in 1 million items: speed over exact search",
            "search_scale",
            "speedup",
            "{:.1f}x",
            versus="recall10_of_exact",
            versus_label="of exact search's first 10 are found",
            versus_form="{:.2f}",
            readme="Search in 1 million items: speed over exact search",
        ),
        Row(
            "Unseen pictures and their names: mean recall, ranked by captions and R2D2's encoders",
            "r2d2",
            "rank_mean_recall",
            versus="prerank_mean_recall",
            versus_label="pre-ranking alone",
        ),
    ],
    "Decoding, the service, the planner": [
        Row(
            "Captions by a language model that saw only text, MAGIC with eight beams: CIDEr",
            "magic",
            "cider_magic",
            versus="cider_retrieval",
            versus_label="retrieval",
        ),
        Row("MAGIC as published, which retrieval beats here", "magic", "cider_magic_paper"),
        Row("MAGIC with eight beams: speed over gradient guidance", "magic", "speedup", "{:.0f}x"),
        Row("The service, 200 clients for a minute: answers with an error", "serve_load", "errors", "{}"),
        Row(
            "1,000 malformed uploads that were not answered with 4xx", "serve_load", "malformed_not_4xx", "{}"
        ),
        Row(
            "Captions for 16 clients: speed in batches over one by one",
            "serve_load",
            "batching_gain",
            "{:.1f}x",
        ),
        Row(
            "Step time, planned with a rehearsal: median error, as a share of the measured time",
            "plan_error",
            "median_error",
        ),
    ],
}
