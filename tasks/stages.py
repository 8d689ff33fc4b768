"""The table of stages. Each stage of the experiment is one row here, and the function `run` of a module `tasks.<stem>`.

A row names what a stage reads, what it writes and which params its result depends on. All else that knows the stages
takes them from the rows: the flow's graph (`flows.building.stage_graph`), `dvc.yaml`
(`flows.building.dvc_yaml_text`), the command line of a stage (`tasks.runtime.stage_command`), the plan's table
(`tasks.planning.stage_costs`) and the report of times (`tasks.reporting.report_numbers`). `docs/extending.md` says how
to add a stage.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from tasks.params.experiment_params import Params
from tasks.params.judge_finetune_params import JudgeFinetune
from tasks.params.params_files import section_values
from tasks.params.training_params import Scratch, Sft
from tasks.system import paths
from tasks.system.errors import UserError

Argument = int | str

COMPUTE_SECTIONS = ("compute.seed", "compute.device", "compute.dtype", "compute.kernels")
RANK_SECTIONS = ("compute.nodes", "compute.processes_per_node", "compute.parallelism")
"""Training depends on the number of ranks, which orders its sums. Any number of ranks can resume a checkpoint."""
TRAINING_SECTIONS = (*COMPUTE_SECTIONS, "diffusion")
LOOP_SECTIONS = (*TRAINING_SECTIONS, "compute.compile", *RANK_SECTIONS)
"""What the stages that run the training loop depend on, beside a section of their own."""
DRAWING_SECTIONS = (*COMPUTE_SECTIONS, "shard.image_size", "diffusion.flow_shift", "sampling")
BRANCH_THREADS = "compute.branch_threads"
PLACEHOLDER = re.compile(r"(?<!\$)\{([\w.]+)\}")
"""`{item}` or a key of params in braces. DVC's own `${item}` is none."""
DETECTOR_MODELS = ("geneval.mask2former_path", "geneval.clip_path")


def keys_but(section: str, params: type, *left_out: str) -> tuple[str, ...]:
    """The keys of a section whose values are `params`, but for lists of items, which change none of the items."""
    return tuple(f"{section}.{field.name}" for field in fields(params) if field.name not in left_out)


@dataclass(frozen=True)
class Family:
    """A stage that exists once for each item of a list in params: `prune@6` and `prune@4` for `prune.depths` [6, 4].

    A stage that an experiment may do without is a family too, whose list is then empty: the flow and DVC make no stage
    of it. The list may be a mapping, whose keys are the items.

    `argument` names the item on the command line (`--depth 6`), where it has the type `kind`. `items` reads the list
    from params, and `source` is the key of the list. `dvc_group` makes `dvc.yaml` repeat the stage over the same list,
    and `dvc_item` is the item in DVC's templates. `suffix` keeps the names of two DVC groups of one stage apart.
    """

    argument: str
    kind: type[int] | type[str]
    items: Callable[[Params], Sequence[Argument]]
    source: str
    dvc_group: Mapping[str, object]
    dvc_item: str
    suffix: str = ""


def family_of(
    source: str, argument: str, kind: type[int] | type[str] = str, *, prefix: str = "", item: str = "item"
) -> Family:
    """The family over the list that the key `source` of params names, each item behind `prefix`.

    A mapping's items are its keys, which DVC's templates call `key` instead of `item`. DVC has one group for each list,
    so a family whose items have a prefix, or are keys, has a group of its own.
    """
    suffix = f"_{prefix.rstrip('-')}" if prefix else "_set" if item == "key" else ""

    def items(params: Params) -> Sequence[Argument]:
        listed = section_values(params, (source,))[source]
        return [f"{prefix}{one}" for one in listed] if prefix else list(listed)

    return Family(argument, kind, items, source, {"foreach": f"${{{source}}}"}, f"{prefix}${{{item}}}", suffix)


