"""ROUGE-1 recall, BLEU, the judge, BERTScore and the paper's figures: by hand, and against the reference code."""
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from metrics import bertscore, judge
from metrics.bleu import bleu
from metrics.paper_tables import SYSTEMS, TABLES, figures
from metrics.rouge import recall, rouge1_recall
from metrics.tables import NAMES

SHARED = Path(__file__).parents[2] / "shared"


def vectors(name, **wanted):
    path = SHARED / "parity" / name
    if not path.exists():
        pytest.skip(f"no reference vectors at {path}")
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [v for v in found if all(v.get(key) == value for key, value in wanted.items())]
    assert found
    return found


# --- ROUGE-1 recall, BLEU.

@pytest.mark.parametrize("reference, prediction, language, value", [
    ("The cat sat.", "the CAT", "en", 2 / 3),
    ("the the cat", "the cat", "en", 2 / 3),                      # a word counts as often as it is there
    ("the cat", "the the the cat", "en", 1),                      # and no oftener
    ("Zürich", "Z. is rich", "de", 1),                            # the tokeniser cuts at the umlaut
    ("5,000", "5000", "en", 0),
    ("...", "...", "en", 0), ("one", "", "en", 0),
    ("无法回答。", "无法回答", "zh", 1),                              # the full stop is no character to recall
    ("安娜有3只猫", "安娜有2只狗", "zh", 4 / 6),
    ("好好好", "好", "zh", 1 / 3),
    ("伦敦", "London", "zh", 0)])
def test_rouge_recall_by_hand(reference, prediction, language, value):
    assert recall(reference, prediction, language) == pytest.approx(value, abs=0)


def test_rouge_of_a_corpus_is_the_mean_in_percent():
    assert rouge1_recall(["a b", "c"], ["a", "c"], "en") == 75.0
    with pytest.raises(ValueError):
        rouge1_recall(["a"], [], "en")


def test_rouge_agrees_with_rouge_score():
    for v in vectors("rouge_recall.jsonl"):
        assert recall(v["reference"], v["prediction"], "en") == v["rouge_score_rouge1"]["recall"]


def test_bleu_agrees_with_sacrebleu_2_3_1():
    for v in vectors("sacrebleu.jsonl", kind="corpus"):
        assert bleu(v["refs"], v["hyps"], v["lang"]) == v["bleu"]


# --- The judge.

def test_prompts_agree_with_bergen():
    for v in vectors("bergen.jsonl", kind="prompt", config="default_qa"):
        assert judge.messages(v["question"], v["answer"], v["prediction"], v["has_system"]) == v["messages"]


def test_scores_agree_with_bergen():
    for v in vectors("bergen.jsonl", kind="text_score"):
        assert judge.parse(v["text"], v["options"]) == v["score"], v["text"]
    for v in vectors("bergen.jsonl", kind="logits_score"):
        assert v["sorted_options"] == sorted(v["sorted_options"])
        assert judge.expectation(torch.tensor(v["option_logits"]), [1, 0.5, 0]).tolist() == v["scores"]


@pytest.mark.parametrize("text, score", [("Yes", 1), ("No", 0), ("Yes.", 1), ("yes", -100), ("", -100), ("Nothing", 0),
                                         ("Yes, not No", -100), ("Yes Yes", 1)])
def test_written_verdicts_by_hand(text, score):
    assert judge.parse(text) == score


def test_accuracy_leaves_out_what_cannot_be_parsed():
    assert judge.accuracy([1, 0, 1, -100]) == (pytest.approx(200 / 3), 25.0)
    assert judge.accuracy([0.5, 0.25]) == (37.5, 0.0)
    assert judge.accuracy([-100]) == (0.0, 100.0)


TURN = "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
TEMPLATE = ("{{ bos_token }}{% for m in messages %}" + TURN + "{% endfor %}"
            "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
ITEMS = [["Who has a cat?", "Anna", "Anna."],
         ["How many books are needed by Tuesday?", "seven", "It is seven or eight."],
         ["Wo?", "London", ""], ["谁有猫？", "Anna", "安娜有三只猫。"]]


@pytest.fixture(scope="module")
def llms(llama, tmp_path_factory):
    """The tiny LLM with a chat template: one that knows a system turn, one that does not -> their folders."""
    from transformers import AutoTokenizer
    folders = {}
    for name, template in (("system", "{# system and user #}" + TEMPLATE), ("alone", TEMPLATE)):
        folders[name] = str(tmp_path_factory.mktemp("judges") / name)
        shutil.copytree(llama, folders[name])
        tokenizer = AutoTokenizer.from_pretrained(llama)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize("name", ["system", "alone"])
def test_probability_is_that_of_the_first_token(llms, name):
    ask = judge.load_judge(llms[name], "probability", torch.device("cpu"))
    model, tokenizer = ask.args
    found = ask(ITEMS)
    for item, value in zip(ITEMS, found):
        chat = judge.messages(*item, name == "system")
        ids = tokenizer(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))["input_ids"]
        logits = model(torch.tensor([ids])).logits[0, -1]
        no, yes = (logits[tokenizer.encode(word, add_special_tokens=False)[0]].item() for word in ("No", "Yes"))
        assert value == pytest.approx(1 / (1 + 2.718281828459045 ** (no - yes)), abs=1e-5)
        assert ask([item]) == pytest.approx([value], abs=1e-5)                           # a batch changes nothing
    assert len({round(value, 3) for value in found}) == len(ITEMS)


