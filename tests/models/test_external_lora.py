"""LoRA of every naming, merged, against what is summed by hand; alpha from wherever its format keeps it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import compvis, tiny_sd
from tests.support.compvis import written
from tests.support.unlearned_sd import refused, same, unet
from unlearnbench.errors import UserError
from unlearnbench.models.external.apply import apply_checkpoint
from unlearnbench.models.loading import load_stable_diffusion

ATTN = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"
POINT = "down_blocks.0.attentions.0.proj_in"
TEXT = "encoder.layers.1.self_attn.q_proj"


def low_rank(sd_before, rank=2):
    """Down and up by weight's name, and what up @ down is, summed by hand."""
    generator, found = torch.Generator().manual_seed(3), {}
    targets = {f"unet.{name}": unet(sd_before)[f"{name}.weight"] for name in (ATTN, CONV, POINT)}
    targets[f"text_encoder.{TEXT}"] = sd_before.text_encoders[0].state_dict()[f"{TEXT}.weight"]
    for name, weight in targets.items():
        down = torch.randn(rank, *weight.shape[1:], generator=generator)
        up = torch.randn(len(weight), rank, *(1 for _ in weight.shape[2:]), generator=generator)
        delta = torch.zeros_like(weight)
        for r in range(rank):
            delta += up[:, r].reshape(-1, *(1 for _ in weight.shape[1:])) * down[r]
        found[name] = (down, up, delta)
    return found


def lora_file(sd_before, path, naming, alpha=None):
    state = {}
    for name, (down, up, _) in low_rank(sd_before).items():
        part, rest = name.split(".", 1)
        rest = "text_model." + rest if part == "text_encoder" else rest
        if naming == "kohya":
            module = ("lora_unet_" if part == "unet" else "lora_te_") + rest.replace(".", "_")
        elif naming == "processor" and "attn2" in rest:
            module = f"{part}." + rest.replace("to_k", "processor.to_k")
        else:
            module = f"base_model.model.{part}.{rest}" if naming == "wrapped" else f"{part}.{rest}"
        ends = {
            "peft": (".lora_A.weight", ".lora_B.weight"),
            "wrapped": (".lora_A.default.weight", ".lora_B.default.weight"),
            "kohya": (".lora_down.weight", ".lora_up.weight"),
            "processor": ("_lora.down.weight", "_lora.up.weight")
            if "attn2" in rest
            else (".lora.down.weight", ".lora.up.weight"),
        }[naming]
        state |= {module + ends[0]: down, module + ends[1]: up}
        if alpha is not None:
            state[f"{module}.alpha"] = torch.tensor(alpha)
    return written(state, path)


def with_lora(sd_before, scale):
    wanted = {name: value.clone() for name, value in sd_before.state_dict().items()}
    for name, (_, _, delta) in low_rank(sd_before).items():
        own = name.replace("text_encoder.", "text_encoders.0.") + ".weight"
        wanted[own] += scale * delta
    return wanted


@pytest.mark.parametrize(
    ("naming", "alpha", "scale", "layout"),
    [
        ("peft", None, 1.0, "LoRA (diffusers)"),
        ("peft", 1.0, 0.5, "LoRA (diffusers)"),
        ("wrapped", 4.0, 2.0, "LoRA (PEFT)"),
        ("processor", None, 1.0, "LoRA (diffusers)"),
        ("kohya", 4.0, 2.0, "LoRA (kohya)"),
        ("kohya", None, 1.0, "LoRA (kohya)"),
        ("kohya", 0.0, 1.0, "LoRA (kohya)"),  # kohya's 0 means the rank
    ],
)
def test_lora_is_merged_with_alpha_over_rank(sd, sd_before, tmp_path, naming, alpha, scale, layout):
    assert apply_checkpoint(sd, lora_file(sd_before, tmp_path / "lora.safetensors", naming, alpha)) == layout
    same(sd, with_lora(sd_before, scale))


def test_lora_in_a_pickle(sd, sd_before, tmp_path):
    apply_checkpoint(sd, lora_file(sd_before, tmp_path / "lora.pt", "kohya", 4.0))
    same(sd, with_lora(sd_before, 2.0))


