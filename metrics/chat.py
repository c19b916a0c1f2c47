"""
Chat LLMs that judge: loading, prompts, written replies (judge.py, speech_ifeval.py, pairwise.py).

    texts = replies("work/x/replies.jsonl", "google/gemma-3-27b-it", chats)

A chat is a list of {"role", "content"}, a system turn first if there is one; a reply is a text. Decoding is greedy (our
choice: the papers asked an API with its default sampling). Replies are kept in a file, so that a killed run loses one
batch, and the LLM is loaded only if a chat has no reply in the file yet.

Some LLMs write a thought before they answer. If the template opens a thought, the prompt closes it at once, so that the
answer begins with the next token. A thought that the LLM writes all the same is cut from the reply.
"""
import functools

import torch

from speech_llm.constants import pick_device
from speech_llm.llm import decode_text, end_ids
from speech_llm.resumable import resumable
from speech_llm.thoughts import NO_THOUGHT, close_thought
from speech_llm.turns import without_markers


MAX_NEW_TOKENS = 512        # of a reply: an explanation and a verdict, or a transcript (our choice)
BATCH = 16                  # chats answered together
CUT = "\ue000"              # a private character that no text has: where a template's output is cut


# --- Prompts.

def chat_text(tokenizer, chat):
    """Return a chat as the LLM's template writes it. A template without a system turn gets it in the user's turn."""
    from jinja2 import TemplateError
    render = functools.partial(tokenizer.apply_chat_template, add_generation_prompt=True, tokenize=False,
                               **NO_THOUGHT)
    try:
        return render(chat)
    except TemplateError:
        system, user, *rest = chat
        if system["role"] != "system":
            raise
        joined = {"role": "user", "content": f"{system['content'].strip()}\n\n{user['content']}"}
        return render([joined, *rest])


def encode_chat(tokenizer, chat, add_special_tokens=False):
    """Return the token ids of a chat; a turn marker inside somebody's words stays ordinary text."""
    chat = [{**turn, "content": CUT.join(without_markers(tokenizer, turn["content"].replace(CUT, "")))}
            for turn in chat]
    first, *others = close_thought(chat_text(tokenizer, chat)).split(CUT)
    ids = tokenizer(first, add_special_tokens=add_special_tokens)["input_ids"]
    return ids + [token for piece in others for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]


def pad_left(rows, pad, device):
    """Return lists of token ids as ids (B, L) and mask (B, L), padded on the left: the last token of a row is last."""
    length = max(map(len, rows))
    ids = [[pad] * (length - len(row)) + row for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


# --- Replies.

def load_chat(name, device):
    """
    Return (LLM, tokenizer) of a folder or a hub name, in eval mode.
    bfloat16 on a GPU (our choice), spread over all GPUs if there are several; float32 on the CPU. FileNotFoundError
    names the download. ValueError if a checkpoint is damaged or has no chat template.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    several = device.type == "cuda" and torch.cuda.device_count() > 1
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)     # no download unasked for
        llm, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32, local_files_only=True,
            output_loading_info=True, device_map="auto" if several else None)      # "auto" needs the package accelerate
        llm = llm if several else llm.to(device)
    except OSError as error:
        raise FileNotFoundError(f"the LLM {name} is not here; accept its licence on the hub and run: hf download {name}"
                                ) from error
    except torch.cuda.OutOfMemoryError:                  # eval.py scores with the other judges
        raise
    except Exception as error:                           # libraries have an error of their own for each kind of damage
        raise ValueError(f"the LLM {name} cannot be loaded ({error}); get it again") from error
    if info["missing_keys"]:                             # transformers leaves them random and goes on
        raise ValueError(f"the LLM {name} lacks {len(info['missing_keys'])} weights, such as "
                         f"{min(info['missing_keys'])}; get it again")
    if not tokenizer.chat_template:
        raise ValueError(f"{name} has no chat template: a judge must be an instructed model")
    # bergen pads with the first of these; padding is masked and changes nothing
    tokenizer.pad_token = tokenizer.bos_token or tokenizer.pad_token or tokenizer.eos_token
    return llm.eval(), tokenizer


@torch.no_grad()
def write_greedily(llm, tokenizer, ids, mask, max_new_tokens):
    """Return the new token ids, a list for each row of ids and mask (B, L)."""
    from transformers import GenerationConfig
    greedy = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id,
                              eos_token_id=llm.generation_config.eos_token_id)
    return llm.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)[:, ids.shape[1]:].tolist()


def write_replies(llm, tokenizer, chats):
    """Return a {"reply", "capped"} for each chat; capped: the reply was cut at MAX_NEW_TOKENS."""
    ids, mask = pad_left([encode_chat(tokenizer, chat) for chat in chats], tokenizer.pad_token_id, llm.device)
    return [{"reply": decode_text(tokenizer, row), "capped": not end_ids(llm) & {*row}}
            for row in write_greedily(llm, tokenizer, ids, mask, MAX_NEW_TOKENS)]


def replies(path, judge, chats):
    """
    Return the reply of the LLM `judge` to each chat, from the file `path` or a new one; equal chats are answered once.
    Print how many replies were cut at MAX_NEW_TOKENS. SystemExit if the file is damaged or another LLM's.
    """
    @functools.cache
    def llm():
        return load_chat(judge, pick_device())
    entries = resumable(path, {"judge": judge, "max_new_tokens": MAX_NEW_TOKENS}, chats,
                        lambda batch: write_replies(*llm(), batch), BATCH, f"judge {judge}",
                        size=lambda chat: sum(len(turn["content"]) for turn in chat))
    print(f"{judge}: {len(entries)} replies, {sum(entry['capped'] for entry in entries)} of them cut at "
          f"{MAX_NEW_TOKENS} tokens, in {path}")
    return [entry["reply"] for entry in entries]
