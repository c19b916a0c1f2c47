"""
Thoughts that an LLM writes before it answers: left empty in prompts, cut from answers.

    close_thought("Assistant: <think>\\n")                  -> "Assistant: <think>\\n\\n</think>\\n\\n"
    after_thought("<think>Yes or no?</think>No")           -> "No"
"""
import functools


NO_THOUGHT = {"enable_thinking": False, "thinking": False, "reasoning": False}    # names that chat templates read
THOUGHTS = {  # how a thought begins: how it ends
    "<think>": "</think>", "<thinking>": "</thinking>", "<thought>": "</thought>", "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]", "\u25c1think\u25b7": "\u25c1/think\u25b7",                # Kimi
    "<|START_THINKING|>": "<|END_THINKING|>", "<|inner_prefix|>": "<|inner_suffix|>",      # Cohere, Apertus
    "<|channel>": "<channel|>", "<|think|>": "<|content|>",                         # Gemma 4, Solar
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>"}                # gpt-oss
HEADERS = {"<|start|>assistant": "<|channel|>final<|message|>"}     # gpt-oss: what stands before an answer


def close_thought(prompt):
    """Return the prompt with an end for the thought that its last words open, or that the LLM would begin with."""
    for opening, closing in THOUGHTS.items():
        if prompt.rstrip().endswith(opening):
            return f"{prompt.rstrip()}\n\n{closing}\n\n"
    return prompt + next((answer for header, answer in HEADERS.items() if prompt.endswith(header)), "")


def after_thought(text):
    """Return what an answer says after its last whole thought and before a thought that has no end."""
    for opening, closing in THOUGHTS.items():
        text = text.rpartition(closing)[2].partition(opening)[0]
    return text.strip()


@functools.cache
def marker_ids(tokenizer):
    """
    Return [(ids of an opening, ids of its closing)]. A marker that is no added token has no ids, (): it is text like
    any other, which may be tokenised in several ways.
    """
    added = {*tokenizer.get_added_vocab().values()}

    def ids_of(marker):
        ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
        return tuple(ids) if ids and {ids[0], ids[-1]} <= added else ()
    return [(ids_of(opening), ids_of(closing)) for opening, closing in THOUGHTS.items()]


def position_after(ids, part):
    """Return the position behind the last occurrence of a tuple of ids in a list of ids; 0 if there is none."""
    ends = range(len(ids), len(part) - 1, -1) if part else ()
    return next((end for end in ends if tuple(ids[end - len(part):end]) == part), 0)


def ids_after_thought(tokenizer, ids):
    """Return the ids after the last whole thought whose markers are tokens, and before a thought that has no end."""
    for opening, closing in marker_ids(tokenizer):
        ids = ids[position_after(ids, closing):]
        if end := position_after(ids, opening):
            ids = ids[:end - len(opening)]
    return ids