def test_special_tokens_are_added_to_what_the_template_writes(llms):
    _, tokenizer = judge.load_judge(llms["system"], "probability", torch.device("cpu")).args
    inputs = judge.encode(tokenizer, ITEMS, "cpu")
    rows = [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"])]
    text = tokenizer.apply_chat_template(judge.messages(*ITEMS[0], True), add_generation_prompt=True, tokenize=False)
    assert rows[0] == tokenizer(text)["input_ids"]
    assert (inputs["attention_mask"].diff() >= 0).all() and inputs["attention_mask"][:, -1].all()    # padded left
    for row, positions in zip(rows, inputs["position_ids"].tolist()):
        assert positions[-len(row):] == list(range(len(row)))


def test_text_mode_writes_greedily_and_a_batch_changes_nothing(llms, monkeypatch):
    ask = judge.load_judge(llms["system"], "text", torch.device("cpu"))
    assert set(ask(ITEMS)) <= {0, 1, -100}
    monkeypatch.setattr(judge, "parse", lambda text: text)
    model, tokenizer = ask.args
    written = ask(ITEMS)
    assert written == [ask([item])[0] for item in ITEMS] and len(set(written)) > 1
    inputs = judge.encode(tokenizer, ITEMS[1:2], "cpu")
    ids = inputs["input_ids"]
    for _ in range(judge.MAX_NEW_TOKENS):
        token = model(ids).logits[0, -1].argmax().item()
        if token in model.generation_config.eos_token_id:
            break
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    assert written[1] == tokenizer.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)


