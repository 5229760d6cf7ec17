"""ESD on a tiny Stable Diffusion: its target from diffusers' own U-Net, and the part that each variant trains."""

import pytest
import torch

from tests.support import tiny_sd
from tests.support.tiny_model import TinyTask
from unlearnbench.diffusion.sampler import Sampler
from unlearnbench.methods.esd import ESD
from unlearnbench.methods.esd_u import ESDU
from unlearnbench.models.loading import load_stable_diffusion

PROMPTS = ["seven", "a photo of a red seven", "the number seven"]
TIMES = torch.tensor([3, 400, 981])


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def folder(request, tmp_path_factory):
    return tiny_sd.save(tmp_path_factory.mktemp(request.param) / "model", request.param)


def states(folder, prompts):
    """The text encoder's last states, by transformers alone."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    ids = tokenizer(prompts, padding="max_length", max_length=tiny_sd.TOKENS, return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(ids)[0]


def noise_of(folder, unet, x_t, states):
    """One call of the U-Net; its v is made noise by sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    with torch.no_grad():
        output = unet(x_t, TIMES, encoder_hidden_states=states).sample
    alpha_bar = scheduler.alphas_cumprod[TIMES].view(-1, 1, 1, 1)
    if scheduler.config.prediction_type == "v_prediction":
        return alpha_bar.sqrt() * output + (1 - alpha_bar).sqrt() * x_t
    return output


@torch.no_grad()
def heard(unet):
    """The same with loud values in cross-attention: untrained, it would hardly tell one prompt from another."""
    for name, value in unet.named_parameters():
        if "attn2.to_v" in name:
            value.mul_(100)
    return unet


@pytest.mark.parametrize("eta", [1.0, 2.5])
def test_the_target_is_the_teachers_guided_away_from_the_prompt(folder, eta):
    from diffusers import UNet2DConditionModel

    teacher = load_stable_diffusion(folder)
    student = load_stable_diffusion(folder)
    original, moved = (heard(UNet2DConditionModel.from_pretrained(folder, subfolder="unet")) for _ in range(2))
    heard(teacher.unet), heard(student.unet)
    first = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one, other in zip(student.unet.parameters(), moved.parameters(), strict=True):
            shift = 0.05 * torch.randn(one.shape, generator=first)
            one.add_(shift)
            other.add_(shift)
    x_t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))

    concept = states(folder, PROMPTS)
    eps_null = noise_of(folder, original, x_t, states(folder, [""] * 3))
    eps_c = noise_of(folder, original, x_t, concept)
    target = eps_null - eta * (eps_c - eps_null)
    expected = (noise_of(folder, moved, x_t, concept) - target).square().mean()

    loss = ESD(eta=eta).loss(student, teacher, x_t, TIMES, student.tokens(PROMPTS))
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=0)
    plain = (noise_of(folder, moved, x_t, concept) - eps_null).square().mean()
    assert abs(plain - expected) > 2e-3 * expected, "the concept's own term would be seen to be missing"
    loss.backward()
    assert all(value.grad is None for value in teacher.parameters())


class TextTask(TinyTask):
    """Its one name for the forgotten concept is a prompt."""

    def __init__(self, model):
        super().__init__()
        self.tokens = model.tokens(["seven"])

    def names(self, which):
        return self.tokens


@pytest.mark.parametrize("method", [ESD, ESDU], ids=lambda method: method.name)
def test_each_variant_trains_its_part_on_text(folder, method):
    model, before = load_stable_diffusion(folder), load_stable_diffusion(folder)
    model.sampler = Sampler(steps=3)
    settings = {**method.preset("default", "digits-text"), "steps": 2, "batch_size": 2, "sampler_steps": 3}
    torch.manual_seed(0)
    method.configured(settings).unlearn(model, TextTask(model))
    old = dict(before.named_parameters())
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, old[name])}
    assert changed
    assert changed <= set(model.select("xattn" if method is ESD else "noxattn"))


def test_parts_by_task():
    parts = {
        (method.name, preset, task): method.configured(method.preset(preset, task)).part
        for method in (ESD, ESDU)
        for preset in ("default", "published")
        for task in ("digits-class", "digits-text")
    }
    assert {key for key, part in parts.items() if part == "xattn"} == {
        ("esd", "default", "digits-text"),
        ("esd", "published", "digits-text"),
    }
    assert {key[0] for key, part in parts.items() if part == "noxattn"} == {"esd_u"}
    assert {part for key, part in parts.items() if key[2] == "digits-class"} == {"full", "noxattn"}
