"""data/fakacl.py: numbers in words, what LLMs write, a miniature corpus row by row."""
import re
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from downloads import read_corpus
from test_bad_input import refused

from data import fakacl, quality
from data.recipe import kind
from speech_llm.prompts import NOT_ANSWERABLE


@pytest.mark.parametrize("written, spoken", [
    ("improves by up to 30% in 2019.", "improves by up to thirty percent in twenty nineteen."),
    ("1,024 tokens & 12 layers", "one thousand twenty-four tokens and twelve layers"),
    ("0.85 F1 vs. 3.5 %", "zero point eight five F one vs. three point five percent"),
    ("$1.5M or $10,000.50", "one point five million dollars or ten thousand point five zero dollars"),
    ("10-20% and 5–10 times", "ten to twenty percent and five to ten times"),
    ("the 21st, 3rd, 30th and 112th", "the twenty-first, third, thirtieth and one hundred twelfth"),
    ("the 1990s, the 2000s", "the nineteen nineties, the two thousands"),
    ("1905, 1900, 2005, 2,005", "nineteen oh five, nineteen hundred, two thousand five, two thousand five"),
    ("GPT-4, Qwen2.5, T5, 3D", "GPT-four, Qwen two point five, T five, three D"),
    ("a 3x3 grid, 2x faster", "a three by three grid, two times faster"),
    ("-5 degrees, ~7 points, ±3", "minus five degrees, about seven points, plus or minus three"),
    ("p < 0.05 and a+b=c", "p less than zero point zero five and a plus b equals c"),
    ("7B parameters, 10k words, 11.5", "seven billion parameters, ten thousand words, eleven point five"),
    ("007, 0, 1000000000000000", "zero zero seven, zero, " + " ".join(["one", *["zero"] * 15])),
    ("１２ ②", "１２ ②"),                                                    # digits of other scripts are left alone
])
def test_spell_out(written, spoken):
    assert fakacl.spell_out(written) == spoken


def test_lists():
    text = 'Here are 40 titles:\n\n1. **Deep Talks**\n2) "Of Mice: and Men"\n- 3D Speech\n---\n• Last '
    assert fakacl.read_list(text) == ["Deep Talks", "Of Mice: and Men", "3D Speech", "Last"]


def test_a_script_becomes_spoken_sentences(monkeypatch):
    """A sentence ends here at every mark that a space follows."""
    monkeypatch.setattr(fakacl, "load_spacy", lambda: lambda text: SimpleNamespace(sents=[
        SimpleNamespace(text=sentence) for sentence in re.split(r"(?<=[.?!])\s+", text)]))
    assert fakacl.read_script('''**Title: Why Mice?**

[Slide 1]
**Speaker:** "Good morning, everyone. Today, I present *On Mice*.

1. We gain 18% [pause] on *MS-COCO*.
2. Is it good? Yes!
(applause.)
Thank you for your attention."
---
Let me know if you want more''') == [
        "Good morning, everyone.", "Today, I present On Mice.", "We gain eighteen percent on MS-COCO.", "Is it good?",
        "Yes!", "Thank you for your attention."]


