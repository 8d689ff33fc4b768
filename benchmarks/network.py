"""Time of the whole network, in training and in sampling, against diffusers' SanaTransformer2DModel with equal weights.

    python benchmarks/network.py [--rounds 10] [--threads 1] [--pixels 512 1024] [--compiled]

The sides take turns, and the least of their times counts; "times" is how often ours is done in the time of the side. A
training step is a forward and a backward pass with the loss between them, no optimizer. Sampling is Flow-DPM-Solver++
2M with guidance, from noise to latents; diffusers' side runs its own scheduler as `SanaPipeline` does. Every side's
velocity is first compared with an exact one, and its latents with those of diffusers' side; one that is off by more
than bfloat16 allows has no time. Exact is diffusers' network in float64, or our plain PyTorch in float64 where
diffusers is not installed.

On a GPU the network is the published 1.6B's 20 blocks of 2240 channels on 256 tokens (512 pixels) and on 1024 (1024
pixels), with bfloat16 weights; on the CPU the grown network of the embedded default under bfloat16 autocast, as it is
trained there. With `--compiled` the side is diffusers with its blocks under torch.compile, in place of eager
diffusers.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from common import (
    DEVICE,
    FAILED_WHILE_TIMED,
    Results,
    command_line,
    distance,
    peer,
    reason_of,
    start,
    timed_in_turns,
)
from torch import Tensor

from kernels.kernel_choice import choose_kernels, chosen_kernels
from model.network import NetworkConfig, Sana
from model.sampler import sample

if TYPE_CHECKING:
    from diffusers import SanaTransformer2DModel

FLOW_SHIFT, GUIDANCE, SAMPLER = 3.0, 4.5, "flow_dpm-solver"
TOLERANCE = 5e-2  # of the norm, in bfloat16; solvers add up the errors of their steps
OURS = "ours"


@dataclass(frozen=True)
class Size:
    """A network with its batches and steps."""

    config: NetworkConfig
    pixels: int  # of a picture's side
    side: int  # of its latent
    text_tokens: int
    batch: int
    sampled: int
    steps: int


PUBLISHED = NetworkConfig(32, 2240, 20, 32, 20, 2.5, 1, 2304, True, "diffusers")
SIZES = {
    "cuda": [Size(PUBLISHED, 512, 16, 300, 16, 4, 20), Size(PUBLISHED, 1024, 32, 300, 4, 1, 20)],
    "cpu": [Size(NetworkConfig(32, 256, 8, 32, 4, 2.5, 1, 128, True, "diffusers"), 32, 4, 12, 64, 64, 8)],
    "tiny": [Size(NetworkConfig(4, 32, 1, 16, 2, 2.5, 1, 16, True, "diffusers"), 32, 3, 5, 2, 1, 2)],
}


@dataclass(frozen=True)
class Problem:
    """Equal networks and their inputs: B training samples, of which the first are sampled from."""

    size: Size
    ours: Sana
    theirs: "SanaTransformer2DModel | None"
    latents_BCHW: Tensor
    timesteps_B: Tensor
    text_BTE: Tensor
    mask_BT: Tensor


def make_problem(size: Size) -> Problem:
    """Random weights and inputs; texts fill their tokens but for the last of every second one."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    with torch.device(DEVICE):  # drawing 1.6 billion numbers on the CPU would take longer than all that is timed
        ours = Sana(size.config).to(dtype)
    with torch.no_grad():  # new networks end in zeros, behind which nothing would show
        for name, parameter in ours.named_parameters():
            if not parameter.any() and name.endswith("weight"):
                parameter.normal_(std=0.02)
    shape = (size.batch, size.config.in_channels, size.side, size.side)
    mask = torch.ones(size.batch, size.text_tokens, dtype=torch.bool, device=DEVICE)
    mask[::2, -1] = False
    theirs = None
    if peer("diffusers") is not None:
        from model.weights.diffusers_pipeline import to_transformer

        theirs = to_transformer(ours, size.side).train()
    return Problem(
        size,
        ours.train(),
        theirs,
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
            timestep=problem.timesteps_B,
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
    from model.weights.diffusers_pipeline import scheduler

    solver = scheduler(SAMPLER, FLOW_SHIFT)
    solver.set_timesteps(problem.size.steps, device=DEVICE)
    x = problem.latents_BCHW[:count].float()
    for timestep in solver.timesteps:
        twice = torch.cat([x, x]).to(texts.dtype)
        with autocast():
            velocity = network(
                twice,
                encoder_hidden_states=both,
                timestep=timestep.expand(len(twice)),
                encoder_attention_mask=mask.to(texts.dtype),
            ).sample.float()
        empty, full = velocity.chunk(2)
        x = solver.step(empty + GUIDANCE * (full - empty), timestep, x, return_dict=False)[0]
    return x


def make_sides(problem: Problem, with_compiled: bool, tiny: bool) -> dict[str, torch.nn.Module]:
    """The networks that are compared; ours alone where diffusers is not installed.

    Compiled are diffusers' blocks, as its own `compile_repeated_blocks` does: all share one code, which is made once.
    """
    sides: dict[str, torch.nn.Module] = {OURS: problem.ours}
    if problem.theirs is None:
        return sides
    if not with_compiled:
        return sides | {"diffusers": problem.theirs}
    for block in problem.theirs.transformer_blocks:
        block.compile(dynamic=False, backend="aot_eager" if tiny else "inductor")
    return sides | {"diffusers, compiled": problem.theirs}


def measure(problem: Problem, rounds: int, with_compiled: bool, tiny: bool, keep: Callable[..., None]) -> None:
    """Give `keep` a row for each side and task as soon as the task is measured; a side that is off has no time."""
    exact = exact_velocity(problem)
    exact_latents = None if problem.theirs is None else their_latents(problem, problem.theirs).double()
    sides = make_sides(problem, with_compiled, tiny)
    velocities = {
        name: (lambda side=side, of=our_velocity if name == OURS else their_velocity: of(problem, side))
        for name, side in sides.items()
    }
    latents = {
        name: ((lambda: our_latents(problem)) if name == OURS else lambda side=side: their_latents(problem, side))
        for name, side in sides.items()
    }
    steps = {name: training_step(run, sides[name]) for name, run in velocities.items()}
    about = {"pixels": problem.size.pixels, "dtype": "bfloat16", "compiled": with_compiled}
    if problem.theirs is None:
        keep(about | {"side": "diffusers", "problem": "diffusers is not installed"})
    keep(*(about | row for row in compare("training step", velocities, steps, exact, rounds)))
    keep(*(about | row for row in compare("sampling", latents, latents, exact_latents, rounds)))


def compare(
    task: str,
    outputs: dict[str, Callable[[], Tensor]],
    timed: dict[str, Callable[[], object]],
    exact: Tensor | None,
    rounds: int,
) -> list[dict[str, Any]]:
    """A row for each side of a task: how far its output is from `exact`, if that is known, and its time."""
    errors: dict[str, float] = {}
    problems: dict[str, str] = {}
    for name, run in outputs.items():
        try:
            found = run().detach()
        except Exception as error:
            problems[name] = reason_of(error)
            continue
        if exact is not None:
            errors[name] = distance([found], [exact])
            if not errors[name] <= TOLERANCE:
                problems[name] = f"off by {errors[name]:.1e} of the norm: no speed is given"
    seconds = timed_in_turns({name: run for name, run in timed.items() if name not in problems}, rounds)
    rows = []
    for name in outputs:
        row = {"task": task, "side": name, "error": errors.get(name), "problem": problems.get(name)}
        own, ours = seconds.get(name), seconds.get(OURS)
        if own is None and name not in problems:
            row["problem"] = FAILED_WHILE_TIMED
        rows.append(row | {"ms": own and 1e3 * own, "times": own and ours and own / ours})
    return rows


@torch.no_grad()
def exact_velocity(problem: Problem) -> Tensor:
    """The output in float64: diffusers', or by our plain PyTorch where diffusers is not installed."""
    latents, text = problem.latents_BCHW.double(), problem.text_BTE.double()
    if problem.theirs is None:
        before = chosen_kernels()
        choose_kernels("reference")
        with torch.device("meta"):
            wide = Sana(problem.size.config)
        weights = {name: tensor.double() for name, tensor in problem.ours.state_dict().items()}
        wide.load_state_dict(weights, assign=True)
        found = wide(latents, problem.timesteps_B.double(), wide.encode_text(text, problem.mask_BT))
        choose_kernels(before)
        return found
    with torch.device("meta"):
        wide = type(problem.theirs)(**problem.theirs.config)
    wide.load_state_dict({name: tensor.double() for name, tensor in problem.theirs.state_dict().items()}, assign=True)
    return wide(
        latents,
        encoder_hidden_states=text,
        timestep=problem.timesteps_B.double(),
        encoder_attention_mask=problem.mask_BT.double(),
    ).sample


def line_of(row: dict[str, Any]) -> str:
    """A row of the printed table."""
    start = f"| {row['pixels']} | {row.get('task', '')} | {row['side']} |"
    if row["problem"]:
        return f"{start} {row['problem']} | | |"
    error = "" if row["error"] is None else f"{row['error']:.0e}"
    times = "" if row["times"] is None else f"{row['times']:.2f}"
    return f"{start} {row['ms']:.2f} | {times} | {error} |"


def main() -> None:
    """Print the table and keep the rows."""
    parser = command_line(__doc__, rounds=10)
    parser.add_argument("--compiled", action="store_true", help="torch.compile's side too")
    parser.add_argument("--pixels", nargs="+", type=int, help="sides of pictures (default: all that there are)")
    arguments = start(parser)
    name = "network_compiled" if arguments.compiled else "network"
    results = Results(name, arguments.out)
    print("\n| pixels | task | side | ms | times | error |\n|---|---|---|---|---|---|")

    def keep(*rows: dict[str, Any]) -> None:
        results.add(*rows)
        print(*map(line_of, rows), sep="\n", flush=True)

    for size in SIZES[arguments.size]:
        if arguments.pixels is None or size.pixels in arguments.pixels:
            measure(make_problem(size), arguments.rounds, arguments.compiled, arguments.tiny, keep)
    print(f"\n{results.path}")


if __name__ == "__main__":
    main()
