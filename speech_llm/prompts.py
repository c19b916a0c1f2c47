"""TODO"""
import functools
import re
from functools import cache


@functools.cache
def markers(tokenizer):
    """A pattern of all added tokens that are words, turn markers first of all; many are not marked as special."""
    words = sorted((word for word in tokenizer.get_added_vocab() if len(word) > 1 and re.search(r"[^\W_]", word)),
                   key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words)) or "(?!)")


def without_markers(tokenizer, text):
    """
    Text that a user, a corpus or a model wrote -> its pieces, none of which holds a marker of the tokenizer: cut after
    a marker's first character. Tokenised one by one they stay ordinary text; a text without markers is one piece.
    """
    pieces, start = [], 0
    while found := markers(tokenizer).search(text, start):
        pieces.append(text[start:found.start() + 1])
        start = found.start() + 1
    return [*pieces, text[start:]]
TASK_LINES = {  # the language of the instruction is the language of the answer (2025, appendix A.4)
    ("ASR", "en"): "Can you transcribe the Speech content into English text?",
    ("ST", "de"): "Können Sie den Inhalt der Rede in den deutschen Text übersetzen?",
    ("ST", "it"): "Puoi tradurre il contenuto del discorso in testo italiano?",
    ("ST", "zh"): "你能把演讲内容翻译成中文吗?",
}
SUFFIXES = {  # what stands before "Your answer:"; 2026: then a newline more, so that the prompt holds a blank line
    "2025": {}, "2026": {},
    "2026-zero-shot": {  # 2026, Table 7; two of them have a space before the newline
        ("ASR", "en"): "Do not add anything else to your answer. ",
        ("ST", "de"): "Antworten Sie nur mit der Übersetzung. Fügen Sie Ihrer Antwort nichts weiter hinzu.",
        ("ST", "it"): "Rispondi solo con la traduzione. Non aggiungere altro alla tua risposta.",
        ("ST", "zh"): "仅回复翻译。请勿在答案中添加任何其他内容。 ",
    },
}
SPOKEN = {  # prompt "listeners": the speech is the whole turn, but for these tasks (multilingual listeners, A.6)
    "ASR": "Transcribe this utterance",
    "ST": "Translate this utterance into {}",                                  # the paper is silent (our choice)
}
TRANSLATED_INTO = {  # CoVoST 2's target languages among the 23, and Italian
    "en": "English", "ar": "Arabic", "de": "German", "fa": "Persian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "tr": "Turkish", "zh": "Chinese",
}
NOT_ANSWERABLE = {  # the organisers' answer to a question that the speech does not answer
    "en": "Not answerable.",
    "de": "Nicht zu beantworten.",
    "it": "Non è possibile rispondere.",
    "zh": "无法回答。",
}
QWEN = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
CHAT = {  # model_type: (before the user's turn, between user and assistant, end of turn); no system or date block
    "llama": ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
              "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "qwen2": QWEN, "qwen3": QWEN,
    "cohere": ("<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
               "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
}


def question_line(row):
    """The line after the speech: the task's own instruction, or the row's question."""
    if row["task"] in ("SQA", "MCQ"):
        # one line, always: options and instructions with newlines are joined by spaces (2026, Table 7)
        return "Question: " + " ".join(row["question"].split("\n")).strip() + "\n"
    key = (row["task"], row["language"])
    if key not in TASK_LINES:
        raise ValueError(f"row {row['id']}: no prompt for {key[0]} in {key[1]!r}; there is one for {list(TASK_LINES)}")
    return f"Question: {TASK_LINES[key]}\n"


def spoken_instruction(row):
    """Of the prompt "listeners": what is written beside the speech; nothing where the question is what is spoken."""
    if row["task"] in ("SQA", "MCQ"):
        return "" if row["question"] == row["transcript"] else row["question"].strip()
    if row["task"] == "ST" and row["language"] not in TRANSLATED_INTO:
        raise ValueError(f"row {row['id']}: no prompt to translate into {row['language']!r}; "
                         f"there is one for {list(TRANSLATED_INTO)}")
    return SPOKEN[row["task"]].format(TRANSLATED_INTO.get(row["language"]))


def user_turn(row, text=False, prompt="2025"):
    """The user's turn around the speech -> (before, after); with `text` it is one piece and `after` is empty."""
    if prompt == "listeners":
        asked = spoken_instruction(row)
        if text:
            return "\n".join(filter(None, (row["transcript"].strip(), asked))), ""
        return "<Speech>", f"</Speech> {asked}".rstrip()               # as SALMONN has it
    if prompt not in SUFFIXES:
        raise ValueError(f"prompt {prompt!r} is not one of {', '.join(SUFFIXES)}, listeners")
    ending = SUFFIXES[prompt].get((row["task"], row["language"]), "")
    after = question_line(row) + ending + ("" if prompt == "2025" else "\n") + "Your answer:"
    if text:
        return f"Content: <text>{row['transcript'].strip()}</text>\n{after}", ""
    return "Content: <speech>", f"</speech>\n{after}"


def encode_text(tokenizer, string):
    """Token ids of text that a user or a corpus wrote: a turn marker inside it stays ordinary text."""
    pieces = without_markers(tokenizer, string)      # not all are called special: Qwen's <think>
    return [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]


@cache
def turn_ids(tokenizer, model_type):
    """Token ids of what stands before the user's turn, after it, and after the answer; ValueError for other LLMs."""
    if model_type not in CHAT:
        raise ValueError(f"no chat format for {model_type!r}; there is one for {list(CHAT)}")
    return [tokenizer(marker, add_special_tokens=False)["input_ids"] for marker in CHAT[model_type]]


def encode_prompt(tokenizer, model_type, row, text=False, prompt="2025"):
    """Token ids (before, after) of the speech; the three pieces are tokenised apart (2025, section 4)."""
    head, tail, _ = turn_ids(tokenizer, model_type)
    before, after = user_turn(row, text, prompt)
    if text:
        return head + encode_text(tokenizer, before) + tail, []
    return head + encode_text(tokenizer, before), encode_text(tokenizer, after) + tail


def encode_answer(tokenizer, model_type, row):
    """Token ids of the target and its end-of-turn token; the loss falls on these and on nothing else."""
    return encode_text(tokenizer, row["target"].strip()) + turn_ids(tokenizer, model_type)[2]


def prompts_of(tokenizer, model_type, prompt):
    """{task, language and how it is read: the turn as text}: what a stage is trained on and infer.py compares."""
    row = {"id": "example", "question": "QUESTION", "transcript": "TRANSCRIPT"}
    turns = {(task, language, text): encode_prompt(tokenizer, model_type, {**row, "task": task, "language": language},
                                                   text, prompt)
             for task, language in [*TASK_LINES, ("SQA", "en")] for text in (False, True)}
    return {f"{task} {language} {'text' if text else 'speech'}": "SPEECH".join(map(tokenizer.decode, turn))
            for (task, language, text), turn in turns.items()}