DEPTHS = family_of("prune.depths", "depth", int)
BASELINES = family_of("workflow.baselines", "model")
CUTS = Family(
    "model",
    str,
    lambda params: [f"{kind}-{depth}" for depth in params.prune.depths for kind in ("pruned", "finetuned")],
    "prune.depths",
    {"matrix": {"kind": ["pruned", "finetuned"], "depth": "${prune.depths}"}},
    "${item.kind}-${item.depth}",
    suffix="_cut",  # a group of DVC has one list, so the cut models need a second group
)
EXAMPLES = family_of("judge_finetune.pictures_of", "model")
WAYS = family_of("judge_finetune.ways", "way")
DATA_SETS = family_of("data.sets", "data", item="key")
SCRATCH = family_of("scratch.depths", "depth", int)
SCRATCH_MODELS = family_of("scratch.depths", "model", prefix="scratch-")
SFT = family_of("sft.models", "model")
SFT_MODELS = family_of("sft.models", "model", prefix="sft-")


@dataclass(frozen=True)
class Stage:
    """A row of the table, or the stage for one item of a family.

    `{item}` in a family's row stands for the item. A key of params in braces, such as `{train.data}`, stands for its
    value.

    `inputs` are folders. The stage reads every output that lies in one of them or is one of them, except those of the
    stems `unread`. `output` is the folder that it writes. A stage with `files` or `uncached_files` adds these files to
    `output`, where other files lie too; DVC keeps no copy of `uncached_files`. `sections` names the sections
    (`pretrain`) or keys (`compute.seed`) of params.yaml that the result depends on. `user_files` names the keys whose
    values are paths to the user's own files. A stage `on_ranks` computes on all processes that params ask for. A stage
    `alone` measures time, so no other runs beside it.
    """

    stem: str
    output: Path
    inputs: tuple[Path, ...]
    sections: tuple[str, ...]
    family: Family | None = None
    item: Argument | None = None
    user_files: tuple[str, ...] = ()
    on_ranks: bool = False
    alone: bool = False
    files: tuple[str, ...] = ()
    uncached_files: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`train`, or `finetune@6` for an item of a family."""
        return self.stem if self.item is None else f"{self.stem}@{self.item}"

    @property
    def module(self) -> str:
        """The module whose `run` computes the stage."""
        return f"tasks.{self.stem}"

    @property
    def command(self) -> str:
        """The command that runs the stage: `python -m tasks.finetune --depth 6`."""
        words = f"python -m {self.module}"
        return words if self.family is None else f"{words} --{self.family.argument} {self.item}"

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """The arguments of `run` after its context."""
        return () if self.item is None else (self.item,)

    @property
    def branch(self) -> bool:
        """Whether the stage runs beside others, on `compute.branch_threads` threads. All behind the small model do."""
        return BRANCH_THREADS in self.sections

    @property
    def written(self) -> tuple[Path, ...]:
        """The output folder, or the files that the stage adds to it."""
        files = (*self.uncached_files, *self.files)
        return tuple(self.output / name for name in files) if files else (self.output,)

    def threads(self, params: Params) -> int:
        """The number of CPU threads that it computes on. The result depends on it, since it orders the sums."""
        return params.compute.branch_threads if self.branch else params.compute.threads

    def reads(self, other: "Stage") -> bool:
        """Whether the stage reads the output of `other`, which then lies in or is one of its inputs (as for DVC)."""
        return other.stem not in self.unread and any(other.output.is_relative_to(path) for path in self.inputs)

    def waits_for(self, other: "Stage") -> bool:
        """Whether DVC and the flow run `other` first. That is so for every output in its inputs, also an unread one."""
        return any(other.output.is_relative_to(path) for path in self.inputs)

    def for_item(self, item: Argument) -> "Stage":
        """The stage for one item of this family."""
        return replace(self, item=item).filled(lambda name: str(item) if name == "item" else f"{{{name}}}")

    def for_params(self, params: Params) -> "Stage":
        """The stage with the values of these params in place of their keys."""
        return self.filled(lambda name: str(section_values(params, (name,))[name]))

    def filled(self, value: Callable[[str], str]) -> "Stage":
        """The stage with `value(name)` in place of each `{name}` in its paths and keys of params."""

        def text(template: str) -> str:
            return PLACEHOLDER.sub(lambda found: value(found[1]), template)

        return replace(
            self,
            output=Path(text(str(self.output))),
            inputs=tuple(Path(text(str(path))) for path in self.inputs),
            sections=tuple(map(text, self.sections)),
            user_files=tuple(map(text, self.user_files)),
        )


EVALUATE = Stage(
    "evaluate",
    output=paths.EVALUATION / "{item}",
    inputs=(paths.OUTPUTS / "{item}", paths.AUTOENCODER, paths.TEXT_ENCODER, paths.SCORER, paths.JUDGE),
    sections=(*DRAWING_SECTIONS, BRANCH_THREADS, "shard.source", "evaluation", "geneval.detector", *DETECTOR_MODELS),
    family=BASELINES,
    user_files=(
        "evaluation.features_path",
        "evaluation.inception_path",
        "evaluation.dpg_questions",
        *DETECTOR_MODELS,
    ),
    on_ranks=True,
)

LATENCY = Stage(
    "latency",
    output=paths.LATENCY,
    inputs=(paths.SMALL, paths.AUTOENCODER, paths.TEXT_ENCODER),
    sections=(*DRAWING_SECTIONS, "compute.threads", "pretrain.depth", "grow.depth", "prune.depths"),
    alone=True,
)

TABLE = (
    Stage("shard", output=paths.SHARDS, inputs=(), sections=("compute.seed", "shard"), user_files=("shard.path",)),
    Stage(
        "shard",
        output=paths.shards("{item}"),
        inputs=(),
        sections=("compute.seed", "shard", "data.sets.{item}"),
        family=DATA_SETS,
        user_files=("shard.path", "data.sets.{item}.path"),
    ),
    Stage(
        "autoencoder",
        output=paths.AUTOENCODER,
        inputs=(paths.SHARDS,),
        sections=(*COMPUTE_SECTIONS, "compute.threads", "autoencoder"),
        user_files=("autoencoder.path",),
    ),
    Stage(
        "text_encoder",
        output=paths.TEXT_ENCODER,
        inputs=(paths.SHARDS,),
        sections=(*COMPUTE_SECTIONS, "compute.threads", "network.numerics", "text_encoder"),
        user_files=("text_encoder.path",),
    ),
    Stage(
        "encode",
        output=paths.ENCODED,
        inputs=(paths.SHARDS, paths.AUTOENCODER, paths.TEXT_ENCODER),
        sections=("compute.device", "compute.threads", "encode"),
    ),
    Stage(
        "encode",
        output=paths.encoded("{item}"),
        inputs=(paths.shards("{item}"), paths.AUTOENCODER, paths.TEXT_ENCODER),
        sections=("compute.device", "compute.threads", "encode"),
        family=DATA_SETS,
    ),
    Stage(
        "pretrain",
        output=paths.SMALL,
        inputs=(paths.OUTPUTS / "{pretrain.data}",),
        sections=(*LOOP_SECTIONS, "compute.threads", "network", "pretrain"),
        user_files=("pretrain.path",),
        on_ranks=True,
    ),
    Stage(
        "scorer",
        output=paths.SCORER,
        inputs=(paths.SHARDS, paths.AUTOENCODER, paths.TEXT_ENCODER),
        sections=(
            *COMPUTE_SECTIONS,
            "compute.threads",
            "shard.source",
            "shard.image_size",
            "evaluation.scorer",
            "evaluation.features_path",
            "evaluation.inception_path",
            "evaluation.bootstrap_samples",
            "geneval",
            "matching",
        ),
        user_files=("evaluation.features_path", "evaluation.inception_path", "geneval.prompts", *DETECTOR_MODELS),
    ),
    LATENCY,
    Stage(
        "judge",
        output=paths.JUDGE,
        inputs=(paths.SHARDS, paths.SMALL, paths.AUTOENCODER, paths.TEXT_ENCODER, paths.SCORER),
        sections=(
            *DRAWING_SECTIONS,
            BRANCH_THREADS,
            "shard.source",
            "judge",
            "evaluation.scorer",
            "evaluation.bootstrap_samples",
            "geneval.detector",
            *DETECTOR_MODELS,
            "matching.choices",
        ),
        user_files=("judge.path", *DETECTOR_MODELS),
    ),
    Stage(
        "grow",
        output=paths.GROWN_INIT,
        inputs=(paths.SMALL, paths.ENCODED),
        sections=(*TRAINING_SECTIONS, BRANCH_THREADS, "grow"),
    ),
    Stage(
        "train",
        output=paths.GROWN,
        inputs=(paths.GROWN_INIT, paths.OUTPUTS / "{train.data}"),
        sections=(*LOOP_SECTIONS, BRANCH_THREADS, "train"),
        on_ranks=True,
    ),
    EVALUATE,
    Stage(
        "scratch",
        output=paths.OUTPUTS / "scratch-{item}",
        inputs=(paths.OUTPUTS / "{scratch.data}",),
        sections=(
            *LOOP_SECTIONS,
            BRANCH_THREADS,
            "network",
            *keys_but("scratch", Scratch, "depths"),
        ),
        family=SCRATCH,
        on_ranks=True,
    ),
    replace(EVALUATE, family=SCRATCH_MODELS),
    Stage(
        "controls",
        output=paths.CONTROLS,
        inputs=(paths.GROWN, paths.AUTOENCODER, paths.TEXT_ENCODER, paths.SCORER),
        sections=(
            *DRAWING_SECTIONS,
            BRANCH_THREADS,
            "shard.source",
            "prune",
            "evaluation",
            "geneval.detector",
            *DETECTOR_MODELS,
        ),
        user_files=DETECTOR_MODELS,
    ),
    Stage(
        "importance",
        output=paths.IMPORTANCE,
        inputs=(paths.GROWN, paths.ENCODED),
        sections=(*COMPUTE_SECTIONS, BRANCH_THREADS, "importance"),
    ),
    Stage(
        "prune",
        output=paths.OUTPUTS / "pruned-{item}",
        inputs=(paths.GROWN, paths.IMPORTANCE, paths.ENCODED),
        sections=(*TRAINING_SECTIONS, BRANCH_THREADS, "prune.random_choices"),
        family=DEPTHS,
    ),
    Stage(
        "finetune",
        output=paths.OUTPUTS / "finetuned-{item}",
        inputs=(paths.OUTPUTS / "pruned-{item}", paths.GROWN, paths.OUTPUTS / "{finetune.data}"),
        sections=(*LOOP_SECTIONS, BRANCH_THREADS, "finetune"),
        family=DEPTHS,
        on_ranks=True,
    ),
    replace(EVALUATE, family=CUTS),
    Stage(
        "sft",
        output=paths.OUTPUTS / "sft-{item}",
        inputs=(paths.OUTPUTS / "{item}", paths.OUTPUTS / "{sft.data}"),
        sections=(*LOOP_SECTIONS, BRANCH_THREADS, *keys_but("sft", Sft, "models")),
        family=SFT,
        on_ranks=True,
    ),
    replace(EVALUATE, family=SFT_MODELS),
    Stage(
        "judge_examples",
        output=paths.JUDGE_EXAMPLES / "{item}",
        inputs=(paths.OUTPUTS / "{item}", paths.AUTOENCODER, paths.TEXT_ENCODER, paths.SCORER),
        sections=(
            *DRAWING_SECTIONS,
            BRANCH_THREADS,
            "shard.source",
            "shard.samples_per_shard",
            "judge_finetune.prompts",
            "judge_finetune.heldout_prompts",
            "judge_finetune.images_per_prompt",
            "evaluation.scorer",
            "geneval.detector",
            *DETECTOR_MODELS,
        ),
        family=EXAMPLES,
        user_files=DETECTOR_MODELS,
    ),
    Stage(
        "judge_finetune",
        output=paths.JUDGE_FINETUNED / "{item}",
        inputs=(paths.JUDGE_EXAMPLES,),
        sections=(
            *COMPUTE_SECTIONS,
            BRANCH_THREADS,
            *keys_but("judge_finetune", JudgeFinetune, "ways"),
            "evaluation.bootstrap_samples",
        ),
        family=WAYS,
        user_files=("judge_finetune.path",),
    ),
    Stage(
        "report",
        output=paths.RESULTS,
        inputs=(paths.OUTPUTS,),
        # their outputs are large, and the report shows nothing of them
        unread=("shard", "encode", "judge_examples", "judge_finetune"),
        sections=(
            "compute.seed",
            "workflow.baselines",
            "prune.depths",
            "scratch.depths",
            "sft.models",
            "shard.source",
            "shard.path",
            "evaluation",
            "geneval.detector",
            "report",
        ),
        # times and memory differ from run to run, so what shows them is not cached
        uncached_files=("summary.json", "report.html", "family.png"),
        files=("metrics.json",),
    ),
)
"""All stages. Each comes after those whose outputs it reads."""


def stages_of(params: Params, unused_sets: bool = False) -> dict[str, Stage]:
    """Every stage of an experiment by its name. Each comes after those whose outputs it reads.

    With `unused_sets` the stages of data sets that no section learns from are among them. DVC has them too, since its
    templates cannot leave an item out.
    """
    stages: dict[str, Stage] = {}
    for row in TABLE:
        items = () if row.family is None else row.family.items(params)
        if row.family is DATA_SETS and not unused_sets:
            items = [name for name in items if name in params.data_sets]
        members = [row] if row.family is None else [row.for_item(item) for item in items]
        stages |= {stage.name: stage.for_params(params) for stage in members}
    return stages


def stage_of(stem: str, params: Params, item: Argument | None = None) -> Stage:
    """The stage of this stem and item. Raises UserError if the family has no such item in this experiment."""
    stages = stages_of(params, unused_sets=True)  # `dvc repro` runs those too
    name = stem if item is None else f"{stem}@{item}"
    if name not in stages:
        if not (found := families(stem)):
            raise UserError(f"{name} is no stage: choose from {', '.join(stages)}")
        family = found[0]
        known = [str(stage.item) for stage in stages.values() if stage.stem == stem and stage.item is not None]
        sources = " and ".join(dict.fromkeys(one.source for one in found))
        choice = f"choose from {', '.join(known)}" if known else "it is empty; add it there"
        raise UserError(f"--{family.argument} {item} is not in params.yaml's {sources}: {choice}")
    return stages[name]


def families(stem: str) -> list[Family]:
    """The families of a stem's rows; none for a stage that exists once."""
    return [row.family for row in TABLE if row.stem == stem and row.family is not None]


