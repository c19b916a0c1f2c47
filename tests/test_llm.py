"""Any chat LLM: its loss, its batches and its answers are those of transformers, and what cannot be so is refused."""
import json
import shutil

import httpx
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError
from test_bad_input import refused
from test_hub import write_omni

from speech_llm import decode
from speech_llm.batches import Batch
from speech_llm.decode import generate
from speech_llm.llm import decode_text, load_llm, load_table, loading, stop_ids
from speech_llm.prompts import encode_prompt
from train_projector import answer_loss

CPU = torch.device("cpu")
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             initializer_range=0.5, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2)
VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28,
              patch_size=14)
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [9.0] * 4,
        "factor": 4.0}
NARROW = dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)     # 16 wide keys
FAMILIES = {  # what each does that a Llama does not: a window of four tokens, scaled logits, scaled embeddings
    "Llama": {}, "Llama of one key": {"num_key_value_heads": 1}, "Llama of four keys": {"num_key_value_heads": 4},
    "Mistral": {"sliding_window": 4}, "Qwen2": {}, "Qwen3": {"head_dim": 16}, "SmolLM3": {},
    "Phi3": {"sliding_window": 4}, "Phi3 of long texts": {"rope_parameters": LONG, "max_position_embeddings": 64,
                                                 "original_max_position_embeddings": 24},
    "Gemma2": {"sliding_window": 4, "head_dim": 8, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0},
    "Gemma3Text": {"sliding_window": 4, "head_dim": 8}, "Gemma3": {"sliding_window": 4, "head_dim": 8},
    "Cohere": {"logit_scale": 0.125}, "Cohere2": {"sliding_window": 4, "logit_scale": 0.25},
    "Granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.5},
    "Afmoe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "DeepseekV3": {**NARROW, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
                   "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
}


def save_llm(folder, llama, family, **options):
    """Save a random LLM of a family with the tiny Llama's tokenizer -> its folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    sizes = {**SIZES, "vocab_size": len(tokenizer), **options}
    if family == "Gemma3":                                                 # with eyes, as on the hub
        config = transformers.Gemma3Config(text_config=sizes, vision_config=VISION, mm_tokens_per_image=4,
                                           tie_word_embeddings=False)
    else:
        config = getattr(transformers, f"{family}Config")(**sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():                                  # norms and scales begin as 1 or 0
            weight += 0.1 * torch.randn_like(weight)
    model.to(torch.bfloat16 if family == "Qwen3" else torch.float32)
    model.save_pretrained(folder, max_shard_size="20KB" if family == "Qwen3" else "1GB")          # in several files
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def llm(request, llama, tmp_path_factory):
    family = request.param.split()[0]
    folder = save_llm(tmp_path_factory.mktemp(family), llama, family, **FAMILIES[request.param])
    model, table = load_llm(folder, CPU)[0], load_table(folder, CPU)
    assert model.dtype == table.dtype == torch.float32 and torch.equal(table, model.get_input_embeddings().weight)
    return model


def sample(before, speech, after, answer):
    """Return what the LLM reads of a row whose frames are token ids, or of a text."""
    frames = np.array(speech, np.float32)[:, None] if speech else None                              # (T, 1)
    return {"before": before, "speech": speech, "frames": frames, "slots": len(speech), "after": after,
            "answer": answer}


SAMPLES = [sample([5, 6, 7], [8, 9, 10, 11], [12], [13, 14, 2]), sample([5], [20], [21, 22], [2]),
           sample([30] * 9, [31, 32], [33, 34, 35], [36, 37, 38, 39, 2]), sample([40, 41, 42, 43], [], [], [44, 2])]


def test_the_loss_is_transformers_own(llm):
    """A frame that becomes a token's vector is read as that token; the loss falls on the answers, not on padding."""
    def lookup(frames, lengths):
        """A perfect projector: each frame is a token's number and becomes that token's row of the LLM's table."""
        return llm.get_input_embeddings().weight[frames[..., 0].long()]
    losses = []
    for s in SAMPLES:
        ids = s["before"] + s["speech"] + s["after"] + s["answer"]
        labels = [-100] * (len(ids) - len(s["answer"])) + s["answer"]
        mean = llm(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        losses.append(mean * len(s["answer"]))
        assert torch.allclose(answer_loss(llm, lookup, Batch.of([s]))[0], losses[-1], rtol=1e-4)
    assert torch.allclose(answer_loss(llm, lookup, Batch.of(SAMPLES))[0], sum(losses), rtol=1e-4)


def test_greedy_decoding_is_transformers_own(llm):
    """Prompts of 1 to 19 tokens, longer than a window of four and than LongRoPE's short texts, alone and together."""
    rng = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 600, (length,), generator=rng) for length in (19, 1, 7, 12, 2)]
    embedded = [llm.get_input_embeddings()(prompt) for prompt in prompts]
    expected = [llm.generate(input_ids=prompt[None], do_sample=False, max_new_tokens=12)[0, len(prompt):].tolist()
                for prompt in prompts]
    expected = [ids[:-1] if ids[-1] == 2 else ids for ids in expected]
    alone = [generate(llm, [prompt], 12, {2})[0] for prompt in embedded]
    assert generate(llm, embedded, 12, {2}) == alone
    if "longrope" not in str(llm.config):                                  # transformers starts anew at the border
        assert alone == expected


