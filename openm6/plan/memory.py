"""The memory of a step, in closed form over the traced pieces, for the largest micro-batch that was drawn.

A streamed run measures its memory (`rehearse`) with the real batches on the real machine. A plan has neither. Its
terms are those of the streamed step, one by one, plus the engine's own margins.
"""

from __future__ import annotations

from openm6.giant.streaming.build import memory_beside
from openm6.giant.streaming.expert_step import bytes_of_waiting_rows
from openm6.giant.streaming.rehearse import MARGIN, SLACK
from openm6.plan.job import Job, Parts
from openm6.plan.tally import Piece
from openm6.plan.workload import Pieces

# Of what a step makes and lets go, what the C library keeps between blocks in use, at most as measured. Experts'
# tensors have other sizes at every step. A streamed run gives holes back before it passes its budget, not sooner.
HOLES = {"dense": 0.15, "mixture": 0.65, "streamed": 0.45}


def streamed_bytes(job: Job, parts: Parts, pieces: Pieces) -> int:
    """Bytes of a streamed step beside stored parts, buffers and the process itself. `HOLES` come on top.

    The frame is included, because it is always in memory.
    """
    step = _Step(job, parts, pieces)
    peak = step.kept + step.states + step.computing
    return round((1 + MARGIN) * peak + 0.25 * step.computing) + SLACK + parts.frame_layout.nbytes


def device_bytes(job: Job, parts: Parts, pieces: Pieces) -> int:
    """Bytes of a device that a streamed step takes beside the weights of parts: the frame's weights, the hidden
    states of all micro-batches and their gradients, and whatever computes."""
    step = _Step(job, parts, pieces)
    peak = 2 * step.states + step.computing + (step.kept if job.activations == "device" else 0)
    return round((1 + MARGIN) * peak) + parts.frame_layout.section_bytes("weights")


def host_bytes(job: Job, parts: Parts, pieces: Pieces) -> int:
    """Bytes of host memory that a streamed step on a device takes beside stored parts, buffers and the process:
    the frame, the layers' inputs, and gradients of two parts (one is updated, one waits) with their update."""
    step = _Step(job, parts, pieces)
    largest = max(layout.section_bytes("weights") for layout in parts.layouts.values())
    kept = step.kept if job.activations == "host" else step.states
    beside = memory_beside(parts.frame, parts.slots, parts.settings)
    return round((1 + MARGIN) * kept) + 4 * largest + beside + SLACK + parts.frame_layout.nbytes


class _Step:
    """Terms of a streamed step, in bytes: the layers' inputs that are `kept`, the hidden `states` that a pass has
    reached, and what is `computing`."""

    def __init__(self, job: Job, parts: Parts, pieces: Pieces) -> None:
        job = job.with_work(job.largest_work)
        count = job.micro_batches_in(parts.stage)
        inputs = 4.0 * job.work.positions * job.model.width  # a layer's, of one micro-batch
        self.kept = (2 if job.activations == "disk" else job.model.layers + 1) * inputs * count
        self.states = inputs * count
        self.computing = _computing(job, parts, pieces, inputs)


def _computing(job: Job, parts: Parts, pieces: Pieces, inputs: float) -> float:
    """Bytes of a layer with its gradients, or of what comes behind the layers, whichever is more."""
    work, count = job.work, job.micro_batches_in(parts.stage)
    layer = pieces.layer(work.rows, work.row)
    biggest = max(parts.body_weights, parts.expert_weights)
    within = _alone(layer) + _gradients(job, biggest, shared=parts.shared)
    if job.model.experts is not None:
        expert = pieces.expert(_tokens(job, parts, pieces))
        # Between body and experts every micro-batch waits: residual, inputs, their gradients, sums, routing.
        routed = count * (5.0 * inputs + pieces.router(work.positions).saved)
        held = parts.experts_here if parts.shared else 1
        together = _gradients(job, parts.body_weights + held * parts.expert_weights, shared=parts.shared)
        within = routed + max(_alone(layer), _alone(expert)) + together
        within += bytes_of_waiting_rows(parts.slots[0], parts.settings.compute_dtype)
    frame = 4.0 * parts.frame_weights * (1 + (count > 1))  # gradients, and those that come on top
    outside = max(_alone(pieces.head(work)), _alone(pieces.entrance(work))) + frame
    return max(within, outside)


def in_memory_bytes(job: Job, parts: Parts, pieces: Pieces) -> int:
    """Bytes of a step in memory beside the process: weights, gradients, optimizer, all activations."""
    job = job.with_work(job.largest_work)
    work, model = job.work, job.model
    moments = {"adamw": 2, "adamw8bit": 1, "muon": 2, "adafactor": 1}[job.optimizer]
    weights = parts.total if job.device_share == 1 else parts.frame_weights + _here(parts)
    states = 4.0 * weights * (2 + moments)
    layer = pieces.layer(work.rows, work.row)
    saved, extra = layer.saved, layer.extra
    if model.experts is not None:
        expert = pieces.expert(_tokens(job, parts, pieces))
        saved += parts.experts_here * expert.saved + 4.0 * 4 * work.positions * model.width
        extra += parts.experts_here * expert.extra
    casts = 0.0
    if job.bf16:
        # Casts of matrices wait for the backward pass: a slot's once, experts' at each layer that runs them.
        casts = 2.0 * (len(parts.slots) * parts.body_weights + parts.frame_weights)
        casts += 2.0 * model.layers * parts.experts_here * parts.expert_weights
    # A slot's gradients in the type of the products, before they are cast or summed.
    largest = 6.0 * (parts.body_weights + parts.experts_here * parts.expert_weights)
    head, entrance = pieces.head(work), pieces.entrance(work)
    activations = model.layers * saved + head.saved + entrance.saved + casts
    transient = max(extra + largest, head.extra, entrance.extra)
    # An optimizer works tensor by tensor, with some tensors of scratch of the largest one's size.
    scratch = 4.0 * 4 * max(parts.expert_weights * parts.experts_here, model.vocab * model.width)
    holes = HOLES["dense" if model.experts is None else "mixture"]
    return round(states + (1 + holes) * max(activations + transient, scratch)) + SLACK


def _here(parts: Parts) -> int:
    """Parameters of the slots that are on one device."""
    return sum(layout.numel for layout in parts.layouts.values())


def _alone(piece: Piece) -> float:
    return piece.saved + piece.extra


def _gradients(job: Job, weights: float, *, shared: bool) -> float:
    """Bytes of the parts that compute: casts of their weights, incoming gradients, and their sums."""
    cast = (2.0 if job.bf16 else 4.0) * (job.bf16 != (job.weights == "bf16"))
    comes = 2.0 if job.bf16 else 4.0
    sums = 8.0 if shared else 4.0
    return weights * (cast + comes + sums)


def _tokens(job: Job, parts: Parts, pieces: Pieces) -> float:
    """Tokens of one micro-batch that an expert on this device computes."""
    return pieces.tokens_per_expert(job.work.positions * job.device_share)[1] / parts.replicas