def exists_once(stem: str) -> bool:
    """Whether a stem has a stage outside its families, such as `encode` beside `encode@sft`."""
    return any(row.stem == stem and row.family is None for row in TABLE)


def stems() -> list[str]:
    """The stems of all rows, each once: `shard`, `autoencoder` and on."""
    return list(dict.fromkeys(row.stem for row in TABLE))


def sections_of(stem: str) -> frozenset[str]:
    """The sections and keys of params.yaml that the rows of a stage name."""
    return frozenset(section for row in TABLE if row.stem == stem for section in row.sections)


def edges(stages: Iterable[Stage]) -> dict[str, list[str]]:
    """For each stage the names of the stages that the flow and DVC run before it (`Stage.waits_for`).

    Raises ValueError if one of them stands behind it.
    """
    every = list(stages)
    found = {
        stage.name: [other.name for other in every if other is not stage and stage.waits_for(other)] for stage in every
    }
    for place, (name, upstream) in enumerate(found.items()):
        if late := set(upstream) - set(list(found)[:place]):
            raise ValueError(f"{name} reads what {', '.join(sorted(late))} writes: its row belongs behind theirs")
    return found


def scored_models(params: Params) -> list[str]:
    """The models that are scored: `small`, `grown`, those from scratch, the cut ones (`pruned-6`), then `sft-M`."""
    return [str(stage.item) for stage in stages_of(params).values() if stage.stem == EVALUATE.stem]


def name_of(command: str) -> str:
    """The name of the stage that a command runs: `finetune@6` for `python -m tasks.finetune --depth 6`."""
    words = shlex.split(command)
    stem = words[2].removeprefix("tasks.")
    return f"{stem}@{words[-1]}" if len(words) > 3 else stem