def test_without_spacy(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    fakacl.load_spacy.cache_clear()
    message = refused(fakacl.split_sentences, "Yes.", says="needs spaCy ")
    assert "run: pip install spacy && python -m spacy download" in message


@pytest.mark.parametrize("text, pairs", [
    ("Q: What is it?\nA: A mouse.\nQ: Who?\nA: Ann: and Bob", [("What is it?", "A mouse."), ("Who?", "Ann: and Bob")]),
    ("Sure!\n\n**Q1:** What?\n**A1:** This.\n\n2. Question 2: Who?\nAnswer 2: Me.\n\nI hope it helps.",
     [("What?", "This."), ("Who?", "Me.")]),
    ("Q: What? A: This. Q: lost", [("What?", "This. Q: lost")]),             # on one line
    ("Q: Why?\nA:\nQ: How?\nA: So.\nA: Not so.", [("How?", "So.")]),         # no answer; a second answer
    ("Q: How?\nA: So.\nQ: How?\nA: Or so.", [("How?", "So.")]),              # the same question
    ("Q: ???\nA: So.\nQ: How?\nA: --", []),
    ("FAQ: no\nWhat? This.\nPlan A: none", []),
])
def test_pairs(text, pairs):
    assert fakacl.read_pairs(text) == pairs


# --- A miniature corpus: two topics, three titles one of which comes twice, one script too short.

def script(name):
    return (f"Good morning. Today I present to you the paper {name}. It is all about the things of {name}.\n"
            f"The first result of {name} is that it works. The second result of {name} is 30%.\n"
            "We thank the many people who helped us. Goodbye and see you all next year, friends.")


ANSWERS = {
    fakacl.PROMPTS["topics"][0]: "Sure:\n1. Speech\n2. Parsing",
    fakacl.PROMPTS["titles"][0].format("Speech"): '1. "Mice"\n2. Cats',
    fakacl.PROMPTS["titles"][0].format("Parsing"): "Cats\nDogs",
    fakacl.PROMPTS["scripts"][0].format("Mice"): script("mice"),
    fakacl.PROMPTS["scripts"][0].format("Cats"): script("cats"),
    fakacl.PROMPTS["scripts"][0].format("Dogs"): "I cannot. Really. Not at all.",
}
BAD = {("de", "Is two cats good?"), ("it", "No."), ("zh", "The first result of mice is that it works.")}


def answer(prompt):
    """Sentence number one has a pair of questions, sentence number two only one."""
    if prompt in ANSWERS:
        return ANSWERS[prompt]
    name = next(name for name in ("mice", "cats") if name in prompt)
    if "first result" in prompt:
        return f"Q: Is one {name} good?\nA: Yes.\n\nQ: Is two {name} good?\nA: No."
    return f"**Q:** Is three {name} good?\n**A:** Maybe."


def test_row_by_row(makers, tmp_path, capsys):
    """0000 is Mice, 0001 Cats, 0002 Dogs; sentence 00 is too short, 03 and 04 are asked about, 05 and 06 repeat."""
    makers.chdir(tmp_path)
    makers.setattr(fakacl, "generate", lambda prompts, *_, **__: list(map(answer, prompts)))
    makers.setattr(fakacl, "speak", lambda texts, folder, model, seed: {
        name: None if "present to you the paper cats" in text else f"{folder}/{name}.flac"
        for name, text in texts.items()})
    makers.setattr(quality, "quality", lambda pairs, model, path: [
        0.8499 if (translation[:2], source) in BAD else 0.85 for source, translation in pairs])
    fakacl.main(["--incomplete"])
    (splits, dropped), told = read_corpus("work", "fakacl"), capsys.readouterr().out
    rows = {row["id"].split("/", 2)[2]: row for part in splits.values() for row in part}
    assert Counter(map(kind, rows.values())) == {           # of mice 6 sentences, of cats 2, 3 and 4; less what is BAD
        "ASR en": 9, "ST/MT de": 9, "ST/MT it": 9, "ST/MT zh": 8, "SQA/QA en": 6, "SQA/QA de": 5, "SQA/QA it": 4,
        "SQA/QA zh": 6}
    split = rows["0000-04/ASR.en"]["utterance"].split("/")[1]
    base = {"utterance": f"fakacl/{split}/0000-04", "audio": "work/audio/fakacl/0000-04.flac", "answerable": True,
            "transcript": "The second result of mice is thirty percent."}
    for name, row in {
            "ASR.en": {"task": "ASR", "language": "en", "target": base["transcript"]},
            "ST.de": {"task": "ST", "language": "de", "target": f"de: {base['transcript']}"},
            "SQA-1.zh": {"task": "SQA", "language": "zh", "question": "zh: Is three mice good?", "target": "zh: Maybe."}
    }.items():
        assert rows[f"0000-04/{name}"] == {"id": f"{base['utterance']}/{name}", **base, **row}
    assert [rows[f"0001-03/SQA-{n}.en"]["target"] for n in (1, 2)] == ["Yes.", "No."]
    assert len({row["utterance"].split("-")[0] for row in splits["dev"]}) == 1
    assert told.count("no other talk to take an unanswerable question from") == 2
    assert "2 topics (paper: 56), 4 titles (2527), 3 distinct, 3 of these asked for, 2 scripts (2497)" in told
    lines = "\n".join("\t".join(line) for line in dropped)
    for reason in ("talks\t0002\tscript of 5 sentences or less: Dogs", "0000-00\tunder 10 characters or 6 words: Good",
                   "0001-05\tthe same sentence as before: We thank", "0001-01\tcould not be spoken",
                   "0001-04/SQA-2.en\tthe LLM gave no such question", "SQA-2.it\tbelow 0.85: target 0.850"):
        assert reason in lines, reason
    fakacl.main(["--incomplete", "--titles", "2", "--work", "fewer"])
    assert "4 titles (2527), 3 distinct, 2 of these asked for, " in capsys.readouterr().out


def test_a_question_without_an_answer_is_of_another_talk_of_the_split_and_the_seed_draws_it():
    """Five talks a split with two questions each: never one's own talk, and every other one is asked from."""
    rows = [{"id": f"fakacl/{split}/{talk}-{n}/SQA-1.en", "utterance": f"fakacl/{split}/{talk}-{n}", "task": "SQA",
             "question": f"{split}/{talk}"} for split in ("train", "dev") for talk in range(5) for n in range(2)]

    def draw(seed):
        return [(row["utterance"].split("/", 1)[1][:-2], row["question"], row["target"], row["answerable"])
                for row in fakacl.invalid_rows(rows, seed, [])]
    assert draw(3) == draw(3) != draw(4) and len(draw(3)) == len(rows)
    assert {row for seed in range(20) for row in draw(seed)} == {
        (f"{split}/{talk}", f"{split}/{other}", NOT_ANSWERABLE["en"], False)
        for split in ("train", "dev") for talk in range(5) for other in range(5) if talk != other}
