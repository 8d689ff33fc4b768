"""Time of the whole network, in training and in sampling, against diffusers' SanaTransformer2DModel with equal weights.

    python benchmarks/network.py [--rounds 10] [--threads 1] [--compiled]

The sides take turns, and the least of their times counts; "times" is how often ours is done in the time of the side. A
training step is a forward and a backward pass with the loss between them, no optimizer. Sampling is Flow-DPM-Solver++
2M with guidance, from noise to latents; diffusers' side runs its own scheduler as `SanaPipeline` does. Every side's
velocity is first compared with diffusers' network in float64, and its latents with those of diffusers' side; one that
is off by more than bfloat16 allows ends the run.

On a GPU the network is the published 1.6B's 20 blocks of 2240 channels on 1024 tokens (1024 pixels) with bfloat16
weights; on the CPU the grown network of the embedded default under bfloat16 autocast, as it is trained there. torch's
compiled diffusers is a side on a GPU, and on the CPU with `--compiled`.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import DEVICE, command_line, start, timed_in_turns, write_result
from diffusers import SanaTransformer2DModel
from torch import Tensor

from model.network import NetworkConfig, Sana
from model.sampler import sample
from model.weights.export import scheduler, to_transformer

FLOW_SHIFT, GUIDANCE, SAMPLER = 3.0, 4.5, "flow_dpm-solver"
TOLERANCE = 5e-2  # of the norm, in bfloat16; solvers add up the errors of their steps


@dataclass(frozen=True)
class Size:
    """A network with its batches and steps."""

    config: NetworkConfig
    side: int  # of the latent
    text_tokens: int
    batch: int
    sampled: int
    steps: int


SIZES = {
    "cuda": Size(NetworkConfig(32, 2240, 20, 32, 20, 2.5, 1, 2304, True, "diffusers"), 32, 300, 4, 1, 20),
    "cpu": Size(NetworkConfig(32, 256, 8, 32, 4, 2.5, 1, 128, True, "diffusers"), 4, 12, 64, 64, 8),
}


@dataclass(frozen=True)
class Problem:
    """Equal networks and their inputs: B training samples, of which the first are sampled from."""

    size: Size
    ours: Sana
    theirs: SanaTransformer2DModel
    latents_BCHW: Tensor
    timesteps_B: Tensor
    text_BTE: Tensor
    mask_BT: Tensor


def make_problem(size: Size) -> Problem:
    """Random weights and inputs; texts fill their tokens but for the last of every second one."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    ours = Sana(size.config).to(DEVICE, dtype)
    with torch.no_grad():  # new networks end in zeros, behind which nothing would show
        for name, parameter in ours.named_parameters():
            if not parameter.any() and name.endswith("weight"):
                parameter.normal_(std=0.02)
    shape = (size.batch, size.config.in_channels, size.side, size.side)
    mask = torch.ones(size.batch, size.text_tokens, dtype=torch.bool, device=DEVICE)
    mask[::2, -1] = False
    return Problem(
        size,
        ours.train(),
        to_transformer(ours, size.side).train(),
        torch.randn(shape, device=DEVICE, dtype=dtype),
        1000 * torch.rand(size.batch, device=DEVICE),
        torch.randn(size.batch, size.text_tokens, size.config.caption_channels, device=DEVICE, dtype=dtype),
        mask,
    )


def autocast() -> contextlib.AbstractContextManager[Any]:
    """bfloat16 on the CPU; on a GPU weights are bfloat16 themselves."""
    return torch.autocast("cpu", torch.bfloat16) if DEVICE == "cpu" else contextlib.nullcontext()


def our_velocity(problem: Problem, network: Callable[..., Tensor]) -> Tensor:
    """The network's output for the training batch."""
    with autocast():
        text = problem.ours.encode_text(problem.text_BTE, problem.mask_BT)
        return network(problem.latents_BCHW, problem.timesteps_B, text)


def their_velocity(problem: Problem, network: Callable[..., Any]) -> Tensor:
    """diffusers' output for it."""
    with autocast():
        return network(
            problem.latents_BCHW,
            encoder_hidden_states=problem.text_BTE,
            timestep=problem.timesteps_B.to(problem.latents_BCHW.dtype),
            encoder_attention_mask=problem.mask_BT.to(problem.latents_BCHW.dtype),
        ).sample


def training_step(velocity: Callable[[], Tensor], network: torch.nn.Module) -> Callable[[], None]:
    """Forward, loss and backward."""

    def step() -> None:
        velocity().float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    return step


