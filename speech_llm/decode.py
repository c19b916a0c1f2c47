"""TODO"""
from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn

from speech_llm.batches import micro_batches


PREFILL = 2048                               # positions of prompts that are read at once (our choice)


def attend(module, query, key, value, mask, **given):
    """
    transformers' SDPA, which under a mask copies shared keys and values for every head. Not so for one new token: the
    heads (B, H, 1, d) that share a key become its queries (B, keys, H / keys, d).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    if query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, mask, **given)
    shared = query.reshape(len(query), key.shape[1], -1, query.shape[3])
    read = F.scaled_dot_product_attention(shared, key, value, attn_mask=mask, scale=given["scaling"])
    return read.reshape(query.transpose(1, 2).shape), None


def read_prompts(llm, prompts):
    """
    List of (L, D) prompt embeddings, read in groups of like length -> (their numbers in the order of what follows, mask
    (B, L), hidden states of the last positions (B, D), cache). Within a group prompts are padded on the right, which
    needs no mask; in the cache on the left, so that every row's last position is its newest token.
    """
    from transformers import DynamicCache
    order, hidden, parts, cache = [], [], [], DynamicCache(config=llm.config)
    for group in micro_batches([{"number": n, "length": len(p)} for n, p in enumerate(prompts)], PREFILL):
        own, part = [prompts[s["number"]] for s in group], DynamicCache(config=llm.config)
        states = llm.model(inputs_embeds=nn.utils.rnn.pad_sequence(own, batch_first=True), past_key_values=part,
                           use_cache=True).last_hidden_state                                         # (b, l, D)
        order, parts = order + [s["number"] for s in group], parts + [part]
        hidden += [row[len(p) - 1] for row, p in zip(states, own)]
    lengths, longest = [len(prompts[n]) for n in order], max(map(len, prompts))

    def joined(tensors):                     # (b, heads, l, head_dim) of each group -> (B, heads, L, head_dim)
        return torch.stack([F.pad(row[:, :length], (0, 0, longest - length, 0))
                            for row, length in zip(chain(*tensors), lengths)])
    for number, layer in enumerate(zip(*parts)):
        keys, values, *_ = zip(*layer)
        cache.update(joined(keys), joined(values), number)
    mask = [[0] * (longest - length) + [1] * length for length in lengths]
    return order, torch.tensor(mask, device=hidden[0].device), torch.stack(hidden), cache


@torch.no_grad()
def generate(llm, prompts, max_new_tokens, stop_ids):
    """
    Greedy decoding of a batch: list of (L, D) prompt embeddings -> list of new token ids, the stop token left out.
    A row that reaches max_new_tokens has that many ids. A finished row leaves the batch, so that one that loops does
    not hold up the others.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    AttentionInterface.register("attend", attend)
    AttentionMaskInterface.register("attend", sdpa_mask)
    llm.set_attn_implementation("attend")
    generated, (alive, mask, hidden, cache) = [[] for _ in prompts], read_prompts(llm, prompts)
    for left in reversed(range(max_new_tokens)):
        tokens = llm.lm_head(hidden).argmax(-1)                                                      # (B,)
        going = [n for n, token in enumerate(tokens.tolist()) if token not in stop_ids]
        if len(going) < len(alive):
            alive = [alive[n] for n in going]
            keep = torch.tensor(going, dtype=torch.long, device=tokens.device)
            tokens, mask = tokens[keep], mask[keep]
            if not alive:
                break
            cache.batch_select_indices(keep)
        for row, token in zip(alive, tokens.tolist()):
            generated[row].append(token)
        if left:
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
            hidden = llm.model(input_ids=tokens[:, None], position_ids=mask.sum(1, keepdim=True) - 1,
                               attention_mask=mask, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    return generated
