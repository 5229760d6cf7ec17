"""Every method's update in micro-batches is that of the whole batch, or it is refused with the reason."""

import pytest
import torch

from tests.support.short_runs import SHORT
from tests.support.tiny_text import TinyText
from unlearnbench import registry
from unlearnbench.method import run_prepare, run_unlearn
from unlearnbench.models.stable_diffusion import StableDiffusion
from unlearnbench.pipeline.planning import cost_table
from unlearnbench.training import CannotSplit, seeded, splitting

WITHOUT_BATCHES = {
    "original",
    "destroy",
    "checkpoint",
    "prompt_filter",
    "negative_prompt",
    "sld",
    "safree",
    "uce",
    "rece",
    "speed",
    "adavd",
    "gloce",
}
TRAINED_ANEW = {"retrain"}
SAME_LOSS = {"esd_u", "esd_retain"}
"""As ESD on another part, or with the loss of `finetune` added."""
METHODS = sorted(set(registry.methods()) - WITHOUT_BATCHES - TRAINED_ANEW - SAME_LOSS)
FEW = {**SHORT, "steps": 1, "batch_size": 3, "retain_batch": 3, "trajectories": 3, "warmup": 0, "sampler_steps": 2}
FEW |= {"outer": 1, "batches": 1, "keep_start": True}


class Double(TinyText):
    """In float64, so that what rounding changes is far below what an update does."""

    def data(self, which):
        batch = super().data(which)
        return batch._replace(x0=batch.x0.double())


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    task = Double(tmp_path_factory.mktemp("microbatches") / "sd")
    task.original.double()
    return task


@pytest.fixture
def in_double(monkeypatch):
    plain = StableDiffusion.predict
    monkeypatch.setattr(StableDiffusion, "predict", lambda self, x_t, t, y: plain(self, x_t.double(), t, y))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def updated(method, task, size):
    with seeded(3), splitting(size):
        model = method.wrap(task.pretrained(), task)
        return run_unlearn(method, model, task, run_prepare(method, model, task)).state_dict()


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("name", METHODS)
def test_the_update_is_the_whole_batchs(name, task):
    cls = registry.load_method(name)
    known = cls.configured({}).settings()
    method = cls.configured({key: value for key, value in FEW.items() if key in known})
    if cost_table()["method"].get(name, {}).get("whole"):
        with pytest.raises(CannotSplit, match="inside the network"):
            updated(method, task, 2)
        return
    whole, parts = updated(method, task, None), updated(method, task, 2)
    start = task.pretrained().state_dict()
    assert any(not torch.equal(value, start[key]) for key, value in whole.items() if key in start) or whole.keys() > (
        start.keys()
    )
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-9)
