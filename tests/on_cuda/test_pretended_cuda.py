"""The pretended device itself: where it refuses as torch does, what it counts, and faults that it has to find.

Rules are those of torch's notes "CUDA semantics" and "Tensor views", of `torch.cuda.set_sync_debug_mode`, and of the
device `meta`, which is another place than the CPU as CUDA is and needs no card.
"""

import copy
import io
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom
from torch.utils.checkpoint import checkpoint

from tests.on_cuda.steps import waits_a_step
from tests.support.pretended_cuda import CARD, PretendedCuda
from unlearnbench.compute.device import pick_device
from unlearnbench.compute.environment import Meter
from unlearnbench.training import minimise, seeded


@pytest.fixture
def card():
    with PretendedCuda() as device:
        yield device


# ---- two places ----------------------------------------------------------------------------------------------------

A, INDEX = torch.arange(6.0).view(2, 3), torch.tensor([1, 0])
MIXED = {
    "added": lambda x: x + A,
    "the other way round": lambda x: A + x,
    "a number without dimensions": lambda x: x * A[0, 0],
    "a number of the card with a CPU tensor": lambda x: A * x[0, 0],
    "compared": lambda x: x == A,
    "chosen": lambda x: torch.where(A > 0, x, x),
    "chosen from a number": lambda x: torch.where(x > 0, x, A[0, 0]),
    "interpolated": lambda x: torch.lerp(x, A, 0.5),
    "bounded": lambda x: torch.maximum(x, A),
    "CPU indices": lambda x: x[INDEX],
    "copied": lambda x: torch.zeros(2, 3).copy_(x) if x.device.type == "cuda" else x,
    "filled by a mask of the CPU": lambda x: x.masked_fill(A > 0, 1.0),
    "views": lambda x: x.T + A.T,
}


def refused(work, x):
    try:
        work(x)
    except (RuntimeError, IndexError) as error:
        assert "device" in str(error)
        return True
    return False


@pytest.mark.parametrize("case", MIXED)
def test_what_is_refused_is_what_torch_refuses_on_another_device(case):
    expected = refused(MIXED[case], torch.empty(2, 3, device="meta"))
    with PretendedCuda():
        assert refused(MIXED[case], A.to("cuda")) == expected


STRICT = {
    "in place": lambda x: x.mul_(A),
    "in place on the CPU": lambda x: A.clone().mul_(x),
    "the card's number in place on the CPU": lambda x: A.sum().mul_(x[0, 0]),
    "a CPU tensor by the card's indices": lambda x: A[(x[:, 0] * 0).long()],
    "matmul": lambda x: x @ A.T,
    "a linear layer": lambda x: F.linear(x, A),
    "concatenated": lambda x: torch.cat([x, A]),
    "stacked": lambda x: torch.stack([x, A]),
    "gathered": lambda x: x.gather(0, INDEX[:, None]),
    "embedded": lambda x: F.embedding(INDEX, x),
    "convolved": lambda x: F.conv1d(x[None], A[:, :, None]),
    "a loss": lambda x: F.mse_loss(x, A),
    "a layer of torch": lambda x: nn.Linear(3, 2)(x),
    "numbers without dimensions": lambda x: torch.stack([x.sum(), A.sum()]),
    "another's generator": lambda x: torch.randn(2, device="cuda", generator=torch.Generator()),
    "numpy": lambda x: x.numpy(),
    "numpy's own functions": lambda x: np.asarray(x),
}


@pytest.mark.parametrize("case", STRICT)
def test_kernels_of_cuda_take_no_cpu_tensors(card, case):
    """Where `meta` is lenient, since it computes nothing."""
    with pytest.raises((RuntimeError, TypeError), match=r"same device|device type"):
        STRICT[case](A.to("cuda"))


def test_tensors_stay_where_they_are_made(card):
    x = torch.zeros(2, 3, device="cuda")
    parts = [
        x,
        x[0],
        x.T,
        x + 1,
        x.clone(),
        x.double(),
        torch.zeros_like(x),
        x.new_zeros(1),
        torch.cat([x, x]),
        x.detach(),
    ]
    parts += [torch.tensor(1.0, device="cuda"), torch.arange(3, device=x.device), A.to(x), A.cuda(), copy.deepcopy(x)]
    with torch.device("cuda"):
        parts += [torch.ones(2), nn.Linear(2, 2).weight]
    with torch.inference_mode():
        parts += [x @ x.T, F.linear(x, x), x.reshape(-1)]
    assert {part.device for part in parts} == {CARD} and all(part.is_cuda and not part.is_cpu for part in parts)
    others = [x.cpu(), x.to("cpu"), torch.zeros_like(x, device="cpu"), torch.zeros(1), torch.as_tensor([1.0]), A]
    assert {part.device.type for part in others} == {"cpu"}
    assert x.to("cuda") is x and torch.equal(A.cuda().cpu(), A)


