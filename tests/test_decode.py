"""Greedy decoding of a Llama: neither the batch nor the cache changes an answer (test_llm.py has the other LLMs)."""
import pytest
import torch
import transformers

from speech_llm import decode
from speech_llm.decode import generate


@torch.no_grad()
def decode_alone(llm, prompt, max_new_tokens):
    """Greedy decoding of one prompt (L, D) without a cache and without an end: all is computed anew for every token."""
    ids = []
    while len(ids) < max_new_tokens:
        embedded = llm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))
        ids.append(llm(inputs_embeds=torch.cat([prompt, embedded])[None]).logits[0, -1].argmax().item())
    return ids


@pytest.fixture(scope="module")
def decoded(llama):
    """A Llama, 40 prompts of 1 to 25 random vectors, and the Llama's first 12 tokens after each."""
    llm = transformers.AutoModelForCausalLM.from_pretrained(llama).eval()
    torch.manual_seed(0)
    lengths = [1, 25, 2, *torch.randint(1, 25, (37,)).tolist()]
    prompts = [0.3 * torch.randn(length, llm.config.hidden_size) for length in lengths]
    return llm, prompts, [decode_alone(llm, prompt, 12) for prompt in prompts]


def test_a_batch_is_each_alone_and_is_decoding_without_a_cache(decoded):
    llm, prompts, answers = decoded
    stops = {answers[0][2], answers[1][5], answers[2][0]}                   # several ends; the third answer is empty
    expected = [ids[:min([ids.index(stop) for stop in stops if stop in ids], default=12)] for ids in answers]
    lengths = [len(ids) for ids in expected]
    assert 12 in lengths and 0 in lengths and len(set(lengths)) >= 4        # some go on to the cap, others stop early
    assert generate(llm, prompts, 12, stops) == expected and generate(llm, prompts[:2], 0, stops) == [[], []]
    assert [generate(llm, [prompt], 12, stops)[0] for prompt in prompts] == expected


@pytest.mark.parametrize("positions, fewest, most", [(1, 40, 40), (60, 2, 39), (10 ** 6, 1, 1)])
def test_prompts_are_read_in_groups_and_finished_rows_leave_the_batch(decoded, monkeypatch, positions, fewest, most):
    """40 prompts in groups of at most so many positions: one after the other, those of like length, all at once."""
    llm, prompts, answers = decoded
    monkeypatch.setattr(decode, "PREFILL", positions)
    monkeypatch.setattr(decode, "PADDING", 10 ** 6)
    shapes = []                                                             # (rows, positions) of every forward pass
    hook = llm.model.register_forward_hook(lambda module, inputs, output: shapes.append(output[0].shape[:2]))
    assert generate(llm, prompts, 12, set()) == answers
    groups, steps = shapes[:-11], shapes[-11:]
    assert fewest <= len(groups) <= most and sum(rows for rows, _ in groups) == 40 and steps == [(40, 1)] * 11
    assert all(shape.numel() <= max(positions, shape[1]) for shape in groups)
    assert positions != 60 or sum(shape.numel() for shape in groups) < 1.2 * sum(map(len, prompts))      # with padding
    shapes.clear()
    ids = generate(llm, prompts, 12, {answers[0][2], answers[1][5]})
    hook.remove()
    rows = [rows for rows, _ in shapes[len(groups):]]
    assert rows == [sum(len(row) > n for row in ids) for n in range(11)]    # alive when token n + 2 is chosen
    everything = {token for row in answers for token in row}
    assert generate(llm, prompts, 12, everything) == [[]] * 40              # all stop at once
