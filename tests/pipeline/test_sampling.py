"""Drawing images: what the user is told about prompts."""

from tests.support import tiny_text
from unlearnbench import registry
from unlearnbench.pipeline.cell import Cell
from unlearnbench.pipeline.sampling import sample_images
from unlearnbench.reporting import told_by
from unlearnbench.storage.store import Store
from unlearnbench.task import Plan


class Drawn(tiny_text.TinyText):
    def inputs(self, items):
        return self.original.tokens([item.prompt for item in items])

    def to_uint8(self, x):
        return x.clamp(0, 1).mul(255).byte()


def test_prompts_that_the_encoder_cuts_are_counted_and_not_shown(tmp_path, fresh_store):
    method = registry.load_method("original")()
    task = Drawn(tmp_path / "model")
    model = task.pretrained()
    long = " ".join(["seven"] * 30)
    plan = [Plan("forget", "seven", i, i, prompt=prompt) for i, prompt in enumerate(("a seven", long, long))]
    lines: list[str] = []
    with told_by(lines.append):
        sample_images(Cell(method, task), model, {"model": "tiny"}, plan, Store())
        assert len(lines) == 1 and lines[0].startswith("1 of 2 prompts") and "seven seven" not in lines[0]
        sample_images(Cell(method, task), model, {"model": "tiny"}, plan[:1], Store())
    assert len(lines) == 1
