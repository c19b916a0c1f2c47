"""The LoRA layer: exact where it should be exact, the papers' counts, peft's format, and the merged LLM."""
import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_bad_input import refused
from torch import nn

from merge_sft import load_speech_llm
from speech_llm.constants import read_page
from speech_llm.llm import load_llm
from speech_llm.stage import open_stage
from tests.bench import LLAMA, QWEN
from train_lora import (LoRALinear, TARGETS, add_lora, attach_lora, load_lora, lora_layers, lora_parameters,
                        lora_state_dict, merge_lora, save_peft, scale_lora)

IDS = torch.tensor([[1, 5, 77, 200, 31, 8]])
CPU = torch.device("cpu")


@pytest.fixture
def base(llama):
    return load_llm(llama, CPU)[0]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def randomise(model):
    """Return a model with adapters as after training: B is no longer zero."""
    torch.manual_seed(1)
    for p in lora_parameters(model):
        nn.init.normal_(p.data, std=0.1)
    return model


def test_y_is_wx_plus_alpha_over_r_b_a_x_and_begins_with_a_kaiming_uniform_and_b_zero():
    layer = LoRALinear(nn.Linear(400, 30), r=8, alpha=16)
    assert 0.045 < layer.lora_A.abs().max() <= 0.05                                # 1 / sqrt(400)
    assert layer.lora_A.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.05)
    assert not layer.lora_B.any() and layer.scale == 2.0
    layer = LoRALinear(nn.Linear(2, 2, bias=False), r=1, alpha=2)
    layer.base.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    layer.lora_A.data, layer.lora_B.data = torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0], [0.0]])
    assert layer(torch.tensor([1.0, 4.0])).tolist() == [1 + 2 * 3 * 5, 4]          # x + 2 B (1 + 4)


def test_seven_projections_of_every_layer_are_wrapped_and_begin_as_the_base_bit_for_bit(base):
    before = logits(base)
    refused(add_lora, base, "q_proj,query,gate", says="no nn.Linear is called gate, query in LlamaForCausalLM")
    assert not lora_layers(base) and add_lora(base) == 2 * 7
    assert torch.equal(logits(base), before)
    wrapped = lora_layers(base)
    assert {name.split(".")[-1] for name in wrapped} == {*TARGETS.split(",")}
    assert {name.split(".")[2] for name in wrapped} == {"0", "1"}
    trained = {id(p) for p in lora_parameters(base)}
    assert {id(p) for p in base.parameters() if p.requires_grad} == trained and len(trained) == 28


def test_only_the_adapters_move_and_they_stay_float32_in_a_bfloat16_llm(base):
    add_lora(base.to(torch.bfloat16))
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    optimizer = torch.optim.AdamW(lora_parameters(base), lr=0.1)
    for _ in range(2):
        base(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = base.state_dict()
    assert logits(base).dtype == torch.bfloat16 and all(p.dtype == torch.float32 for p in lora_parameters(base))
    assert all(torch.equal(after[name], before[name]) is ("lora_" not in name) for name in before)


AYA = transformers.CohereConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                                num_key_value_heads=8, vocab_size=256_000)
LISTENERS = read_page("listeners")["merge_sft"]


@pytest.mark.parametrize("config, r, targets, matrices, parameters, total", [
    (transformers.LlamaConfig(**LLAMA), 8, TARGETS, 224, 20_971_520, 8_030_261_248),
    (transformers.Qwen3Config(**QWEN), 8, TARGETS, 252, 16_515_072, 4_022_468_096),
    (AYA, LISTENERS["random_r"], LISTENERS["random_targets"], 64, 27_262_976, 8_028_033_024)],
    ids=["Llama-3.1-8B", "Qwen3-4B", "Aya-Expanse-8B"])
def test_parameter_counts_of_the_papers(config, r, targets, matrices, parameters, total):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == total
        assert add_lora(model, targets, r, alpha=16) == matrices
    assert sum(p.numel() for p in lora_parameters(model)) == parameters


def test_adapters_come_back_and_are_written_in_the_format_of_peft(base, tmp_path):
    other = copy.deepcopy(base)
    add_lora(base, "q_proj,down_proj", r=4, alpha=12)
    state = {name: tensor.clone() for name, tensor in lora_state_dict(randomise(base)).items()}
    assert len(state) == 2 * 2 * 2 and state["model.layers.1.mlp.down_proj.lora_A"].shape == (4, 48)
    add_lora(other, "q_proj,down_proj", r=4, alpha=12)
    load_lora(other, state)
    assert torch.equal(logits(other), logits(base))
    save_peft(str(tmp_path), state, 4, 12, "models/tiny-llama")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 12)
    assert config["target_modules"] == ["down_proj", "q_proj"]
    back = load_file(tmp_path / "adapter_model.safetensors")
    assert back.keys() == {f"base_model.model.{name}.weight" for name in state}
    assert all(torch.equal(back[f"base_model.model.{name}.weight"], state[name]) for name in state)


@pytest.mark.parametrize("out", ["lora", "merged"])
def test_peft_reads_the_adapters_of_b_and_c(after_training, out):
    """The same logits; and the adapters do something."""
    peft = pytest.importorskip("peft")
    ours, fresh = (load_llm("work/models/tiny-llama", CPU)[0] for _ in range(2))
    attach_lora(ours, open_stage(f"work/tiny/{out}"))
    plain = logits(fresh)
    theirs = peft.PeftModel.from_pretrained(fresh, f"work/tiny/{out}")
    assert (logits(theirs) - logits(ours)).abs().max() < 1e-5 < (plain - logits(ours)).abs().max()


def test_strength_0_is_the_base_llm_1_the_trained_one_and_merged_equals_unmerged(base):
    plain = logits(base)
    add_lora(base)
    trained = logits(randomise(base))
    scale_lora(base, 0.0)
    assert torch.equal(logits(base), plain)
    scale_lora(base, 1.0)
    assert torch.equal(logits(base), trained) and not torch.allclose(trained, plain, atol=1e-2)
    merged = merge_lora(base)
    assert not lora_layers(merged) and type(merged.model.layers[0].self_attn.q_proj) is nn.Linear
    assert (logits(merged) - trained).abs().max() < 1e-5


@pytest.mark.parametrize("one, other, says", [
    ("lm_head", "model.embed_tokens", "lm_head shares its weight with the input embeddings"),
    ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj", "q_proj shares its weight with another")])
def test_a_layer_that_shares_its_weight_is_not_merged(base, one, other, says):
    base.get_submodule(one).weight = base.get_submodule(other).weight
    add_lora(base, "v_proj," + one.split(".")[-1])
    before = logits(randomise(base))
    refused(merge_lora, base, says=says)
    assert torch.equal(logits(base), before)


def test_the_llm_of_c_with_merged_adapters_is_a_hub_checkpoint(after_training, run_stage, capsys):
    """merge_sft.py --export: plain transformers loads it and gives the logits of C's LLM."""
    run_stage("merge_sft", "--export", "exported")
    assert "with its adapters merged is in exported" in capsys.readouterr().out
    merged = transformers.AutoModelForCausalLM.from_pretrained("exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained("exported")
    llm, own_tokenizer, _ = load_speech_llm("work", open_stage("work/tiny/merged"), CPU)
    assert (logits(merged) - logits(llm)).abs().max() < 1e-5
    assert tokenizer.get_vocab() == own_tokenizer.get_vocab()
