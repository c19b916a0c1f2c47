"""
Thoughts that an LLM writes before it answers: left empty in prompts, cut from answers.

    close_thought("Assistant: <think>\\n")                  -> "Assistant: <think>\\n\\n</think>\\n\\n"
    after_thought("<think>Yes or no?</think>No")           -> "No"
"""
import functools


THOUGHTS = {  # how a thought begins: how it ends
    "<think>": "</think>", "<thinking>": "</thinking>", "<seed:think>": "</seed:think>", "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>"}        # gpt-oss


def close_thought(prompt):
    """Return the prompt with an end for the thought that its last words open."""
    for opening, closing in THOUGHTS.items():
        if prompt.rstrip().endswith(opening):
            return f"{prompt.rstrip()}\n\n{closing}\n\n"
    return prompt


def after_thought(text):
    """Return what an answer says after its last thought; "" if its thought has no end."""
    for opening, closing in THOUGHTS.items():
        if closing in text:
            text = text.rpartition(closing)[2]
        elif opening in text:
            return ""
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
    """Return the ids after the last thought whose markers are tokens; [] if the thought has no end."""
    for opening, closing in marker_ids(tokenizer):
        if end := position_after(ids, closing):
            ids = ids[end:]
        elif position_after(ids, opening):
            return []
    return ids
