"""ESD-u: the part that it trains, and its presets against the paper and both releases."""

import pytest
import torch

from tests.methods.test_esd import CODE, DEFECTS, constants
from tests.support.fidelity import Difference, Fidelity
from tests.support.tiny_text import TinyText
from unlearnbench.methods.esd import layers
from unlearnbench.methods.esd_u import ESDU

WORD = ("erase", ("nudity",), 'paper, section 5.2: ESD-u with the prompt "nudity"', "")
FIDELITY = Fidelity(
    method="esd_u",
    paper="Gandikota, Materzynska, Fiotto-Kaufman and Bau, Erasing Concepts from Diffusion Models, ICCV 2023",
    constants=(
        *constants(
            "sd-nudity",
            published=[WORD],
            released=[
                (*WORD[:2], "default: the newer code names no run on nudity; the paper's word", ""),
                ("part", "layers", CODE.at("esd_sd.py", 34), "linear layers and convolutions outside attn2"),
            ],
        ),
        *(one for one in constants("sd-object") if one.preset == "published"),
    ),
    differences=(
        Difference("published", "update", 0.0, "test_it_trains_all_but_the_cross_attention_and_the_ends",
                   "Six steps of train_esd with noxattn on a tiny U-Net in float64, on the same x_t and t."),
        Difference("released", "update", 1.4e-14, "test_it_trains_all_but_the_cross_attention_and_the_ends",
                   "Six rounds of the script's loop with esd-u on a tiny U-Net in float64, on the same x_t and t."),
        Difference("published", "parameters", 0.0, "test_it_trains_all_but_the_cross_attention_and_the_ends",
                   "The 180 names that train_esd chooses on a tiny U-Net are those of the part noxattn."),
    ),
    defects=DEFECTS,
    departs="Fewer, larger steps with a higher rate, chosen on digits; on Stable Diffusion the paper's numbers.",
)  # fmt: skip


@pytest.mark.parametrize("preset", ["published", "released"])
def test_it_trains_all_but_the_cross_attention_and_the_ends(tmp_path, preset):
    """By names: train_esd leaves out `out.`, `time_embed` and attn2; the newer code takes Linear and Conv2d alone."""
    task = TinyText(tmp_path / "model")
    model = task.pretrained()
    settings = {**ESDU.preset(preset, "sd-nudity"), "steps": 1, "batch_size": 2, "sampler_steps": 2, "lr": 1e-2}
    ESDU.configured({name: value for name, value in settings.items() if name != "erase"}).unlearn(model, task)
    old = dict(task.pretrained().named_parameters())
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, old[name])}
    assert changed
    assert not [name for name in changed if "attn2" in name or "text_encoder" in name or "vae" in name]
    chosen = model.select("noxattn") if preset == "published" else layers(model)
    assert changed <= set(chosen)
    own = {name for name in old if name.startswith("unet.")}
    ends = {name for name in own if any(end in name for end in ("conv_norm_out", "conv_out", "time_embedding"))}
    if preset == "published":
        assert not ends & set(chosen)
        assert own - ends - set(chosen) == set(model.select("xattn"))
    else:
        assert ends - set(chosen) == {"unet.conv_norm_out.weight", "unet.conv_norm_out.bias"}
        assert not [name for name in chosen if "norm" in name]


def test_the_papers_word_is_what_its_presets_erase():
    for preset in ("published", "released"):
        assert ESDU.configured(ESDU.preset(preset, "sd-nudity")).wording.given == {"erase": ("nudity",)}
    assert ESDU().part == "noxattn"