@torch.no_grad()
def our_latents(problem: Problem) -> Tensor:
    """Our sampler's latents; the empty caption is a row of zeros."""
    count = problem.size.sampled
    ours = problem.ours
    with autocast():
        text = ours.encode_text(problem.text_BTE[:count], problem.mask_BT[:count])
        null = ours.encode_text(torch.zeros_like(problem.text_BTE[:count, :1]), problem.mask_BT[:count, :1])
        return sample(
            ours,
            problem.latents_BCHW[:count],
            text,
            null,
            sampler=SAMPLER,
            steps=problem.size.steps,
            guidance=GUIDANCE,
            flow_shift=FLOW_SHIFT,
        )


@torch.no_grad()
def their_latents(problem: Problem, network: Callable[..., Any]) -> Tensor:
    """diffusers' latents, as `SanaPipeline` steps: both branches in one batch, the empty caption first."""
    count, texts = problem.size.sampled, problem.text_BTE
    null = torch.zeros_like(texts[:count])
    null_mask = torch.zeros_like(problem.mask_BT[:count])
    null_mask[:, 0] = True
    both, mask = torch.cat([null, texts[:count]]), torch.cat([null_mask, problem.mask_BT[:count]])
    solver = scheduler(SAMPLER, FLOW_SHIFT)
    solver.set_timesteps(problem.size.steps, device=DEVICE)
    x = problem.latents_BCHW[:count].float()
    for timestep in solver.timesteps:
        twice = torch.cat([x, x]).to(texts.dtype)
        with autocast():
            velocity = network(
                twice,
                encoder_hidden_states=both,
                timestep=timestep.expand(len(twice)).to(texts.dtype),
                encoder_attention_mask=mask.to(texts.dtype),
            ).sample.float()
        empty, full = velocity.chunk(2)
        x = solver.step(empty + GUIDANCE * (full - empty), timestep, x, return_dict=False)[0]
    return x


def error_of(found: Tensor, exact: Tensor) -> float:
    """Relative L2 distance."""
    return ((found.double() - exact).norm() / exact.norm()).item()


def measure(problem: Problem, rounds: int, compiled: bool) -> list[dict[str, Any]]:
    """A row for each side and task. Raises ValueError if a side's output is off: then no speed is given."""
    ours, theirs = problem.ours, problem.theirs
    sides = {"ours": ours, "diffusers": theirs}
    if compiled:
        sides |= {"diffusers, compiled": torch.compile(theirs, dynamic=False)}
    velocities = {
        name: (lambda side=side, of=our_velocity if name == "ours" else their_velocity: of(problem, side))
        for name, side in sides.items()
    }
    latents = {
        name: ((lambda: our_latents(problem)) if name == "ours" else lambda side=side: their_latents(problem, side))
        for name, side in sides.items()
    }
    steps = {name: training_step(run, ours if name == "ours" else theirs) for name, run in velocities.items()}
    rows = []
    with torch.no_grad():
        exact = {"training step": exact_velocity(problem), "sampling": their_latents(problem, theirs).double()}
    for task, outputs, timed in (("training step", velocities, steps), ("sampling", latents, latents)):
        errors = {name: error_of(run().detach(), exact[task]) for name, run in outputs.items()}
        if off := {name: error for name, error in errors.items() if not error <= TOLERANCE}:
            raise ValueError(f"{task}: off by {off}: no speed is given")
        seconds = timed_in_turns(timed, rounds)
        rows += [
            {"task": task, "side": name, "ms": 1e3 * own, "times": own / seconds["ours"], "error": errors[name]}
            for name, own in seconds.items()
        ]
    return rows


def exact_velocity(problem: Problem) -> Tensor:
    """diffusers' output in float64."""
    wide = SanaTransformer2DModel(**problem.theirs.config).to(DEVICE).double()
    wide.load_state_dict({name: tensor.double() for name, tensor in problem.theirs.state_dict().items()})
    return wide(
        problem.latents_BCHW.double(),
        encoder_hidden_states=problem.text_BTE.double(),
        timestep=problem.timesteps_B.double(),
        encoder_attention_mask=problem.mask_BT.double(),
    ).sample


def main() -> None:
    """Print the table and keep the rows."""
    parser = command_line(__doc__, rounds=10)
    parser.add_argument("--compiled", action="store_true", default=DEVICE == "cuda", help="torch.compile's side too")
    arguments = start(parser)
    rows = measure(make_problem(SIZES[DEVICE]), arguments.rounds, arguments.compiled)
    print("\n| task | side | ms | times | error |\n|---|---|---|---|---|")
    for row in rows:
        print("| {task} | {side} | {ms:.2f} | {times:.2f} | {error:.0e} |".format(**row))
    print(f"\n{write_result('network', rows)}")


if __name__ == "__main__":
    main()