def test_a_batch_is_each_alone_is_read_in_groups_and_finished_rows_leave_it(llama, monkeypatch):
    """40 prompts of 1 to 25 random vectors, those of like length together, in groups of at most 60 positions."""
    monkeypatch.setattr(decode, "PREFILL", 60)
    monkeypatch.setattr(decode, "PADDING", 10 ** 6)
    llm = load_llm(llama, CPU)[0]
    torch.manual_seed(0)
    lengths = [1, 25, 2, *torch.randint(1, 25, (37,)).tolist()]
    prompts = [0.3 * torch.randn(length, llm.config.hidden_size) for length in lengths]
    answers = [generate(llm, [prompt], 12, set())[0] for prompt in prompts]
    stops = {answers[0][2], answers[1][5], answers[2][0]}                   # several ends; the third answer is empty
    expected = [ids[:min([ids.index(stop) for stop in stops if stop in ids], default=12)] for ids in answers]
    sizes = {len(ids) for ids in expected}
    assert {0, 12} < sizes and len(sizes) >= 4                              # some go on to the cap, others stop early

    shapes = []                                                             # (rows, positions) of every forward pass
    hook = llm.model.register_forward_hook(lambda module, inputs, output: shapes.append(output[0].shape[:2]))
    assert generate(llm, prompts, 12, stops) == expected
    hook.remove()
    groups, steps = shapes[:-11], shapes[-11:]
    assert 2 <= len(groups) < 40 and sum(rows for rows, _ in groups) == 40
    assert all(shape.numel() <= 60 for shape in groups)
    assert sum(shape.numel() for shape in groups) < 1.2 * sum(lengths)                               # with padding
    assert [rows for rows, _ in steps] == [sum(len(ids) > n for ids in expected) for n in range(11)]       # are alive
    assert generate(llm, prompts, 12, {token for ids in answers for token in ids}) == [[]] * 40            # all stop
    assert generate(llm, prompts[:2], 0, stops) == [[], []]


@pytest.mark.parametrize("family, options, says", [
    ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
     "under dynamic RoPE scaling a row's answer depends on the rows beside it"),
    ("Mamba", {"state_size": 4}, "layers of the kind linear_attention cannot be decoded in batches"),
    ("Llama4Text", {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2,
                    "layer_types": ["chunked_attention", "full_attention"]}, "of the kind chunked_attention"),
    ("Gemma4Text", {"head_dim": 8, "global_head_dim": 8, "vocab_size_per_layer_input": 600, "num_kv_shared_layers": 0,
                    "hidden_size_per_layer_input": 8}, "reads more of a token than its embedding"),
    ("Gemma3nText", {"head_dim": 8, "vocab_size_per_layer_input": 600, "num_kv_shared_layers": 0,
                     "activation_sparsity_pattern": [0.0, 0.0]}, "reads more of a token than its embedding")])
