"""The scorer and the judge `matching` learn which caption belongs to which picture, each from its own half."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.text_encoder import Reading, TextEncoder, build_text_encoder, train_tokenizer
from tasks.data.picture_files import encode_png
from tasks.data.shards import Sample, describe, write_index, write_split
from tasks.evaluation.judges.judge_network import JudgeConfig, JudgeNetwork
from tasks.evaluation.matching.caption_choices import caption_prompts
from tasks.evaluation.matching.caption_pairs import Pairs, half_of, read_pairs
from tasks.evaluation.matching.pair_training import shifted, sigmoid_loss, train_on_pairs
from tasks.evaluation.scorers.matching_scorer import MatchingScorer
from tasks.params.evaluation_params import Matching
from tasks.system.errors import UserError

COLOURS = {"red": (255, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
TRAINING = Matching(captions=4, choices=4, pairs=64, steps=60, batch_size=16, learning_rate=3e-3)


@pytest.fixture
def text_encoder() -> TextEncoder:
    torch.manual_seed(0)
    tokenizer = train_tokenizer([f"a {name} picture" for name in COLOURS], 300)
    return build_text_encoder(tokenizer, 16, 1, 2, Reading(16, "none", "diffusers", "stored"))


def coloured_pairs(count: int = 64) -> Pairs:
    """Pictures of one colour each, with a little noise, and the colour's name in the caption."""
    rng = np.random.default_rng(0)
    names = [list(COLOURS)[i % len(COLOURS)] for i in range(count)]
    pictures = np.stack([np.broadcast_to(np.array(COLOURS[name]), (16, 16, 3)) for name in names])
    noisy = np.clip(pictures + rng.integers(-20, 20, pictures.shape), 0, 255).astype(np.uint8)
    return Pairs(noisy, [f"a {name} picture" for name in names])


def new_network(seed: int = 0) -> JudgeNetwork:
    torch.manual_seed(seed)
    return JudgeNetwork(JudgeConfig(16)).eval()


def test_a_prompt_has_its_caption_and_others_of_the_pool_each_once() -> None:
    pool = [f"caption {i % 20}" for i in range(40)]
    prompts = caption_prompts(pool[:5] + pool[:2], pool, 16, seed=0)
    assert [prompt.text for prompt in prompts] == pool[:5]
    for prompt in prompts:
        choices = [prompt.text, *prompt.line["others"]]
        assert len(choices) == len(set(choices)) == 16 and set(choices) <= set(pool)
    assert len(caption_prompts(pool[:1], pool[:3], 16, seed=0)[0].line["others"]) == 2


def test_a_captions_others_depend_on_the_seed_and_not_on_the_other_prompts() -> None:
    pool = [f"caption {i}" for i in range(40)]
    alone, among = caption_prompts(pool[3:4], pool, 16, 0), caption_prompts(pool, pool, 16, 0)
    assert alone[0] == among[3] and alone != caption_prompts(pool[3:4], pool, 16, 1)


def test_captions_that_are_all_the_same_are_refused_with_advice() -> None:
    with pytest.raises(UserError, match=r"no other caption than 'a cat'.*raise shard.heldout_samples"):
        caption_prompts(["a cat"], ["a cat", "a cat"], 16, 0)


def test_the_halves_share_no_caption_and_each_is_about_half(tmp_path: Path) -> None:
    captions = [f"picture of thing {i // 2}" for i in range(200)]
    picture = encode_png(np.zeros((16, 16, 3), np.uint8))
    samples = (Sample(f"{i:04d}", {"png": picture, "json": describe(16, 16, text)}) for i, text in enumerate(captions))
    write_index(tmp_path, {"train": write_split(tmp_path, "train", samples, 64)})
    scorer, judge = (read_pairs(tmp_path, half, 500, 16, seed=0) for half in ("scorer", "judge"))
    assert not set(scorer.captions) & set(judge.captions)
    assert sorted([*scorer.captions, *judge.captions]) == sorted(captions)
    assert 60 < len(scorer) < 140
    few = read_pairs(tmp_path, "scorer", 10, 16, seed=0)
    assert len(few) == len(few.pictures_QHW3) == 10 and set(few.captions) <= set(scorer.captions)
    assert {half_of(text, 0) for text in few.captions} == {"scorer"}