def test_judges_that_cannot_judge(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        judge.load_judge(str(tmp_path / "base"), "text", torch.device("cpu"))
    with pytest.raises(FileNotFoundError, match="hf download nobody/nothing"):
        judge.load_judge("nobody/nothing", "text", torch.device("cpu"))


# --- BERTScore.

def test_models_and_baselines_are_the_package_s():
    bert_score = pytest.importorskip("bert_score")
    from bert_score.utils import lang2model, model2layers
    wanted = {**{f"{lang}/{model}": layer for lang, (model, layer) in bertscore.ORGANISERS.items()},
              **{f"{lang}/{bertscore.XLMR[0]}": bertscore.XLMR[1] for lang in bertscore.ORGANISERS}}
    assert {lang: (lang2model[lang], model2layers[lang2model[lang]]) for lang in wanted_languages(wanted)
            } == bertscore.ORGANISERS
    path = SHARED / "parity" / "bertscore_baselines.json"
    if not path.exists():
        pytest.skip(f"no reference vectors at {path}")
    measured = json.loads(path.read_text())
    assert {name: v["layer"] for name, v in measured.items()} == wanted
    for name, v in measured.items():
        file = Path(bert_score.__file__).parent / "rescale_baseline" / f"{name}.tsv"
        assert file.exists() is (v["baseline"] is not None)
        if v["baseline"]:
            line = file.read_text().splitlines()[1 + v["layer"]].split(",")
            assert [float(x) for x in line] == [v["layer"], *v["baseline"]]


def wanted_languages(names):
    return sorted({name.split("/")[0] for name in names})


class Fake:
    """A scorer whose F1 is the share of equal letters, 0.2 being its baseline."""
    rescale_with_baseline, baseline_vals = True, torch.tensor([0.0, 0.0, 0.2])

    def score(self, predictions, references):
        assert all(predictions) and all(references)
        raw = torch.tensor([sum(a == b for a, b in zip(p, r)) / len(r) for p, r in zip(predictions, references)])
        return None, None, (raw - 0.2) / 0.8


def test_an_empty_side_is_0_before_rescaling():
    pairs = [["abcd", "abcd"], ["", "abcd"], ["abxx", "abcd"], ["abcd", "  "], ["\n", ""]]
    assert bertscore.f1(Fake(), pairs) == pytest.approx([1, -0.25, 0.375, -0.25, -0.25])
    assert bertscore.f1(Fake(), [["", "a"]]) == pytest.approx([-0.25])
    fake = Fake()
    fake.rescale_with_baseline = False
    assert bertscore.f1(fake, [["", "a"]]) == [0.0]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A random BERT of two narrow layers over letters -> its folder."""
    import transformers
    folder = tmp_path_factory.mktemp("bert")
    letters = "abcdefghijklmnopqrstuvwxyz.,äöü猫"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2,
                                     num_attention_heads=2, intermediate_size=32, max_position_embeddings=512)
    transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


def test_bertscore_runs_the_package(bert, tmp_path):
    bert_score = pytest.importorskip("bert_score")
    pairs = [["anna has a cat", "anna has a cat"], ["a cat", "anna has a dog, or two"], ["", "anna"], ["a" * 600, "b"]]
    f1 = bertscore.load_bertscore("en", bert, 2, "cpu")          # no baseline for such a model: raw
    found = f1(pairs)
    assert found[0] == pytest.approx(1) and 0 < found[1] < 0.999 and found[2] == 0.0
    assert found == pytest.approx([f1([pair])[0] for pair in pairs], abs=1e-6)
    by_hand = own_f1(f1.args[0], *pairs[1])
    assert found[1] == pytest.approx(by_hand, abs=1e-6)
    (tmp_path / "baseline.tsv").write_text("LAYER,P,R,F\n0,0,0,0\n1,0,0,0\n2,0.1,0.2,0.25\n")
    scorer = bert_score.BERTScorer(bert, 2, lang="en", rescale_with_baseline=True,
                                   baseline_path=str(tmp_path / "baseline.tsv"))
    scorer._tokenizer.model_max_length = 512
    assert bertscore.f1(scorer, pairs) == pytest.approx([(x - 0.25) / 0.75 for x in found], abs=1e-6)


@torch.no_grad()
def own_f1(scorer, prediction, reference):
    """Greedy matching of normalised token vectors; [CLS] and [SEP] can be matched, but do not count themselves."""
    sides = []
    for text in (prediction, reference):
        ids = torch.tensor([scorer._tokenizer(text)["input_ids"]])
        vectors = scorer._model(ids).last_hidden_state[0]
        sides.append(vectors / vectors.norm(dim=-1, keepdim=True))
    similar = sides[0] @ sides[1].T
    p, r = similar.max(1).values[1:-1].mean(), similar.max(0).values[1:-1].mean()
    return (2 * p * r / (p + r)).item()


def test_bertscore_says_what_is_missing(monkeypatch):
    pytest.importorskip("bert_score")
    with pytest.raises(FileNotFoundError, match="hf download nobody/nothing"):
        bertscore.load_bertscore("en", "nobody/nothing", 2, "cpu")
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(ImportError, match="pip install bert-score"):
        bertscore.load_bertscore("en", "roberta-large", 17, "cpu")


# --- The paper's figures.

def test_tables_are_whole_and_their_systems_known():
    for name in TABLES:
        for system, row in figures(name).items():
            assert system in {**NAMES, **SYSTEMS}, system
            assert list(row) == TABLES[name][0] and all(re.fullmatch(r"\d*\.?\d*", cell) for cell in row.values())
    assert figures("Table 2")["C"]["acl6060.eval", "WER", "en"] == "18.6"
    assert figures("Table 2")["B"]["acl6060.eval", "WER", "en"] == ""
    assert figures("Table 9")["C-A.2"]["spokensquad.test", "BERTScore-xlmr-unanswerable", "zh"] == "0.998"


def test_means_that_the_paper_s_text_states():
    """2025, section 6: BLEU 37.9 and 35.1, judge 83.7 and 85.3."""
    for system, translation, answers in (("C", 37.9, 83.7), ("C-A.2", 35.1, 85.3)):
        row = figures("Table 2")[system]
        for metric, value in (("BLEU", translation), ("judge", answers)):
            cells = [float(cell) for (_, other, _), cell in row.items() if other == metric]
            assert sum(cells) / len(cells) == pytest.approx(value, abs=0.051)


def test_every_row_stands_in_the_paper():
    path = SHARED / "papers" / "iwslt2025_nle_paper.txt"
    if not path.exists():
        pytest.skip(f"no paper at {path}")
    lines = [re.sub(r"</?\w+>|%|,(?=\d{3})", "", line) for line in path.read_text(encoding="utf-8").splitlines()]
    for name in TABLES:
        if not name.startswith("Table"):
            continue
        end = next(i for i, line in enumerate(lines) if line.startswith(f"{name}:"))
        start = max((i for i, line in enumerate(lines[:end]) if re.match(r"Table \d+:", line)), default=0)
        rows = [[cell.strip() for cell in line.rstrip().split("\t")[1:]] for line in lines[start:end]]
        found = [[cell.strip("-") for cell in row] for row in rows if row and re.fullmatch(r"[\d.]+|-", row[-1])]
        assert found == [list(row.values()) for row in figures(name).values()], name
    text = " ".join(lines)
    assert "respectively: 81.4, 63.1, 69.5, 79.0" in text and "English in 98 and 98.5 of the cases" in text


# --- Languages beyond the four.

def test_a_share_in_a_language_beyond_the_four_is_told_among_the_23():
    pytest.importorskip("py3langid", reason="py3langid is not installed")
    from metrics.language import share_in_language
    texts = ["Dit is een korte zin in het Nederlands.", "This is a short English sentence.", "これは日本語の文です。", "7"]
    assert share_in_language(texts, "nl") == share_in_language(texts, "ja") == share_in_language(texts, "en") == 25
    assert share_in_language(texts, "uk") == 0