def test_alpha_in_the_header_counts(sd, sd_before, tmp_path):
    path = lora_file(sd_before, tmp_path / "lora.safetensors", "peft")
    config = {"unet.lora_alpha": 6, "text_encoder.lora_alpha": 8, "unet.r": 2, "unet.alpha_pattern": {CONV: 1}}
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": json.dumps(config)})
    apply_checkpoint(sd, path)
    scales = {f"unet.{ATTN}": 3.0, f"unet.{POINT}": 3.0, f"unet.{CONV}": 0.5, f"text_encoder.{TEXT}": 4.0}
    for name, (_, _, delta) in low_rank(sd_before).items():
        own = name.replace("text_encoder.", "text_encoders.0.") + ".weight"
        change = sd.state_dict()[own] - sd_before.state_dict()[own]
        torch.testing.assert_close(change, scales[name] * delta, atol=1e-5, rtol=1e-5)


def test_lora_that_is_not_finite_is_refused(sd, sd_before, tmp_path):
    path = lora_file(sd_before, tmp_path / "lora.safetensors", "peft")
    state = load_file(path)
    state[f"unet.{ATTN}.lora_B.weight"][0, 0] = float("inf")
    refused(sd, written(state, path), ATTN, "not finite")


def test_lora_that_does_not_fit_is_refused(sd, sd_before, tmp_path):
    state = load_file(lora_file(sd_before, tmp_path / "lora.safetensors", "peft"))
    single = {key: value for key, value in state.items() if key != f"unet.{ATTN}.lora_A.weight"}
    refused(sd, written(single, tmp_path / "single.safetensors"), f"unet.{ATTN}.lora_B.weight")
    wide = {**state, f"unet.{ATTN}.lora_A.weight": torch.ones(2, 768)}
    refused(sd, written(wide, tmp_path / "wide.safetensors"), "(16, 768)", "(16, 16)", "SD 1.x?")
    ranks = {**state, f"unet.{ATTN}.lora_B.weight": torch.ones(16, 3)}
    refused(sd, written(ranks, tmp_path / "ranks.safetensors"), ATTN, "different ranks", named=False)
    strange = {
        "lora_unet_nowhere.lora_down.weight": torch.ones(2, 2),
        "lora_unet_nowhere.lora_up.weight": torch.ones(2, 2),
    }
    refused(sd, written(strange, tmp_path / "strange.safetensors"), "lora_unet_nowhere")
    doubled = {**state, f"base_model.model.unet.{ATTN}.lora_A.weight": torch.ones(2, 16)}
    doubled[f"base_model.model.unet.{ATTN}.lora_B.weight"] = torch.ones(16, 2)
    doubled[f"base_model.model.unet.{ATTN}.alpha"] = torch.tensor(2.0)
    refused(sd, written(doubled, tmp_path / "doubled.safetensors"), f"both for unet.{ATTN}.weight")


@pytest.mark.parametrize("config", ["{", "[]"])
def test_a_header_that_cannot_be_read_is_refused(sd, sd_before, tmp_path, config):
    path = lora_file(sd_before, tmp_path / "lora.safetensors", "peft")
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": config})
    refused(sd, path, "lora_adapter_metadata", named=False)


# ---- PEFT's folders --------------------------------------------------------------------------------------------------

CONFIG = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "auto_mapping": {"base_model_class": "UNet2DConditionModel", "parent_library": "diffusers.models.unets"},
    "base_model_name_or_path": None,
    "bias": "none",
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 2,
    "rank_pattern": {},
    "target_modules": ["to_k", "conv1", "proj_in"],
    "task_type": None,
    "use_dora": False,
    "use_rslora": False,
}
"""The keys of adapter_config.json that `LoraConfig.save_pretrained` writes and that matter here, and a few that do not
(huggingface/peft at 5d602fd, src/peft/tuners/lora/config.py, lines 613-970)."""


