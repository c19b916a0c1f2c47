"""
Greedy decoding of a batch. Every row gets the same answer as in a batch of one.

Finished rows leave the batch, and prompts are read in groups of like length, so that neither padding nor a row that
loops costs the others much.
"""
from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn

from speech_llm.batches import PADDING, cut_by_length
from speech_llm.llm import logits_at, ropes


PREFILL = 2048               # positions of prompts that are read at once (our choice)


def attend(module, query, key, value, attention_mask, **options):
    """
    Return transformers' SDPA attention, but for one new token without copies of keys and values. In grouped-query
    attention transformers copies them for every query head if there is a mask. Here the query heads (B, H, 1, d) that
    share a key head are folded into the query axis, (B, key heads, H / key heads, d).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    if query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    shared = query.reshape(len(query), key.shape[1], -1, query.shape[3])
    output = F.scaled_dot_product_attention(shared, key, value, attn_mask=attention_mask, scale=options["scaling"])
    return output.reshape(len(query), 1, query.shape[1], -1), None         # (B, 1, H, width of a value)


def read_prompts(llm, prompts):
    """
    Read a list of (L, D) prompt embeddings in groups of like length. Return (their numbers in the order of the rest,
    mask (B, L), logits after each prompt (B, V), cache). Within a group prompts are padded on the right, which needs no
    mask; in the cache they are padded on the left, so that every row's last position is its newest token.
    """
    from transformers import DynamicCache
    order, logits, caches = [], [], []
    for numbers in cut_by_length(range(len(prompts)), lambda n: len(prompts[n]), PREFILL, PADDING):
        inputs = nn.utils.rnn.pad_sequence([prompts[n] for n in numbers], batch_first=True)          # (b, l, D)
        lengths = torch.tensor([len(prompts[n]) for n in numbers], device=inputs.device)
        caches.append(DynamicCache())        # of all positions: a window is cut by the mask, after the padding
        logits.append(logits_at(llm, torch.arange(len(numbers), device=inputs.device), lengths - 1,
                                inputs_embeds=inputs, past_key_values=caches[-1], use_cache=True))
        order += numbers
    lengths, longest, cache = [len(prompts[n]) for n in order], max(map(len, prompts)), DynamicCache()

    def joined(tensors):                     # (b, heads, l, head_dim) of each group -> (B, heads, L, head_dim)
        return torch.stack([F.pad(row[:, :length], (0, 0, longest - length, 0))
                            for row, length in zip(chain(*tensors), lengths)])
    for number, layer in enumerate(zip(*caches)):
        keys, values, *_ = zip(*layer)
        cache.update(joined(keys), joined(values), number)
    mask = [[0] * (longest - length) + [1] * length for length in lengths]
    return order, torch.tensor(mask, device=logits[0].device), torch.cat(logits), cache


def depends_on_others(config, longest):
    """Return whether LongRoPE reads short rows otherwise beside a row of so many positions than alone."""
    return any(rope.get("rope_type") == "longrope" and longest > rope["original_max_position_embeddings"]
               for rope in ropes(config))


@torch.no_grad()
def generate(llm, prompts, max_new_tokens, stop_ids):
    """
    Decode a batch greedily: list of (L, D) prompt embeddings -> list of new token ids, the stop token left out. A row
    that reaches max_new_tokens has that many ids. A finished row leaves the batch.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    if len(prompts) > 1 and depends_on_others(llm.config, max(map(len, prompts)) + max_new_tokens):
        return [generate(llm, [prompt], max_new_tokens, stop_ids)[0] for prompt in prompts]
    if llm.config._attn_implementation == "sdpa":
        AttentionInterface.register("attend", attend)
        AttentionMaskInterface.register("attend", sdpa_mask)
        llm.set_attn_implementation("attend")
    generated, (alive, mask, logits, cache) = [[] for _ in prompts], read_prompts(llm, prompts)
    for remaining in reversed(range(max_new_tokens)):
        tokens = logits.argmax(-1)                                                                   # (B,)
        going = [n for n, token in enumerate(tokens.tolist()) if token not in stop_ids]
        if len(going) < len(alive):
            alive = [alive[n] for n in going]
            if not alive:
                break
            keep = torch.tensor(going, device=tokens.device)
            tokens, mask = tokens[keep], mask[keep]
            cache.batch_select_indices(keep)
        for row, token in zip(alive, tokens.tolist()):
            generated[row].append(token)
        if remaining:
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
            logits = llm(input_ids=tokens[:, None], position_ids=mask.sum(1, keepdim=True) - 1, attention_mask=mask,
                         past_key_values=cache, use_cache=True).logits[:, -1]                        # (B, V)
    return generated
