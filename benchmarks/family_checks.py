"""Checks one model: streamed from its folder, with all layers on disk, it computes the same as in memory.

train      AdamW, a step on two padded micro-batches, a step on one: losses and weights equal a loop in memory
save       `transformers` opens the trained model with equal weights, and none missing or left over
logits     the logits of eight greedy tokens with the cache, for a padded batch, equal those of the model in memory
generate   the tokens themselves are equal

Each outcome is "ok" (fp32, equal bit for bit), "rounding: ..." (equal within `ROUNDING`: sums in another order),
"difference: ..." (the largest), "refused: ..." (a ValueError of OpenM6), "error: ..." (any other exception, with
its place), "timeout", or "-" if the model in memory cannot do it either.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.tiny_batches import BATCHES, Batch
from benchmarks.tiny_models import VOCAB, tiny_config

STAGES = ("train", "save", "logits", "generate")
BUDGET = "6GiB"
# Steps that are as long as the gradient, nearly: by Adam's usual rule a gradient of 1e-9 moves a weight as far as
# one of 1, so rounding would look like a wrong gradient.
LR, EPS = 1.0, 1.0
ROUNDING = 2e-6


@dataclass(frozen=True)
class Case:
    """A model to check: how it is called in the table, its family, its class, and options of its configuration."""

    name: str
    family: str
    kind: str = "AutoModelForCausalLM"  # of transformers; an Auto class or a model's own
    options: dict[str, Any] = field(default_factory=dict)
    layers: str | None = None  # the stack to stream, if there are several
    batch: str = "text"  # of `tiny_batches.BATCHES`


# -------------------- models


def random_folder(folder: Path, case: Case) -> None:
    """A checkpoint of random weights; what is 0 or 1 at first (biases, norms) is moved, lest nobody miss it.

    Raises ValueError if `transformers` itself does not load what it saved.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    config = tiny_config(case.family, case.options)
    kind: Any = getattr(transformers, case.kind)
    if case.kind == "AutoModelForCausalLM":
        if hasattr(config, "is_decoder"):
            config.is_decoder = True
        model = kind.from_config(config, dtype=torch.float32)
    else:
        model = kind._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for tensor in {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}.values():
            if tensor.is_floating_point():
                tensor.add_(0.02 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    outcome = difference(dict(load(folder, case)[0].named_parameters()), dict(model.named_parameters()))
    if outcome != "ok":
        raise ValueError(f"transformers does not load what it saved: {outcome}")


def load(folder: Path, case: Case) -> tuple[Any, dict[str, Any]]:
    """The model in memory, and what `transformers` says of its loading."""
    import torch
    import transformers

    model, info = getattr(transformers, case.kind).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    # A file's tensors lie at odd addresses, where products may round in another way.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return model, info


def open_giant(case: Case, folder: Path, tiers: Path, optimizer: Any) -> tuple[Any, str | None]:
    """A giant with every layer on disk; and the name of its layers, if it had to be given."""
    from openm6.giant import Tiers, stream

    def opened(layers: str | None) -> Any:
        return stream(
            folder,
            budget=BUDGET,
            disk=tiers,
            optimizer=optimizer,
            lr=LR,
            layers=layers,
            tiers=Tiers(
                placement={"slot-*": {"weights": "disk", **({"state": "disk"} if optimizer else {})}}
            ),
        )

    try:
        return opened(case.layers), case.layers
    except ValueError as error:
        if "layers=" not in str(error) or case.layers:
            raise
        layers = longest_list(folder, case)
        return opened(layers), layers


def longest_list(folder: Path, case: Case) -> str:
    """The path of the ModuleList with the most weights."""
    from torch import nn

    lists = {path: m for path, m in load(folder, case)[0].named_modules() if isinstance(m, nn.ModuleList)}
    return max(lists, key=lambda path: sum(p.numel() for p in lists[path].parameters()))


def weights_of(giant: Any) -> dict[str, Any]:
    """Every parameter by its name in the model."""
    from openm6.giant.tiers.store import Access

    found = {name: parameter.detach().clone() for name, parameter in giant.frame.parameters.items()}
    for slot in giant.slots:
        with giant.store.use(Access(slot.name, ("weights",))) as views:
            for layer in slot.layers:
                path = giant.frame.paths[layer]
                found |= {f"{path}.{name}": weight.clone() for name, weight in views["weights"].items()}
    return found


# -------------------- checks


def train_in_memory(model: Any, steps: list[list[Batch]]) -> list[float]:
    """The loop that streaming documents: the mean over micro-batches, AdamW without clipping, decay on matrices."""
    import torch

    model.train()
    model.config.use_cache = False
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, eps=EPS, fused=True)
    losses = []
    for micro_batches in steps:
        optimizer.zero_grad()
        total = 0.0
        for batch in micro_batches:
            loss = model(**batch).loss
            (loss / len(micro_batches)).backward()
            total += loss.item()
        optimizer.step()
        losses.append(total / len(micro_batches))
    return losses