def test_one_caption_cannot_be_divided(tmp_path: Path) -> None:
    picture = encode_png(np.zeros((16, 16, 3), np.uint8))
    samples = (Sample(f"{i}", {"png": picture, "json": describe(16, 16, "a thing")}) for i in range(8))
    write_index(tmp_path, {"train": write_split(tmp_path, "train", samples, 64)})
    with pytest.raises(UserError, match="has 1 different captions, too few to divide"):
        read_pairs(tmp_path, "scorer", 10, 16, seed=0)


def test_a_second_caption_shares_a_word_with_the_first_where_another_has_it() -> None:
    pairs = Pairs(np.zeros((4, 4, 4, 3), np.uint8), ["red cat", "red dog", "blue fish", "red cat"])
    for seed in range(20):
        others = pairs.other_captions(np.array([0, 1, 2]), np.random.default_rng(seed))
        assert others[0] in pairs.captions and others[1] in pairs.captions
    drawn = {pairs.other_captions(np.array([1]), np.random.default_rng(seed))[0] for seed in range(60)}
    assert "red cat" in drawn


def test_the_loss_is_the_sum_over_captions_of_each_yes_or_no() -> None:
    torch.manual_seed(1)
    logits, own = torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 0, 4])
    expected = 0.0
    for row in range(3):
        for column in range(5):
            sign = 1 if column == own[row] else -1
            expected += np.log1p(np.exp(-sign * logits[row, column].item())) / 3
    assert sigmoid_loss(logits, own).item() == pytest.approx(expected, rel=1e-12)


def test_shifted_pictures_are_crops_of_the_pictures_with_their_edges_repeated() -> None:
    picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    padded = np.pad(picture[0], ((2, 2), (2, 2), (0, 0)), mode="edge")
    crops = [padded[y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    for seed in range(10):
        moved = shifted(picture, np.random.default_rng(seed))[0]
        assert any(np.array_equal(moved, crop) for crop in crops)


def test_a_trained_network_finds_captions_and_an_untrained_one_does_not(text_encoder: TextEncoder) -> None:
    pairs, network = coloured_pairs(), new_network()
    prompts = caption_prompts(pairs.captions, pairs.captions, 4, 0)

    def share() -> float:
        scorer = MatchingScorer(network, text_encoder)
        found = [
            verdict.correct
            for prompt in prompts
            for verdict in scorer.score(prompt.line, pairs.pictures_QHW3[[c == prompt.text for c in pairs.captions]])
        ]
        return float(np.mean(found))

    before = share()
    history = train_on_pairs(network, pairs, text_encoder, TRAINING, 0, "float32", "matching")
    assert len(history) == 60 and history[-1]["loss"] < history[0]["loss"]
    assert share() > 0.9 > before


def test_training_twice_gives_the_same_weights(text_encoder: TextEncoder) -> None:
    weights = []
    for _ in range(2):
        network = new_network()
        train_on_pairs(network, coloured_pairs(), text_encoder, TRAINING, 3, "float32", "matching")
        weights.append(torch.cat([value.flatten().double() for value in network.state_dict().values()]))
    assert torch.equal(*weights)


def test_a_network_that_tells_no_captions_apart_is_never_right(text_encoder: TextEncoder) -> None:
    network = new_network()
    for parameter in network.parameters():
        parameter.data.zero_()
    line = caption_prompts(["a red picture"], ["a red picture", "a blue picture"], 2, 0)[0].line
    verdicts = MatchingScorer(network, text_encoder).score(line, coloured_pairs(4).pictures_QHW3)
    assert not any(verdict.correct for verdict in verdicts)
    assert verdicts[0].reason == "expected 'a red picture', fits 'a blue picture' as well or better"