def test_an_llm_that_would_answer_wrongly_is_refused_by_name(llama, tmp_path, family, options, says):
    folder = save_llm(tmp_path / "llm", llama, family, **options)
    refused(load_llm, folder, CPU, names=folder, says=says)


def test_a_gated_model_says_where_its_licence_is():
    gated = GatedRepoError("403", response=httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co")))
    with pytest.raises(ValueError, match="the checkpoint org/gated cannot be loaded .*; accept its licence at "
                                         "https://huggingface.co/org/gated, then run: hf auth login"), \
            loading("org/gated"):
        raise OSError("You are trying to access a gated repo.") from gated


@pytest.mark.parametrize("path, says", [("nobody/never-downloaded", "run: hf download nobody/never-downloaded"),
                                        ("work/models/tiny-llama", "there is no such folder")])
def test_a_model_that_was_never_there_is_not_to_be_got_again(path, says, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused(load_llm, path, CPU, names=f"the checkpoint {path} cannot be loaded", says=says)
    assert "again" not in message and len(message) < 700


@pytest.mark.parametrize("written, answer", [
    ("<think>No? But Anna</think> Yes. ", "Yes."), ("<think>No, I", ""),
    ("<|START_THINKING|>No?<|END_THINKING|>Yes", "Yes"), ("<|START_THINKING|>No, I", ""),       # special tokens
    ("<|channel>thought\nNo?<channel|>Yes", "Yes"), ("\u25c1think\u25b7No?\u25c1/think\u25b7Yes", "Yes"),
    ("<|channel|>analysis<|message|>No?<|end|><|start|>assistant<|channel|>final<|message|>Yes", "Yes"),  # gpt-oss
    ("[THINK]a[/THINK] b [THINK]c[/THINK]d", "d"), ("<think>a</think>b <think>c", "b"),
    ("No thought at all: 3 < 5", "No thought at all: 3 < 5")])
def test_thoughts_are_cut_from_answers(llama, written, answer):
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer.add_special_tokens({"additional_special_tokens": [
        "<|START_THINKING|>", "<|END_THINKING|>", "<|channel>", "<channel|>", "<|channel|>", "<|message|>"]})
    assert decode_text(tokenizer, tokenizer(written + "<|eot_id|>", add_special_tokens=False)["input_ids"]) == answer


def test_stop_ids_are_all_that_end_a_turn(llama):
    model, tokenizer = load_llm(llama, CPU)
    end, *others = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"])
    assert stop_ids(model, tokenizer) == {end, *others}
    for given, expected in ((None, {end}), (others[0], {end, others[0]})):
        model.generation_config.eos_token_id = given
        assert stop_ids(model, tokenizer) == expected


def test_the_template_and_the_table_of_hub_models_lie_where_they_may(llama, tmp_path):
    """The template beside the processor; Omni's table in its thinker, and its turn needs its marks."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    shutil.copytree(llama, tmp_path / "llm")
    (tmp_path / "llm" / "chat_template.jinja").unlink()
    (tmp_path / "llm" / "chat_template.json").write_text(json.dumps({"chat_template": tokenizer.chat_template}))
    assert load_llm(str(tmp_path / "llm"), CPU)[1].chat_template == tokenizer.chat_template
    thinker, _ = write_omni(tmp_path)
    assert torch.equal(load_table(str(tmp_path), CPU), thinker.get_input_embeddings().weight)
    row = {"id": "x", "task": "ASR", "language": "en", "transcript": "Who has a cat?"}
    refused(encode_prompt, tokenizer, row, False, "omni", says="prompt 'omni': the tokenizer of")
