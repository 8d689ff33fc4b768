"""Sections `sampling`, `judge`, `evaluation`, `geneval`, `matching` and `report`: how pictures are drawn and scored."""

from dataclasses import dataclass
from typing import Literal

from tasks.params.checks import check, positive


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn."""

    sampler: Literal["flow_dpm-solver", "flow_euler"]
    """Solver that draws pictures: flow_dpm-solver (SANA algorithm 1) or flow_euler."""
    steps: int
    """Number of solver steps for a picture. SANA takes 20."""
    guidance: float
    """Scale of classifier-free guidance; 1 is none. SANA takes 4.5."""
    batch_size: int
    """Number of pictures that are drawn at once."""

    def __post_init__(self) -> None:
        positive(self, "steps", "batch_size")
        check(self.guidance >= 1, f"guidance is {self.guidance}: it must be 1 (none) or above")


@dataclass(frozen=True)
class Judge:
    """The judge of best-of-N: a small yes/no classifier of (prompt, picture), or a vision-language model of `path`."""

    kind: Literal["trained", "vision_language"]
    """Kind of judge: trained (a small network, here) or vision_language (a published model).

    A vision_language judge is asked for yes or no.
    """
    path: str | None
    """Folder that transformers loads for images and text (vision_language only)."""
    remote_code: bool
    """Whether Python code that the folder `path` brings is run (vision_language only).

    A folder whose code transformers knows as `AutoModel` alone is asked by that code's `generate_content`, as the
    published NVILA-Lite-2B-Verifier is.
    """
    time_limit: float
    """Seconds for a batch of a vision_language judge; what takes longer is an abstention."""
    prompts: int
    """Number of training prompts, all outside GenEval's.

    A quarter as many again measure how well the judge tells right from wrong.
    """
    images_per_prompt: int
    """Number of pictures of each prompt that the judge learns from or is measured on."""
    calibration_prompts: int
    """Number of the training prompts that the threshold of adaptive best of N is set on."""
    calibration_images: int
    """Number of pictures of each calibration prompt; adaptive best of N draws at most so many."""
    shard_pictures: int
    """Number of training pictures of the shards that a trained judge sees besides."""
    steps: int
    """Number of training steps of a trained judge."""
    batch_size: int
    """Number of pictures of a training batch, or of one question to a vision_language judge."""
    learning_rate: float
    """Peak learning rate of a trained judge."""

    def __post_init__(self) -> None:
        positive(self, "prompts", "images_per_prompt", "calibration_prompts", "calibration_images", "time_limit")
        positive(self, "steps", "batch_size", "learning_rate")
        check(
            (self.kind == "trained") == (self.path is None),
            f"path is {self.path!r} with kind {self.kind}: trained takes no path, vision_language needs one",
        )
        check(self.shard_pictures >= 0, f"shard_pictures is {self.shard_pictures}: it must be 0 or above")


@dataclass(frozen=True)
class Evaluation:
    """How models are scored, and how many pictures they draw for it."""

    scorer: Literal["geneval", "matching"] | None
    """What scores pictures: geneval, matching, or null for the one that fits.

    geneval asks a detector whether a picture shows what its prompt names. matching asks a network trained on your own
    pairs which of several captions a picture was drawn for; it needs no detector. null is geneval for rendered scenes
    and where `geneval.detector` is mask2former, and matching for all other pictures.
    """
    features_path: str | None
    """Folder with a CLIP or DINO to compare pictures by; null: the autoencoder's latents.

    transformers loads it. The distance of drawn pictures to real ones is measured in its features. With a CLIP the CLIP
    score is measured too.
    """
    images_per_prompt: int
    """Number of pictures of each prompt, the pool that best of N draws from."""
    images_per_pruned_prompt: int
    """Number of pictures of each prompt for models just cut and for the controls.

    Nobody would choose from their pictures, so a smaller pool will do.
    """
    best_of: tuple[int, ...]
    """Numbers N of pictures that the judge chooses from, each at most `images_per_prompt`.

    The paper goes up to 2048 (SANA-1.5 section 2.5).
    """
    keep: Literal[1, 4]
    """Number of pictures kept of N, whose mean is the score: 1 or 4.

    The paper's tournament leaves four (SANA-1.5 appendix B), and GenEval itself scores four.
    """
    shuffled_control: bool
    """Whether the judge is asked about another prompt as well, to see what it gains by reading.

    This is twice the judge's work.
    """
    adaptive_means: tuple[float, ...]
    """Mean numbers of pictures that adaptive best of N shall draw, each above 1.

    Adaptive best of N is not in the paper.
    """
    bootstrap_samples: int
    """Number of bootstrap samples that an interval is taken from."""

    def __post_init__(self) -> None:
        positive(self, "images_per_prompt", "images_per_pruned_prompt", "bootstrap_samples")
        check(
            all(1 <= n <= self.images_per_prompt for n in self.best_of) and len(self.best_of) > 0,
            f"best_of is {self.best_of}: each must be in [1, images_per_prompt = {self.images_per_prompt}]",
        )
        check(
            all(mean > 1 for mean in self.adaptive_means),
            f"adaptive_means is {self.adaptive_means}: each must be above 1",
        )


@dataclass(frozen=True)
class GenEval:
    """Detector and prompts of the scorer geneval."""

    detector: Literal["scenes", "mask2former"]
    """What finds objects: scenes (for shard.source scenes) or mask2former.

    mask2former is GenEval's kind: it finds COCO's 80 classes, with CLIP for colours.
    """
    mask2former_path: str | None
    """Folder with a transformers Mask2Former of COCO's instances (mask2former only)."""
    clip_path: str | None
    """Folder with a transformers CLIP (mask2former only)."""
    prompts: str | None
    """File of prompts such as GenEval's evaluation_metadata.jsonl; null asks for scenes."""
    prompts_per_task: int
    """Number of prompts of each task of scenes; a file's prompts are all asked."""

    def __post_init__(self) -> None:
        positive(self, "prompts_per_task")
        for name in ("mask2former_path", "clip_path"):
            value = getattr(self, name)
            check(
                (self.detector == "mask2former") == (value is not None),
                f"{name} is {value!r} with detector {self.detector}: scenes takes no path, mask2former needs two",
            )
        check(
            self.detector == "scenes" or self.prompts is not None,
            "prompts is None with detector mask2former: the scenes' own prompts name no class that it finds",
        )


@dataclass(frozen=True)
class Matching:
    """Prompts and training of the scorer matching: a network that tells which caption a picture was drawn for."""

    captions: int
    """Number of held-out captions that models are scored on, as far as there are so many."""
    choices: int
    """Number of captions among which a picture's own must be found."""
    pairs: int
    """Most training pictures that the network learns from, out of the half that is its own.

    They are held in memory: 3 bytes for each pixel.
    """
    steps: int
    """Number of training steps of the network."""
    batch_size: int
    """Number of pairs in a training batch."""
    learning_rate: float
    """Peak learning rate."""

    def __post_init__(self) -> None:
        positive(self, "captions", "pairs", "steps", "batch_size", "learning_rate")
        check(self.choices >= 2, f"choices is {self.choices}: a caption is chosen among at least 2")


@dataclass(frozen=True)
class Report:
    """Pictures of the report."""

    grid_prompts: int
    """Number of prompts whose pictures the page shows."""
    grid_images: int
    """Number of pictures of each prompt and model on the page."""

    def __post_init__(self) -> None:
        positive(self, "grid_prompts", "grid_images")
