"""Says what each stage of an experiment will cost: parameters, memory of each GPU, FLOPs, GPU-hours and disk.

    python -m tasks.plan                       # for params.yaml
    python -m tasks.plan --profile paper --gpus 64 --parallelism hybrid_shard
    python -m tasks.plan --profile paper --utilisation 0.5 --gpu-tflops 989 --json plan.json

It needs no weights, no pictures and no GPU, and changes nothing. Pictures of your own are counted if their folder is
there. The notes below the table say what it assumes.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_type_hints

from tasks.params.compute_params import Compute
from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, apply_profile, build_params, read_yaml
from tasks.planning.cost_plan import Settings, make_plan
from tasks.planning.plan_table import print_plan
from tasks.runtime.command_line import bad_input_exits, command_parser
from tasks.system.errors import UserError
from tasks.system.files import write_json


def arguments() -> ArgumentParser:
    """The parser of the command line."""
    default = Settings()
    options = command_parser("plan", __doc__)
    options.add_argument("--profile", help="a file of profiles/, such as paper (default: params.yaml as it is)")
    options.add_argument(
        "--gpus", type=int, default=default.gpus, help="GPUs that share each batch (default: as section compute says)"
    )
    options.add_argument(
        "--parallelism",
        choices=get_args(get_type_hints(Compute)["parallelism"]),
        help="how these GPUs share a training (default: compute.parallelism); hybrid_shard takes nodes of 8 GPUs where "
        "params ask for one process",
    )
    options.add_argument(
        "--utilisation",
        type=float,
        default=default.utilisation,
        help="share of the peak rate that is reached (default: 0.4)",
    )
    options.add_argument(
        "--gpu-tflops",
        type=float,
        default=default.teraflops,
        help="peak rate of a GPU (default: 312, an A100 in bfloat16)",
    )
    options.add_argument(
        "--samples",
        type=int,
        help="how many pictures of your own there are (default: as many as the folder or SANA's list of shards has, "
        "else the paper's 50 million)",
    )
    options.add_argument(
        "--caption-tokens", type=int, help="mean tokens of your own captions (default: half of text_encoder.max_tokens)"
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="also write every number, in bytes and FLOPs")
    return options


def profile_params(profile: str | None) -> Params:
    """The params of params.yaml, with a profile over it if one is named. Raises UserError naming the file and key."""
    values = read_yaml(PARAMS_FILE)
    if profile is None:
        return build_params(values, str(PARAMS_FILE))
    return build_params(apply_profile(values, profile), f"profiles/{profile}.yaml")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. The exit status is 0 if all is done, and 2 for bad input."""
    options = arguments().parse_args(argv)
    settings = Settings(
        options.gpus,
        options.utilisation,
        options.gpu_tflops,
        options.samples,
        options.caption_tokens,
        options.parallelism,
    )
    with bad_input_exits("plan"):
        if options.json is not None and options.json.is_dir():
            raise UserError(f"--json {options.json} is a folder: name a file")
        name = "params.yaml" if options.profile is None else f"profile {options.profile}"
        plan = make_plan(profile_params(options.profile), settings, name)
        print_plan(plan)
        if options.json is not None:
            write_json(options.json, plan.record())


if __name__ == "__main__":
    main(sys.argv[1:])
