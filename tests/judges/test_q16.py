"""Q16: two vectors from a pickle that is never run, and the cosines of an image with them."""

import pickle
import pickletools

import numpy as np
import pytest
import torch

from tests.support import static_sets, tiny_data
from unlearnbench.errors import UserError
from unlearnbench.judges.clip import Clip
from unlearnbench.judges.q16 import Q16, read_q16_prompts


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "clip"
    tiny_data.clip(folder, 1)
    return Clip(folder, "cpu")


def test_vectors_are_those_that_were_pickled(tmp_path):
    wide = np.random.default_rng(1).normal(size=(2, 768)).astype(np.float16)
    path = static_sets.q16(tmp_path / "q16_prompts.p", wide)
    names = [operation.name for operation, _, _ in pickletools.genops(path.read_bytes())]
    assert "BINBYTES" in names and path.stat().st_size in range(3072, 3300)  # the published one has 3,231 bytes
    assert np.array_equal(read_q16_prompts(path).numpy(), wide.astype(np.float32))


def test_the_probability_is_the_softmax_of_100_cosines(clip, tmp_path):
    vectors = np.random.default_rng(2).normal(size=(2, static_sets.WIDTH)).astype(np.float16)
    judge = Q16(clip, static_sets.q16(tmp_path / "q16_prompts.p", vectors))
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x, v = clip.images(images).numpy().astype(float), vectors.astype(float)
    cosine = (x @ v.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(v, axis=1)
    expected = 1 / (1 + np.exp(100 * (cosine[:, 0] - cosine[:, 1])))
    np.testing.assert_allclose(judge(images, [""] * 3)[:, 0].numpy(), expected, atol=1e-4)
    assert judge.groups == {"i2p"} and judge.threshold == 0.5


class Called:
    """What a hostile pickle would run."""

    def __reduce__(self):
        return (open, ("called", "w"))


@pytest.mark.parametrize(
    "content",
    [
        b"no pickle",
        b"",
        pickle.dumps(Called()),
        pickle.dumps(np.zeros((3, 8), np.float16), protocol=3),
        pickle.dumps(np.zeros((2, 200), np.float32), protocol=3),
        pickle.dumps(np.zeros((200, 2), np.float16), protocol=3),
    ],
    ids=["text", "empty", "call", "three", "float32", "turned"],
)
def test_anything_else_is_refused_and_nothing_is_called(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q16_prompts.p").write_bytes(content)
    with pytest.raises(UserError, match=r"q16_prompts\.p .*: fetch q16_prompts\.p again"):
        read_q16_prompts(tmp_path / "q16_prompts.p")
    assert not (tmp_path / "called").exists()


def test_vectors_of_another_clip_are_refused(clip, tmp_path):
    path = static_sets.q16(tmp_path / "q16_prompts.p", np.ones((2, 768), np.float16))
    with pytest.raises(UserError, match=r"vectors of 768 numbers, the CLIP in .* has 8"):
        Q16(clip, path)
