"""The LoRA layer: exact where it should be exact, the papers' counts, and the field's common adapter format."""
import copy
import json

import pytest
import torch
import transformers
from torch import nn

from speech_llm.llm import load_llm
from train_lora import (LoRALinear, TARGETS, add_lora, attach_lora, load_lora, load_peft, lora_layers,
                        lora_parameters, lora_state_dict, merge_lora, save_peft)


IDS = torch.tensor([[1, 5, 77, 200, 31, 8]])


@pytest.fixture
def base(llama):
    return load_llm(llama, torch.device("cpu"))[0]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def randomise(model):
    """Adapters as after training: B is no longer zero."""
    torch.manual_seed(1)
    for p in lora_parameters(model):
        nn.init.normal_(p.data, std=0.1)
    return model


def test_y_is_wx_plus_alpha_over_r_b_a_x():
    layer = LoRALinear(nn.Linear(2, 2, bias=False), r=1, alpha=2)
    layer.base.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    layer.lora_A.data, layer.lora_B.data = torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0], [0.0]])
    assert layer(torch.tensor([1.0, 4.0])).tolist() == [1 + 2 * 3 * 5, 4]          # x + 2 B (1 + 4)


def test_a_is_kaiming_uniform_and_b_zero():
    layer = LoRALinear(nn.Linear(400, 30), r=8, alpha=16)
    assert 0.045 < layer.lora_A.abs().max() <= 0.05        # 1 / sqrt(400)
    assert layer.lora_A.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.05)
    assert not layer.lora_B.any() and layer.scale == 2.0


def test_with_b_zero_the_model_is_the_base_bit_for_bit(base):
    before = logits(base)
    add_lora(base)
    assert torch.equal(logits(base), before)


def test_seven_projections_of_every_layer_are_wrapped(base):
    assert add_lora(base) == 2 * 7
    wrapped = lora_layers(base)
    assert {name.split(".")[-1] for name in wrapped} == {*TARGETS.split(",")}
    assert {name.split(".")[2] for name in wrapped} == {"0", "1"}
    assert not any("lm_head" in name or "embed" in name or "norm" in name for name in wrapped)
    trained = {id(p) for p in lora_parameters(base)}
    assert {id(p) for p in base.parameters() if p.requires_grad} == trained and len(trained) == 28


def test_a_name_that_matches_nothing_is_an_error_and_wraps_nothing(base):
    with pytest.raises(ValueError, match="no nn.Linear is called gate, query in LlamaForCausalLM"):
        add_lora(base, "q_proj,query,gate")
    assert not lora_layers(base)


def test_only_the_adapters_move(base):
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    add_lora(base)
    optimizer = torch.optim.AdamW(lora_parameters(base), lr=0.1)
    for _ in range(2):
        base(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = {name.replace(".base.", "."): tensor for name, tensor in base.state_dict().items() if "lora_" not in name}
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert all(layer.lora_B.any() for layer in lora_layers(base).values())


def test_merged_equals_unmerged(base):
    add_lora(base)
    randomise(base)
    before = logits(base)
    plain = merge_lora(base)
    assert not lora_layers(plain) and type(plain.model.layers[0].self_attn.q_proj) is nn.Linear
    assert (logits(plain) - before).abs().max() < 1e-5


def test_adapters_follow_the_dtype_of_their_input_and_stay_float32(base):
    base.to(torch.bfloat16)
    add_lora(base)
    randomise(base)
    assert logits(base).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in lora_parameters(base))


@pytest.mark.parametrize("config, matrices, parameters, total", [
    (transformers.LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                              num_key_value_heads=8, vocab_size=128256), 224, 20_971_520, 8_030_261_248),
    (transformers.Qwen3Config(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
                              num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True),
     252, 16_515_072, 4_022_468_096)], ids=["Llama-3.1-8B", "Qwen3-4B"])
def test_the_papers_parameter_counts(config, matrices, parameters, total):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == total
    assert add_lora(model, r=8, alpha=16) == matrices
    assert sum(p.numel() for p in lora_parameters(model)) == parameters
    assert sum(8 * (m.base.in_features + m.base.out_features) for m in lora_layers(model).values()) == parameters


# --- In and out of files.

def test_adapters_come_back_from_their_state_dict(base):
    other = copy.deepcopy(base)
    add_lora(base)
    randomise(base)
    state = {name: tensor.clone() for name, tensor in lora_state_dict(base).items()}
    assert len(state) == 28 and state["model.layers.1.mlp.down_proj.lora_A"].shape == (8, 48)
    assert state["model.layers.0.self_attn.k_proj.lora_B"].shape == (16, 8)
    add_lora(other)
    load_lora(other, state)
    assert torch.equal(logits(other), logits(base))


def test_adapters_of_another_model_are_refused(base):
    add_lora(base, r=8)
    state = lora_state_dict(base)
    missing = dict(list(state.items())[1:])
    with pytest.raises(ValueError, match="for other layers: .*layers.0.self_attn.q_proj.lora_A"):
        load_lora(base, missing)
    with pytest.raises(ValueError, match="for other layers: .*'more'"):
        load_lora(base, {**state, "more": torch.zeros(1)})
    name = "model.layers.0.mlp.up_proj.lora_B"
    with pytest.raises(ValueError, match=rf"{name} has shape \(48, 4\), the model \(48, 8\)"):
        load_lora(base, {**state, name: state[name][:, :4]})


def test_peft_s_format_and_back(base, tmp_path):
    add_lora(base, "q_proj,down_proj", r=4, alpha=12)
    state = lora_state_dict(randomise(base))
    save_peft(str(tmp_path), state, 4, 12, "models/tiny-llama")
    with open(tmp_path / "adapter_config.json") as file:
        config = json.load(file)
    assert config["peft_type"] == "LORA" and config["target_modules"] == ["down_proj", "q_proj"]
    assert (config["r"], config["lora_alpha"]) == (4, 12)
    back, r, alpha, names = load_peft(str(tmp_path))
    assert (r, alpha, names) == (4, 12, ["down_proj", "q_proj"])
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("change", [
    dict(use_dora=True), dict(use_rslora=True), dict(bias="all"), dict(peft_type="IA3")])
def test_adapters_that_are_no_plain_lora_are_refused(base, tmp_path, change):
    add_lora(base)
    save_peft(str(tmp_path), lora_state_dict(base), 8, 16, "x")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match="holds no plain LoRA"):
        load_peft(str(tmp_path))


def test_peft_gives_the_same_logits(base, llama, tmp_path):
    peft = pytest.importorskip("peft")
    add_lora(base)
    save_peft(str(tmp_path), lora_state_dict(randomise(base)), 8, 16, llama)
    fresh = load_llm(llama, torch.device("cpu"))[0]
    assert not torch.allclose(logits(fresh), logits(base), atol=1e-2)                # the adapters do something
    theirs = peft.PeftModel.from_pretrained(fresh, str(tmp_path))
    assert (logits(theirs) - logits(base)).abs().max() < 1e-5


def test_stage_b_leaves_both_formats(after_training, llama):
    attached = load_llm("work/models/tiny-llama", torch.device("cpu"))[0]
    attach_lora(attached, "work/tiny/lora")
    state, r, alpha, names = load_peft("work/tiny/lora")
    assert (r, alpha) == (8, 16) and names == sorted(TARGETS.split(","))
    own = lora_state_dict(attached)
    assert own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)
    assert any(tensor.any() for name, tensor in own.items() if name.endswith("lora_B"))    # it has trained
