"""An experiment as the plan sees it: its networks at every depth, and the costs of its passes at its own sizes."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

from model import network_flops
from model.network import NetworkConfig
from tasks.params.experiment_params import Params
from tasks.params.training_params import Training
from tasks.planning.encoder_models import Encoders, build_encoders
from tasks.planning.encoder_runs import EncoderRuns
from tasks.planning.experiment_scale import Scale, measure_data_set, with_data_set
from tasks.planning.network_runs import NetworkRuns
from tasks.planning.training_memory import Precision
from tasks.system import paths
from tasks.system.errors import UserError
from tasks.training.network_config import network_config

GPUS_OF_A_NODE = 8  # assumed under hybrid_shard where params ask for a single process


@dataclass(frozen=True)
class Experiment:
    """The params, the sizes that params.yaml does not state, and the number of GPUs that share each batch."""

    params: Params
    scale: Scale
    encoders: Encoders
    gpus: int

    def learning_from(self, data: str) -> "Experiment":
        """The experiment with the data set in the folder `data` (`encoded-sft`) in place of the one of `shard`."""
        names = {paths.encoded(name).name: name for name in self.params.data.sets}
        return self.of_data_set(names.get(data))

    def of_data_set(self, name: str | None) -> "Experiment":
        """The experiment with a set in `data.sets` in place of the one of `shard`, which None stands for."""
        if name is None:
            return self
        return replace(self, params=with_data_set(self.params, name), scale=measure_data_set(self.params, name))

    @property
    def text_tokens(self) -> int:
        """Tokens of a text in training. All texts of a batch are padded to its longest."""
        return self.scale.captions.longest

    @property
    def latent_side(self) -> int:
        """The side of a latent, which is square."""
        return self.params.shard.image_size // self.encoders.autoencoder.downsampling

    @property
    def tokens(self) -> int:
        """The number of tokens of a latent."""
        return (self.latent_side // self.params.network.patch_size) ** 2

    @property
    def precision(self) -> Precision:
        """The precision of training. On a GPU attention is fused."""
        return Precision(self.params.compute.dtype, fused_attention=self.params.compute.device != "cpu")

    def config(self, depth: int) -> NetworkConfig:
        """The network's configuration at a depth."""
        encoders = self.encoders
        channels = encoders.autoencoder.latent_channels, encoders.caption_channels
        return network_config(self.params.network, depth, *channels)

    @cached_property
    def encoder_runs(self) -> EncoderRuns:
        """The passes of encoders and judge."""
        return EncoderRuns(self.params, self.encoders)

    @cached_property
    def network_runs(self) -> NetworkRuns:
        """The passes of the network."""
        return NetworkRuns(self.params, self.config(1), self.latent_side)

    @property
    def sharded(self) -> bool:
        """Whether the GPUs of a training share its weights."""
        return self.gpus > 1 and self.params.compute.parallelism != "ddp"

    @property
    def shards(self) -> int:
        """The number of parts into which training cuts weights, averages and optimizer state."""
        compute = self.params.compute
        node = compute.processes_per_node if compute.world_size > 1 else GPUS_OF_A_NODE
        return {"ddp": 1, "fully_shard": self.gpus, "hybrid_shard": min(self.gpus, node)}[compute.parallelism]

    @property
    def replicas(self) -> int:
        """The number of groups of GPUs of which each has all weights (`hybrid_shard` on several nodes)."""
        return ceil(self.gpus / self.shards)

    def micro_batch(self, chosen: Training) -> int:
        """Samples of one forward and backward pass of a training on a GPU."""
        return micro_batch(chosen, self.gpus, self.params.compute.world_size)

    def passes(self, chosen: Training) -> int:
        """Micro-batches of a training's step on each GPU."""
        return passes(chosen, self.gpus, self.params.compute.world_size)

    def heldout_flops(self, depth: int) -> int:
        """Operations of one held-out loss."""
        return self.scale.heldout_samples * network_flops.forward_flops(
            self.config(depth), self.tokens, self.text_tokens
        )

    def drawing_flops(self, depth: int, prompts: int, images: int) -> int:
        """Operations of drawing `images` pictures of each prompt."""
        config, sampling, text = self.config(depth), self.params.sampling, self.scale.prompt_tokens
        picture = network_flops.sampling_flops(config, self.tokens, text, sampling.steps, sampling.guidance)
        rows = text_rows(prompts, images, sampling.batch_size)
        batches = ceil(prompts * images / sampling.batch_size)
        return (
            prompts * self.encoder_runs.text_flops(text)
            + self.encoder_runs.null_flops
            + rows * network_flops.text_flops(config, text)
            + batches * network_flops.text_flops(config, self.encoder_runs.null_tokens)
            + prompts * images * (picture + self.encoder_runs.decoder_flops)
        )

    def drawing_peak(self, depth: int, prompts: int, images: int) -> int:
        """Memory of drawing, beside the weights: the most of encoding all prompts, of the solver and of the decoder."""
        batch = min(self.params.sampling.batch_size, prompts * images)
        text = self.scale.prompt_tokens
        return max(
            self.encoder_runs.text_peak(prompts, text),
            self.network_runs.drawing_peak(depth, batch, text),
            self.encoder_runs.decoder_peak(batch),
        )

    def judging_flops(self, prompts: int, images: int) -> int:
        """Operations of judging `images` pictures of each prompt. A vision-language judge is not counted: 0."""
        if self.params.judge.kind == "vision_language":
            return 0
        return self._answer_flops(prompts, images, 1)

    def scoring_flops(self, prompts: int, images: int) -> int:
        """Operations of scoring `images` pictures of each prompt. Those of a detector are not counted: 0."""
        if self.params.scorer != "matching":
            return 0
        return self._answer_flops(prompts, images, min(self.params.matching.choices, self.scale.heldout_samples))

    def _answer_flops(self, prompts: int, images: int, captions: int) -> int:
        """Operations of asking a network of the judge's class about pictures with `captions` texts for each prompt."""
        text = self.scale.prompt_tokens
        reading = self.encoder_runs.text_flops(text) + self.encoder_runs.judge_prompt_flops(text)
        answer = network_flops.PRODUCT * self.encoders.judge.config.vector  # of the picture's and the text's vector
        return prompts * (captions * reading + images * (self.encoder_runs.judge_picture_flops + captions * answer))


