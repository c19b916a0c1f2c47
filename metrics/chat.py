"""
A chat LLM that writes its replies: what the judges that explain themselves share (speech_ifeval.py, pairwise.py).

    replies = kept_replies("work/x/replies.jsonl", "google/gemma-3-27b-it", chats)

A chat is a list of {"role", "content"}, a system turn first where there is one; a reply is a text. Decoding is greedy
(our choice: the papers asked an API, with its default sampling). The LLM is a folder or a hub name, loaded as
metrics/judge.py loads one, and only if a chat has no reply in the file yet: a killed run loses one batch.
"""
import json
import os

from speech_llm.turns import without_markers


MAX_NEW_TOKENS = 512        # of a reply: an explanation and a verdict, or a transcript (our choice)
BATCH = 16                  # chats answered together
CUT = "\ue000"              # a private character that no text has: where a template's output is cut


def load_chat(name):
    """(LLM, tokenizer) of a folder or a hub name that is here already; errors as metrics.judge.load_judge's."""
    import torch
    from metrics.judge import load_judge
    return load_judge(name, "text", torch.device("cuda" if torch.cuda.is_available() else "cpu")).args


def chat_text(tokenizer, chat):
    """A chat as the LLM's template writes it; a template without a system turn gets it before the user's words."""
    from jinja2 import TemplateError
    try:
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except TemplateError:
        system, user, *rest = chat
        if system["role"] != "system":
            raise
        joined = {"role": "user", "content": f"{system['content'].strip()}\n\n{user['content']}"}
        return tokenizer.apply_chat_template([joined, *rest], add_generation_prompt=True, tokenize=False)


def encode_chat(tokenizer, chat, add_special_tokens=False):
    """Token ids of a chat as its template writes it; a turn marker inside somebody's words stays ordinary text."""
    chat = [{**turn, "content": CUT.join(without_markers(tokenizer, turn["content"].replace(CUT, "")))}
            for turn in chat]
    first, *others = chat_text(tokenizer, chat).split(CUT)
    ids = tokenizer(first, add_special_tokens=add_special_tokens)["input_ids"]
    return ids + [token for piece in others for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]


def write(llm, tokenizer, chats):
    """-> a {"reply", "capped"} for each chat: whether the reply was cut at MAX_NEW_TOKENS."""
    import torch
    from transformers import GenerationConfig
    rows = [encode_chat(tokenizer, chat) for chat in chats]
    length, pad = max(map(len, rows)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=llm.device)             # (B, L)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=llm.device)
    ends = llm.generation_config.eos_token_id
    greedy = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=pad, eos_token_id=ends)
    with torch.no_grad():
        written = llm.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)[:, length:].tolist()
    ends = {*(ends if isinstance(ends, list) else [ends])}
    return [{"reply": tokenizer.decode(row, skip_special_tokens=True).strip(), "capped": not ends & {*row}}
            for row in written]


# --- Replies that are kept.

def read_kept(path, settings):
    """{chat as JSON: {"reply", "capped"}} that earlier runs left; a line cut short by a kill is cut off."""
    if not os.path.exists(path):
        return {}
    done, good = {}, 0
    with open(path, "rb+") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line.decode("utf-8"))
                if number == 1 and entry != settings:
                    raise SystemExit(f"{path} was made with {entry}, now it is {settings}; remove it, or choose "
                                     "another --out")
                if number > 1:
                    done[as_key(entry["chat"])] = {"reply": entry["reply"], "capped": entry["capped"]}
            except (ValueError, KeyError, TypeError, RecursionError):
                raise SystemExit(f"{path} line {number} is damaged; remove the file and run the same command again"
                                 ) from None
            good += len(line)
        file.truncate(good)
    return done


def as_key(chat):
    return json.dumps(chat, ensure_ascii=False)


def kept_replies(path, judge, chats):
    """
    The LLM `judge`'s reply to each chat, kept in `path`; equal chats are answered once. Prints how many were cut.
    SystemExit if the file is damaged or another LLM's.
    """
    from tqdm import tqdm
    settings = {"judge": judge, "max_new_tokens": MAX_NEW_TOKENS}
    done, llm = read_kept(path, settings), None
    order = sorted({as_key(chat): chat for chat in chats}.items(), key=lambda pair: (len(pair[0]), pair[0]))
    batches = [order[i:i + BATCH] for i in range(0, len(order), BATCH)]      # the same ones after a kill
    batches = [batch for batch in batches if any(key not in done for key, _ in batch)]
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        if not file.tell():
            file.write(json.dumps(settings) + "\n")
        for batch in tqdm(batches, desc=f"judge {judge}", unit=f" x{BATCH}", disable=not batches):
            llm = llm or load_chat(judge)
            replies = write(*llm, [chat for _, chat in batch])
            file.write("".join(json.dumps({"chat": chat, **reply}, ensure_ascii=False) + "\n"
                               for (_, chat), reply in zip(batch, replies)))
            file.flush()
            done |= {key: reply for (key, _), reply in zip(batch, replies)}
    found = [done[as_key(chat)] for chat in chats]
    print(f"{judge}: {len(found)} replies, {sum(reply['capped'] for reply in found)} of them cut at {MAX_NEW_TOKENS} "
          f"tokens, in {path}")
    return [reply["reply"] for reply in found]