def peft_folder(sd_before, folder, more=None, **config):
    """`adapter_model.safetensors` and `adapter_config.json`, as `PeftModel.save_pretrained` leaves them for a U-Net."""
    folder.mkdir(exist_ok=True)
    state = {}
    for name, (down, up, _) in low_rank(sd_before).items():
        if name.startswith("unet."):
            module = "base_model.model." + name.removeprefix("unet.")
            state |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    save_file({**state, **(more or {})}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def scales(sd, sd_before):
    """What each product was multiplied by."""
    found = {}
    for name, (_, _, delta) in low_rank(sd_before).items():
        own = name.replace("text_encoder.", "text_encoders.0.") + ".weight"
        change = sd.state_dict()[own] - sd_before.state_dict()[own]
        found[name] = round(float((change * delta).sum() / delta.square().sum()), 3)
        torch.testing.assert_close(change, found[name] * delta, atol=2e-3, rtol=2e-3)
    return found


UNET = [f"unet.{name}" for name in (ATTN, CONV, POINT)]


@pytest.mark.parametrize("inside", ["", "adapter_model.safetensors"])
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [4.0, 4.0, 4.0]),
        ({"use_rslora": True}, [5.657, 5.657, 5.657]),  # 8 / sqrt(2)
        ({"alpha_pattern": {"resnets.0.conv1": 1, "proj_in": 2}}, [4.0, 0.5, 1.0]),
        ({"alpha_pattern": {"^down_blocks.*to_k": 6, "blocks.0.attentions.0.proj_in": 2}}, [3.0, 4.0, 4.0]),
        ({"r": 4, "rank_pattern": {"to_k": 2, "conv1": 2, "proj_in": 2}}, [4.0, 4.0, 4.0]),
    ],
)
def test_alpha_of_a_peft_folder_is_that_of_its_configuration(sd, sd_before, tmp_path, config, expected, inside):
    """PEFT matches patterns with whole segments: `blocks.0...` is no end of `down_blocks.0...`."""
    folder = peft_folder(sd_before, tmp_path / "adapter", **config)
    assert apply_checkpoint(sd, folder / inside) == "LoRA (PEFT)"
    assert [scales(sd, sd_before)[name] for name in UNET] == expected


def test_adapters_of_several_parts_have_a_configuration_each(sd, sd_before, tmp_path):
    top = tmp_path / "adapters"
    top.mkdir()
    peft_folder(sd_before, top / "unet", lora_alpha=2)
    down, up, _ = low_rank(sd_before)[f"text_encoder.{TEXT}"]
    (top / "text_encoder").mkdir()
    module = f"base_model.model.text_model.{TEXT}"
    save_file(
        {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up},
        top / "text_encoder" / "adapter_model.safetensors",
    )
    (top / "text_encoder" / "adapter_config.json").write_text(json.dumps({**CONFIG, "lora_alpha": 6}))
    apply_checkpoint(sd, top)
    assert set(scales(sd, sd_before).values()) == {1.0, 3.0}
    assert scales(sd, sd_before)[f"text_encoder.{TEXT}"] == 3.0


def test_biases_and_whole_modules_that_peft_saves_beside(sd, sd_before, tmp_path):
    out, bias = torch.randn(4, 16, 3, 3), torch.randn(16)
    more = {
        "base_model.model.conv_out.weight": out,  # modules_to_save
        f"base_model.model.{POINT}.base_layer.bias": bias,  # bias="lora_only"
        f"base_model.model.{CONV}.lora_B.bias": torch.ones(16),  # lora_bias
    }
    apply_checkpoint(sd, peft_folder(sd_before, tmp_path / "adapter", more, bias="lora_only", lora_bias=True))
    own = sd.unet.state_dict()
    assert torch.equal(own["conv_out.weight"], out) and torch.equal(own[f"{POINT}.bias"], bias)
    torch.testing.assert_close(own[f"{CONV}.bias"], unet(sd_before)[f"{CONV}.bias"] + 4.0)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"target_parameters": ["weight"]}, "target_parameters"),
        ({"r": 4}, "rank 2, adapter_config.json says 4"),
        ({"lora_alpha": "many"}, "lora_alpha in adapter_config.json"),
        ({"alpha_pattern": {"(a+)+": 1}}, "'(a+)+'"),
        ({"alpha_pattern": {"[": 1}}, "not valid"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
    ],
)
def test_settings_that_are_not_read_are_named(sd, sd_before, tmp_path, config, said):
    refused(sd, peft_folder(sd_before, tmp_path / "adapter", **config), said)


def test_a_configuration_that_is_no_json_is_named(sd, sd_before, tmp_path):
    folder = peft_folder(sd_before, tmp_path / "adapter")
    for text in ("{", "[]", '"' + "[" * 100_000):
        (folder / "adapter_config.json").write_text(text)
        refused(sd, folder, "adapter_config.json")


def test_where_nothing_says_alpha_the_file_is_refused_and_the_setting_gives_it(sd, sd_before, tmp_path):
    folder = peft_folder(sd_before, tmp_path / "adapter")
    (folder / "adapter_config.json").unlink()
    refused(sd, folder, ".lora_A.weight", "adapter_config.json", "--set alpha=2")
    apply_checkpoint(sd, folder, alpha=6.0)
    assert [scales(sd, sd_before)[name] for name in UNET] == [3.0, 3.0, 3.0]


def test_a_setting_that_contradicts_the_file_is_refused(sd, sd_before, tmp_path):
    folder = peft_folder(sd_before, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"says alpha 8 for .*: leave out alpha=6"):
        apply_checkpoint(sd, folder, alpha=6.0)
    with pytest.raises(UserError, match="holds no LoRA: leave out alpha=6"):
        apply_checkpoint(sd, written(unet(sd_before), tmp_path / "unet.pt"), alpha=6.0)


