"""Greedy decoding of a Llama: neither the batch nor the cache changes an answer (test_llm.py has the other LLMs)."""
import pytest
import torch
import transformers

from speech_llm import decode
from speech_llm.decode import generate


@pytest.fixture(scope="module")
def llm(llama):
    return transformers.AutoModelForCausalLM.from_pretrained(llama).eval()


@torch.no_grad()
def decode_alone(llm, prompt, max_new_tokens):
    """Greedy decoding of one prompt (L, D) without a cache and without an end: all is computed anew for every token."""
    ids = []
    while len(ids) < max_new_tokens:
        embedded = llm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))
        ids.append(llm(inputs_embeds=torch.cat([prompt, embedded])[None]).logits[0, -1].argmax().item())
    return ids


@pytest.fixture(scope="module")
def decoded(llm):
    """40 prompts of 1 to 25 random vectors, and the model's first 12 tokens after each."""
    torch.manual_seed(0)
    lengths = [1, 25, 2, *torch.randint(1, 25, (37,)).tolist()]
    prompts = [0.3 * torch.randn(length, llm.config.hidden_size) for length in lengths]
    return prompts, [decode_alone(llm, prompt, 12) for prompt in prompts]


def test_a_batch_is_each_alone_and_is_decoding_without_a_cache(llm, decoded):
    prompts, answers = decoded
    stops = {answers[0][2], answers[1][5], answers[2][0]}                   # several ends; the third answer is empty
    expected = [ids[:min([ids.index(stop) for stop in stops if stop in ids], default=12)] for ids in answers]
    lengths = [len(ids) for ids in expected]
    assert 12 in lengths and 0 in lengths and len(set(lengths)) >= 4        # some go on to the cap, others stop early
    assert generate(llm, prompts, 12, stops) == expected
    assert [generate(llm, [prompt], 12, stops)[0] for prompt in prompts] == expected


@pytest.mark.parametrize("positions, groups", [(1, 40), (60, None), (10 ** 6, 1)])
def test_prompts_read_in_groups_are_answered_alike(llm, decoded, monkeypatch, positions, groups):
    """Forty prompts of 1 to 25 vectors, one after the other, in groups of like length, and all at once."""
    prompts, answers = decoded
    monkeypatch.setattr(decode, "PREFILL", positions)
    monkeypatch.setattr(decode, "PADDING", 10 ** 6)
    shapes = []
    hook = llm.model.register_forward_pre_hook(
        lambda module, args, inputs: shapes.append(inputs["inputs_embeds"].shape[:2].numel()
                                                   if inputs.get("inputs_embeds") is not None else 0), with_kwargs=True)
    assert generate(llm, prompts, 12, set()) == answers
    hook.remove()
    sizes = [size for size in shapes if size]
    assert len(sizes) == (groups or len(sizes)) and len(shapes) == len(sizes) + 11
    assert positions == 1 or max(sizes) <= positions
    assert positions != 60 or 1 < len(sizes) < 40 and sum(sizes) < 1.2 * sum(map(len, prompts))


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_heads_that_share_keys_attend_as_they_do_without_a_cache(shared):
    """So many of four heads on one key: each prompt's tokens, padded or not."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4 // shared, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    prompts = [torch.randn(length, 32) for length in (9, 1, 4, 6, 2)]
    assert generate(model, prompts, 10, set()) == [decode_alone(model, prompt, 10) for prompt in prompts]


def test_the_cap_is_respected(llm, decoded):
    prompts, answers = decoded
    assert generate(llm, prompts[:6], 3, set()) == [ids[:3] for ids in answers[:6]]
    assert generate(llm, prompts[:2], 0, set()) == [[], []]


def test_finished_rows_leave_the_batch(llm, decoded, monkeypatch):
    """The rows that the model is run on fall from all to the few that never stop."""
    monkeypatch.setattr(decode, "PADDING", 10 ** 6)                        # all prompts are read at once
    prompts, answers = decoded
    sizes = []
    hook = llm.model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output[0])))
    ids = generate(llm, prompts, 12, {answers[0][2], answers[1][5]})
    hook.remove()
    assert sizes[0] == 40 and sizes == sorted(sizes, reverse=True) and sizes[-1] < 40
    assert sizes[-1] == sum(len(row) >= 11 for row in ids)                  # alive when the twelfth token is chosen
    everything = {token for row in answers for token in row}
    assert generate(llm, prompts, 12, everything) == [[]] * 40              # all stop at once