def check_training(case: Case, folder: Path) -> Iterator[tuple[str, str]]:
    """Yields what is known, as soon as it is."""
    import torch

    from openm6.giant import AdamW

    model, _ = load(folder / "model", case)
    steps = BATCHES[case.batch]()
    try:
        want_losses = train_in_memory(model, steps)
    except Exception as error:
        yield "train", "-"
        yield "save", "-"
        yield "note", f"in memory: {place(error)}"
        return
    giant, layers = open_giant(case, folder / "model", folder / "tiers", AdamW(eps=EPS))
    if layers:
        yield "note", f"layers={layers!r}"
    losses = [giant.step(micro_batches).loss for micro_batches in steps]
    want = dict(model.named_parameters())
    weights = weights_of(giant)
    outcome = difference(weights, {name: parameter.detach() for name, parameter in want.items()})
    of_losses = difference({"losses": torch.tensor(losses)}, {"losses": torch.tensor(want_losses)})
    yield "train", outcome if of_losses == "ok" or outcome.startswith("difference") else of_losses
    giant.save(folder / "saved")
    giant.close()
    saved, info = load(folder / "saved", case)
    outcome = difference(dict(saved.named_parameters()), weights)
    if outcome == "ok":
        buffers = dict(model.named_buffers())
        kept = {name: tensor for name, tensor in model.state_dict().items() if name in buffers}
        outcome = difference(saved.state_dict(), kept)
    surplus = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    yield "save", f"difference: {surplus}"[:200] if surplus else outcome


def check_generating(case: Case, folder: Path) -> Iterator[tuple[str, str]]:
    import torch

    model = load(folder / "model", case)[0].eval()
    ids_BT = torch.randint(8, VOCAB, (2, 7), generator=torch.Generator().manual_seed(2))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, :3] = 0
    ids_BT[mask_BT == 0] = 0
    options = {
        "attention_mask": mask_BT,
        "min_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    try:
        want = model.generate(ids_BT, max_new_tokens=8, **options)
    except Exception as error:
        yield "logits", "-"
        yield "generate", "-"
        yield "note", f"in memory: {place(error)}"
        return
    giant, _ = open_giant(case, folder / "model", folder / "tiers-of-generating", None)
    got: Any = giant.generate(ids_BT, max_new_tokens=8, **options)
    giant.close()
    by_step = [{str(step): logits for step, logits in enumerate(each.logits)} for each in (got, want)]
    yield "logits", difference(*by_step)
    yield "generate", "ok" if torch.equal(got.sequences, want.sequences) else "difference: other tokens"


def check(case: Case, folder: Path, report: Callable[[dict[str, str]], None]) -> None:
    """All checks of one model; `report` is called with each outcome at once."""
    try:
        random_folder(folder / "model", case)
    except Exception as error:
        report({"untried": place(error)})
        return
    for checks, stages in ((check_training, ("train", "save")), (check_generating, ("logits", "generate"))):
        known: set[str] = set()
        try:
            for stage, outcome in checks(case, folder):
                known.add(stage)
                report({stage: outcome})
        except Exception as error:
            first, *others = [stage for stage in stages if stage not in known]
            report({first: outcome_of(error), **dict.fromkeys(others, "not reached")})


# -------------------- outcomes


def difference(got: Mapping[str, Any], want: Mapping[str, Any]) -> str:
    """ "ok", or how far tensors differ."""
    import torch

    if missing := sorted(want.keys() - got.keys()):
        return f"difference: {len(missing)} missing, such as {missing[0]}"
    unequal = [name for name in want if not torch.equal(got[name], want[name])]
    wrong = {name: (got[name] - want[name]).abs().max().item() for name in unequal}
    if not wrong:
        return "ok"
    worst = max(wrong, key=lambda name: wrong[name] if wrong[name] == wrong[name] else torch.inf)
    kind = "rounding" if wrong[worst] <= ROUNDING else "difference"
    return f"{kind}: {len(wrong)} of {len(want)} tensors, at most {wrong[worst]:.1e} in {worst}"


def place(error: BaseException) -> str:
    """An exception in a line: its type, message and innermost place, and OpenM6's if that is another."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if is_ours(frame.filename)]
    shown = dict.fromkeys(f"{Path(f.filename).name}:{f.lineno}" for f in [frames[-1], *ours[-1:]])
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]} ({', '.join(shown)})"


def outcome_of(error: Exception) -> str:
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, ValueError) and is_ours(innermost):
        return f"refused: {' '.join(str(error).split())[:400]}"
    return f"error: {place(error)}"


def is_ours(file: str) -> bool:
    import openm6

    return Path(file).is_relative_to(Path(openm6.__file__).parent)