def open_experiment(params: Params, scale: Scale, gpus: int) -> Experiment:
    """The experiment of these params. Raises UserError if its parts do not fit each other, or `gpus` is below 1."""
    if gpus < 1:
        raise UserError(f"--gpus is {gpus}: it must be 1 or above")
    scenes = scale.captions.texts if params.shard.source == "scenes" else ()
    experiment = Experiment(params, scale, build_encoders(params, scenes), gpus)
    size, patch = params.shard.image_size, params.network.patch_size
    down = experiment.encoders.autoencoder.downsampling * patch
    if size % down:
        raise UserError(
            f"params.yaml: shard.image_size is {size}: the autoencoder and patches need a multiple of {down}"
        )
    return experiment


def micro_batch(training: Training, gpus: int, asked: int = 1) -> int:
    """Samples of one forward and backward pass on a GPU.

    Params ask for `asked` GPUs, each with `grad_accumulation` micro-batches a step. The `gpus` of the plan share these
    micro-batches. If there are more GPUs than micro-batches, they share the samples.
    """
    return ceil(training.batch_size / gpus / passes(training, gpus, asked))


def passes(training: Training, gpus: int, asked: int = 1) -> int:
    """Micro-batches of a step on a GPU, of which there are `gpus` where params ask for `asked` (see `micro_batch`)."""
    return max(1, training.grad_accumulation * asked // gpus)


def evaluations(training: Training) -> int:
    """How often a training stage takes its held-out loss: before the first step, whenever it is due, and at the end."""
    return 1 + ceil(training.steps / training.evaluate_every)


def text_rows(prompts: int, images: int, batch: int) -> int:
    """How many prompts pass the network's text layers while pictures are drawn: the distinct prompts of every batch."""
    total = prompts * images
    starts = range(0, total, batch)
    return sum((min(start + batch, total) - 1) // images - start // images + 1 for start in starts)
