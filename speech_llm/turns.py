"""
The turns of a chat: what a language model reads around the user's words, and how its answer ends.

    turn = turn_of(tokenizer)             # turn.head, the user's words, turn.tail, the answer, turn.end
    tokenize(tokenizer, turn.head, "Who sleeps?", turn.tail)          # token ids of a prompt

A turn is what the tokenizer's chat template writes, with the system text that the template inserts: the LLM was tuned
with it (our choice). Llama's block of dates alone is left out, as the 2025 system has it. A tokenizer without a
template has the published format whose markers are its tokens. Words that a user, a corpus or a model wrote are never
trusted: a turn marker inside them stays ordinary text.
"""
import functools
import re
import sys
from datetime import date
from typing import NamedTuple

from speech_llm.resumable import is_first
from speech_llm.thoughts import NO_THOUGHT, after_thought, close_thought


CHAT = {  # the published formats: before the user's turn, between user and assistant, end of turn
    "llama": ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
              "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "qwen3": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "cohere": ("<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
               "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
}
# the system block of Llama-3's template: when the LLM's knowledge ends, and which day it is
DATES = re.compile(r"<\|start_header_id\|>system<\|end_header_id\|>\s*Cutting Knowledge Date:.*?<\|eot_id\|>", re.S)
DAY = date(2024, 7, 26)             # what a template writes as today (Llama-3.1's default): prompts must not change
USER, ANSWER = "\ue000", "\ue001"   # private characters that stand for the user's words and the answer in a template


class Turn(NamedTuple):
    """Text around the user's words and around the answer; `lead` is the space that a template puts before an answer."""
    head: str
    tail: str
    end: str
    lead: str = ""


@functools.cache
def markers(tokenizer):
    """Return a pattern of all added tokens that hold a letter or a digit; many turn markers are not called special."""
    words = sorted((word for word in tokenizer.get_added_vocab() if len(word) > 1 and re.search(r"[^\W_]", word)),
                   key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words)) or "(?!)")


def without_markers(tokenizer, text):
    """
    Return the pieces of a text that a user, a corpus or a model wrote, cut after the first character of each marker.
    Tokenised one by one, the pieces stay ordinary text. A text without markers is one piece.
    """
    pieces, start = [], 0
    while match := markers(tokenizer).search(text, start):
        pieces.append(text[start:match.start() + 1])
        start = match.start() + 1
    return [*pieces, text[start:]]


def tokenize(tokenizer, before, text, after):
    """Return the token ids of text that somebody wrote between two texts whose markers count."""
    pieces = without_markers(tokenizer, text)
    pieces[0] = before + pieces[0]
    pieces[-1] += after
    return [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]


def encode_text(tokenizer, text):
    """Return the token ids of text that somebody wrote: a turn marker inside it stays ordinary text."""
    return tokenize(tokenizer, "", text, "")


def published_turn(tokenizer):
    """Return the published format whose markers are all tokens of a tokenizer without a chat template."""
    for head, tail, end in CHAT.values():
        if all(marker in tokenizer.get_added_vocab() for marker in re.findall(r"<[^<>\s]+>", head + tail + end)):
            return Turn(head, tail, end)
    raise ValueError(f"the tokenizer of {tokenizer.name_or_path or 'the LLM'} has no chat template; choose an LLM that "
                     "was tuned to follow instructions")


def render(tokenizer, answer=None):
    """Return a chat as the template writes it: the user's words, then the answer, or the assistant's header for it."""
    chat = [{"role": "user", "content": USER}]
    if answer:
        chat.append({"role": "assistant", "content": answer})
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=not answer,
                                             strftime_now=DAY.strftime, **NO_THOUGHT)
    except Exception as error:                                   # a template may raise any error
        raise ValueError(f"the chat template of {tokenizer.name_or_path} cannot be used: {error}") from error


@functools.cache
def turn_of(tokenizer):
    """
    Return the Turn of a tokenizer. A system text is printed to standard error once. ValueError if the tokenizer has no
    chat template, or one that does not write the user's words and the answer as they are.
    """
    if not tokenizer.chat_template:
        return published_turn(tokenizer)
    prompt, whole, name = render(tokenizer), render(tokenizer, ANSWER), tokenizer.name_or_path
    if prompt.count(USER) != 1 or whole.count(USER) != 1 or whole.count(ANSWER) != 1:
        raise ValueError(f"the chat template of {name} does not write the user's words or the answer once, as they are")
    head, tail = DATES.sub("", prompt).split(USER)
    between, rest = whole.split(USER)[1].split(ANSWER)
    tail, lead = close_thought(tail), between.removeprefix(tail)
    marker = markers(tokenizer).search(rest)
    end = rest[:marker.end()] if marker else tokenizer.eos_token
    if not end:
        raise ValueError(f"the chat template of {name} does not end an answer, nor has its tokenizer an end of text")
    if len(markers(tokenizer).sub(" ", head).split()) > 3 and is_first():
        print(f"every prompt begins with the system text of {name}: {head!r}", file=sys.stderr)
    if lead.strip():                                     # markers before an answer, an empty thought, or another tail
        tail, lead = between if between.startswith(tail) and after_thought(lead) else tail, ""
    return Turn(head, tail, end, lead)


def end_id(tokenizer):
    """Return the id of the token that ends an answer."""
    return tokenize(tokenizer, turn_of(tokenizer).end, "", "")[-1]