def test_layers_optimisers_and_gradients(card):
    here = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    there = copy.deepcopy(here).to("cuda")
    for net, x in ((here, A), (there, A.cuda())):
        optimiser = torch.optim.AdamW(net.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            checkpoint(net, x, use_reentrant=False).square().sum().backward()
            optimiser.step()
    assert all(value.device == value.grad.device == CARD for value in there.parameters())
    for name, value in there.state_dict().items():
        torch.testing.assert_close(value.cpu(), here.state_dict()[name])
    leaf = torch.ones(3, requires_grad=True)
    (leaf.cuda() * 2).sum().backward()
    assert leaf.grad.device.type == "cpu" and leaf.grad.tolist() == [2, 2, 2]


def test_files_keep_the_place(card, tmp_path):
    from safetensors.torch import load_file, save_file

    buffer = io.BytesIO()
    torch.save({"there": A.cuda(), "here": A}, buffer)
    for where, expected in ((None, "cuda"), ("cpu", "cpu")):
        buffer.seek(0)
        found = torch.load(buffer, map_location=where, weights_only=True)
        assert (found["there"].device.type, found["here"].device.type) == (expected, "cpu")
        assert torch.equal(found["there"].cpu(), A)
    save_file({"a": A.cuda()}, tmp_path / "a.safetensors")
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], A)


def test_random_numbers_of_the_card_are_its_own(card):
    with seeded(3):
        first = [torch.randn(2).tolist(), torch.randn(2, device="cuda").tolist()]
    with seeded(3):
        assert torch.randn(2).tolist() == first[0]
        torch.randn(2)
        assert torch.randn(2, device="cuda").tolist() == first[1], "whatever the CPU drew"
    state = torch.cuda.get_rng_state()
    dropped = F.dropout(torch.ones(9, device="cuda")).tolist()
    torch.cuda.set_rng_state(state)
    assert F.dropout(torch.ones(9, device="cuda")).tolist() == dropped
    generator = torch.Generator("cuda").manual_seed(1)
    assert generator.device == CARD and torch.rand(1, device="cuda", generator=generator).is_cuda


def test_memory_is_counted_and_ends():
    with PretendedCuda(memory=1000) as card:
        with Meter("cuda") as meter:
            x = torch.zeros(100, device="cuda")
            x.square().sum()
            y = x[10:]
        assert meter.memory == 804 and card.held == torch.cuda.memory_allocated() == 400
        del x
        assert card.held == 400, "a view holds all of it"
        del y
        assert card.held == 0
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(300, device="cuda")


def test_threads_see_it_and_nothing_is_left_of_it(card):
    seen = []
    thread = threading.Thread(target=lambda: seen.append((torch.zeros(2, device="cuda") + 1).device))
    thread.start()
    thread.join()
    assert seen == [CARD] and pick_device("auto") == "cuda"
    card.__exit__()
    assert torch.zeros(2).device.type == "cpu" and "pretended" not in torch.zeros.__module__
    with torch.device("meta"):
        assert torch.ones(1).device.type == "meta"
    card.__enter__()


def test_autocast_is_answered(card):
    x = torch.ones(2, 2, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16 and torch.is_autocast_enabled("cuda")
        with torch.autocast("cuda", enabled=False):
            assert (x @ x).dtype == torch.float32


# ---- waits ---------------------------------------------------------------------------------------------------------

READS = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0] > 0),
    "int": lambda x: int(x[0]),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "copied": lambda x: torch.zeros(3).copy_(x),
    "nonzero": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 1],
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "an index without dimensions": lambda x: A[x[0].long()],
    "multinomial": lambda x: x.multinomial(1),
    "solved": lambda x: torch.linalg.solve(torch.diag(x + 1), x),
}
UPLOADS = {
    "to": lambda x: A.to("cuda"),
    "a new tensor": lambda x: torch.tensor([1, 2], device="cuda"),
    "CPU indices": lambda x: x[INDEX],
    "copied": lambda x: x.copy_(A[0]),
}
QUEUED = {
    "computed": lambda x: (x + 1).square().sum().sqrt(),
    "a number of the CPU": lambda x: x * A[0, 0],
    "set by a mask": lambda x: x.masked_fill_(x > 1, 0.0),
    "set by an indexing mask": lambda x: x.__setitem__(x > 1, 0.0),
    "chosen": lambda x: torch.where(x > 1, x, 0),
    "made": lambda x: torch.zeros(3, device="cuda") + torch.full((), 2.0, device=x.device),
    "sliced": lambda x: x[1:] + x[0],
    "asked for its shape": lambda x: len(x) + x.numel(),
    "not waited for": lambda x: A.to("cuda", non_blocking=True),
}


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        pytest.param(work, kind, id=f"{kind}: {name}")
        for kind, cases in (("read", READS), ("upload", UPLOADS), (None, QUEUED))
        for name, work in cases.items()
    ],
)
def test_waits_are_noted_with_their_kind(card, work, kind):
    x = torch.arange(3.0, device="cuda")
    card.waits.clear()
    work(x)
    assert {wait.kind for wait in card.waits} == ({kind} if kind else set())
    assert all(wait.file == "tests/on_cuda/test_pretended_cuda.py" for wait in card.waits)


# ---- planted faults ------------------------------------------------------------------------------------------------


def trained(card, losses):
    weight = nn.Parameter(torch.ones(3, device="cuda"))
    with waits_a_step(card) as found:
        minimise((losses(weight) for _ in range(3)), {"w": weight}, 0.1)
    return found


def test_a_step_reads_once(card):
    assert trained(card, lambda w: w.square().sum()).counts == (1, 0)


def test_a_method_that_reads_in_its_loop_is_found(card):
    def losses(w):
        loss = w.square().sum()
        return loss * 2 if loss.item() > 1 else loss

    found = trained(card, losses)
    assert found.counts == (2, 0)
    assert any("test_pretended_cuda.py" in line for line in card.lines(found.waits))


def test_a_method_that_forgets_to_move_its_batch_is_found(card):
    with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
        trained(card, lambda w: (w * torch.ones(3)).sum())