# ---- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("naming", "header", "expected"),
    [
        # diffusers 0.42, loaders/peft.py, save_lora_adapter: one model's settings without the part's name
        ("peft", {"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "r": 2, "alpha_pattern": {}})}, 4.0),
        ("peft", {"lora_alpha": "8"}, 4.0),
        # kohya-ss/sd-scripts at 48d368f, library/train_util.py, lines 3457-3460
        (
            "kohya",
            {"ss_network_module": "networks.lora", "ss_network_dim": "2", "ss_network_alpha": "1.0"},
            0.5,
        ),
        ("kohya", {"ss_network_alpha": "None"}, 1.0),
    ],
)
def test_alpha_in_headers(sd, sd_before, tmp_path, naming, header, expected):
    path = lora_file(sd_before, tmp_path / "lora.safetensors", naming)
    save_file(load_file(path), path, metadata=header)
    apply_checkpoint(sd, path)
    assert set(scales(sd, sd_before).values()) == {expected}


def test_kohyas_convolutions_have_an_alpha_of_their_own(sd, sd_before, tmp_path):
    path = lora_file(sd_before, tmp_path / "lora.safetensors", "kohya")
    arguments = json.dumps({"conv_dim": "2", "conv_alpha": "6"})
    save_file(load_file(path), path, metadata={"ss_network_alpha": "2", "ss_network_args": arguments})
    apply_checkpoint(sd, path)
    assert [scales(sd, sd_before)[name] for name in UNET] == [1.0, 3.0, 1.0]


# ---- other kinds -----------------------------------------------------------------------------------------------------

KINDS = {
    "DoRA": f"base_model.model.{ATTN}.lora_magnitude_vector",  # PEFT
    "DoRA of kohya": f"lora_unet_{ATTN.replace('.', '_')}.dora_scale",
    "LoHa": f"lora_unet_{ATTN.replace('.', '_')}.hada_w1_a",  # LyCORIS, as the next ones
    "LoKr": f"lora_unet_{ATTN.replace('.', '_')}.lokr_w1",
    "IA3": f"lora_unet_{ATTN.replace('.', '_')}.on_input",
    "IA3 of PEFT": f"base_model.model.{ATTN}.ia3_l",
    "OFT": f"base_model.model.{ATTN}.oft_R.weight",
    "Tucker": f"lora_unet_{CONV.replace('.', '_')}.lora_mid.weight",
    "embedding": "base_model.model.text_model.embeddings.token_embedding.lora_embedding_A",
    "differences": f"lora_unet_{ATTN.replace('.', '_')}.diff",
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_other_kinds_are_refused_by_name(sd, sd_before, tmp_path, kind):
    state = load_file(lora_file(sd_before, tmp_path / "lora.safetensors", "peft")) | {KINDS[kind]: torch.ones(2, 2)}
    refused(sd, written(state, tmp_path / "other.safetensors"), KINDS[kind], kind.partition(" ")[0], "merge")


# ---- SD XL -----------------------------------------------------------------------------------------------------------


def test_kohyas_names_of_stabilitys_blocks(tmp_path):
    """SD XL's trainer writes Stability's blocks (kohya-ss/sd-scripts at 48d368f, networks/lora.py, line 778)."""
    model = load_stable_diffusion(tiny_sd.save(tmp_path / "xl", "sdxl")).requires_grad_(False)
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    original = compvis.unet({name: name for name in before if name.endswith(".weight")})
    chosen = {own: key for key, own in original.items() if before[own].dim() in (2, 4)}
    assert len(chosen) > 40
    state, generator = {}, torch.Generator().manual_seed(0)
    for own, key in chosen.items():
        module = "lora_unet_" + key.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
        weight = before[own]
        state[f"{module}.lora_down.weight"] = torch.randn(1, *weight.shape[1:], generator=generator)
        state[f"{module}.lora_up.weight"] = torch.ones(len(weight), 1, *(1 for _ in weight.shape[2:]))
        state[f"{module}.alpha"] = torch.tensor(3.0)
    apply_checkpoint(model, written(state, tmp_path / "lora.safetensors"))
    for own, key in chosen.items():
        module = "lora_unet_" + key.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
        wanted = before[own] + 3 * state[f"{module}.lora_down.weight"].expand_as(before[own])
        torch.testing.assert_close(model.unet.state_dict()[own], wanted, msg=own)
