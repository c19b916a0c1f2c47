"""Prompts: the strings of the papers byte for byte, and their ids in the two real vocabularies."""
import functools
import os

import pytest
import transformers

from speech_llm.prompts import encode_answer, encode_prompt, user_turn


SPOKEN = {"id": "tiny/1", "transcript": " The cat sleeps. ", "target": "x"}

TURNS = [  # task, language, what stands between "</speech>\n" and the end of the user's turn (2025, Table 5)
    ("ASR", "en", "Question: Can you transcribe the Speech content into English text?\nYour answer:"),
    ("ST", "de", "Question: Können Sie den Inhalt der Rede in den deutschen Text übersetzen?\nYour answer:"),
    ("ST", "it", "Question: Puoi tradurre il contenuto del discorso in testo italiano?\nYour answer:"),
    ("ST", "zh", "Question: 你能把演讲内容翻译成中文吗?\nYour answer:"),
    ("SQA", "en", "Question: Who sleeps?\nYour answer:"),
    ("MCQ", "en", "Question: Who sleeps?\nYour answer:"),
]


@functools.cache
def load(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizers(real):
    """The real vocabularies of the two papers' LLMs, {model_type: tokenizer}."""
    folders = {"llama": "llama3_1_hf", "qwen3": "qwen3_4b_instruct_2507"}
    return {model: load(os.path.join(real, "tokenizers", folder)) for model, folder in folders.items()}


@pytest.mark.parametrize("task, language, after", TURNS)
def test_prompt_is_the_papers_byte_for_byte(task, language, after):
    row = {**SPOKEN, "task": task, "language": language, "question": "Who sleeps?"}
    assert user_turn(row) == ("Content: <speech>", "</speech>\n" + after)
    assert user_turn(row, text=True) == ("Content: <text>The cat sleeps.</text>\n" + after, "")


@pytest.mark.parametrize("task, language, after", TURNS)
def test_2026_has_a_blank_line_before_the_suffix(task, language, after):
    """Table 7: one newline ends the task line, another begins the suffix."""
    row = {**SPOKEN, "task": task, "language": language, "question": "Who sleeps?"}
    assert user_turn(row, prompt="2026")[1] == "</speech>\n" + after.replace("\nYour", "\n\nYour")


@pytest.mark.parametrize("task, language, suffix", [     # two of the four have a space before the newline
    ("ASR", "en", "Do not add anything else to your answer. "),
    ("ST", "de", "Antworten Sie nur mit der Übersetzung. Fügen Sie Ihrer Antwort nichts weiter hinzu."),
    ("ST", "it", "Rispondi solo con la traduzione. Non aggiungere altro alla tua risposta."),
    ("ST", "zh", "仅回复翻译。请勿在答案中添加任何其他内容。 "), ("SQA", "en", "")])
def test_zero_shot_suffixes_of_2026(task, language, suffix):
    row = {**SPOKEN, "task": task, "language": language, "question": "Who sleeps?"}
    assert user_turn(row, prompt="2026-zero-shot")[1].endswith(f"?\n{suffix}\nYour answer:")
    with pytest.raises(ValueError, match="prompt '2027' is not one of 2025, 2026, 2026-zero-shot"):
        user_turn(row, prompt="2027")


def test_ids_of_qwen_in_2026(tokenizers):
    """No BOS, no think block; the blank line is one token: "?" and two newlines together (architecture 4.3)."""
    row = {**SPOKEN, "task": "ASR", "language": "en"}
    before, after = encode_prompt(tokenizers["qwen3"], row, prompt="2026")
    assert before == [151644, 872, 198, 2762, 25, 366, 88225, 29]
    one_newline = encode_prompt(tokenizers["qwen3"], row)[1]
    assert after[-8:] == [7771, 4226, 25, 151645, 198, 151644, 77091, 198] == one_newline[-8:]
    assert len(after) == len(one_newline) and [a for a, b in zip(after, one_newline) if a != b] == [1939]


@pytest.mark.parametrize("lines", ["\n", "\r\n", "\r", "\u2028", "\u2029", "\x85", "\v", "\f"])
def test_a_question_of_several_lines_becomes_one(lines):
    row = {**SPOKEN, "task": "MCQ", "language": "en",
           "question": f"Who sleeps?{lines}A. The cat{lines}B. The dog{lines}"}
    assert user_turn(row)[1] == "</speech>\nQuestion: Who sleeps? A. The cat B. The dog\nYour answer:"


@pytest.mark.parametrize("task, language", [("ASR", "de"), ("ST", "en"), ("ST", "fr"), ("TTS", "en")])
def test_a_task_without_a_prompt_is_an_error_that_names_the_row(task, language):
    with pytest.raises(ValueError, match=f"row tiny/1: no prompt for {task} in '{language}'; there is one for .*'zh'"):
        user_turn({**SPOKEN, "task": task, "language": language})


# --- Ids, architecture.md 4.2 and 4.3.

def test_ids_of_llama(tokenizers):
    row = {**SPOKEN, "task": "ASR", "language": "en"}
    before, after = encode_prompt(tokenizers["llama"], row)
    # <|begin_of_text|> <|start_header_id|> user <|end_header_id|> \n\n, then Content : _< speech >
    assert before == [128000, 128006, 882, 128007, 271, 2831, 25, 366, 89325, 29]
    assert after[:3] == [524, 89325, 397]                                     # </ speech >\n
    assert after[-5:] == [128009, 128006, 78191, 128007, 271]                 # <|eot_id|>, the assistant's header
    assert after[-9] == 5380                                                  # ?\n is one token
    assert tokenizers["llama"].decode(after[-8:-5]) == "Your answer:"


def test_a_text_turn_is_tokenised_whole(tokenizers):
    row = {**SPOKEN, "task": "ST", "language": "de"}
    ids, nothing = encode_prompt(tokenizers["llama"], row, text=True)
    assert nothing == [] and 16761 in ids                                     # ">The" of "<text>The" is one token
    for tokenizer in tokenizers.values():
        ids, _ = encode_prompt(tokenizer, row, text=True)
        assert "".join(user_turn(row, text=True)) in tokenizer.decode(ids)


@pytest.mark.parametrize("model, end", [("llama", 128009), ("qwen3", 151645)])
def test_an_answer_is_stripped_and_ends_its_turn(tokenizers, model, end):
    ids = encode_answer(tokenizers[model], {"target": "  The cat.\n"})
    assert ids[-1] == end and end not in ids[:-1]
    assert tokenizers[model].decode(ids[:-1]) == "The cat."
