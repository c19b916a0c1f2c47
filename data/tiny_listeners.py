"""
Make the tiny listeners' world: short questions and commands, spoken in English, German, Italian and Chinese.

    python -m data.tiny_listeners            # 6,720 utterances and a tiny Whisper; data/tiny_llm.py makes the LLM

reads   `world` in the preset's page of config/
writes  <work>/rows/tiny-listeners/{train,dev,test,heard}.jsonl, <work>/audio/tiny-listeners/*.flac,
        <work>/models/{tiny-whisper,tiny-bert} (data/tiny_models.py), <work>/rows/tiny-listeners/config.json last

The speech is the question (listeners, section 6): the question of an SQA row is its transcript, and the speech does not
hold the answer. The tiny LLM learns the answers to all questions from text. A fact of dev or test, such as ("after",
"Monday"), is not spoken in train in any language, but its words are. The voices of test do not speak in train. `heard`
has the facts of train in the voices of test. Most of train are sentences without a meaning, such as "Dog plus
Tuesday?", for ASR and ST alone: they have the words of the questions and hold no fact. Without them Whisper and the
Q-Former would learn the questions of train as wholes and mistake the words of others. The whole world is our choice.
"""
import itertools
import os
import random
from collections import Counter

from data.recipe import begin, finish_world, finished, speech_rows, world_settings, write_recorded
from data.tiny import ACCENTS, DAYS, NAMES, VOICES, speak_one
from speech_llm.rows import LANGUAGES

CORPUS = "tiny-listeners"
SPEAKERS = {"en": ACCENTS, "de": ("de",), "it": ("it",), "zh": ("cmn",)}         # espeak-ng's voices
RATES = (100, 140)                               # words a minute: 83 frames for 5 tokens in the mean

# ---------------------------------------------------------------------------------------------------------------------
# words: English, German, Italian, Chinese
NUMBERS = list(zip("zero one two three four five six seven eight nine ten".split(),
                   "null eins zwei drei vier fünf sechs sieben acht neun zehn".split(),
                   "zero uno due tre quattro cinque sei sette otto nove dieci".split(),
                   "零 一 二 三 四 五 六 七 八 九 十".split()))
SUMMANDS = range(1, 6)
NOUNS = [
    ("dog", "Hund", "cane", "狗"), ("house", "Haus", "casa", "房子"), ("water", "Wasser", "acqua", "水"),
    ("table", "Tisch", "tavolo", "桌子"), ("flower", "Blume", "fiore", "花"), ("apple", "Apfel", "mela", "苹果"),
    ("milk", "Milch", "latte", "牛奶"), ("bird", "Vogel", "uccello", "鸟"),
]
OPPOSITES = [
    (("hot", "heiß", "caldo", "热"), ("cold", "kalt", "freddo", "冷")),
    (("big", "groß", "grande", "大"), ("small", "klein", "piccolo", "小")),
    (("old", "alt", "vecchio", "旧"), ("new", "neu", "nuovo", "新")),
    (("good", "gut", "buono", "好"), ("bad", "schlecht", "cattivo", "坏")),
]
TONGUES = [("English", "Englisch", "inglese", "英语"), ("German", "Deutsch", "tedesco", "德语"),
           ("Italian", "Italienisch", "italiano", "意大利语"), ("Chinese", "Chinesisch", "cinese", "中文")]
GREETINGS = [("good morning", "guten Morgen", "buongiorno", "早上好"), ("hello", "hallo", "ciao", "你好"),
             ("thank you", "danke", "grazie", "谢谢"), ("goodbye", "auf Wiedersehen", "arrivederci", "再见")]
PEOPLE = [(name, name, name, NAMES[name][1])                             # not Anna: in Italian "a" would become "ad"
          for name in ("Peter", "Maria", "David", "Sofia", "Thomas", "Julia", "Laura", "Robert", "Clara")]

# kind: the question and the answer in en, de, it, zh; short, so that most words of a question matter
KINDS = {
    "after": (("The day after {a}?", "Der Tag nach {a}?", "Il giorno dopo {a}?", "{a}的后一天?"), ("{b}",) * 4),
    "before": (("The day before {a}?", "Der Tag vor {a}?", "Il giorno prima di {a}?", "{a}的前一天?"), ("{b}",) * 4),
    "plus": (("{a} plus {b}?", "{a} plus {b}?", "{a} più {b}?", "{a}加{b}?"), ("{c}",) * 4),
    "minus": (("{a} minus {b}?", "{a} minus {b}?", "{a} meno {b}?", "{a}减{b}?"), ("{c}",) * 4),
    "word": (("{a} in {b}?", "{a} auf {b}?", "{a} in {b}?", "{a}的{b}是什么?"), ("{c}",) * 4),
    "opposite": (("The opposite of {a}?", "Das Gegenteil von {a}?", "Il contrario di {a}?", "{a}的反义词?"),
                 ("{b}",) * 4),
    "greet": (("Say {a} to {b}.", "Sag {b} {a}.", "Di' {a} a {b}.", "对{b}说{a}。"),
              ("{A}, {b}", "{A}, {b}", "{A}, {b}", "{a}，{b}")),
    "call": (("Call {a} and {b}.", "Ruf {a} und {b}.", "Chiama {a} e {b}.", "叫{a}和{b}。"),
             ("{a}, {b}", "{a}, {b}", "{a}, {b}", "{a}，{b}")),
}


def name_fact(kind, slots):
    """Return the name of a fact: its kind and the English words of its question, such as ("plus", "one", "two")."""
    return kind, *(slots[slot][0] for slot in ("a", "b") if f"{{{slot}}}" in KINDS[kind][0][0])


def all_facts():
    """Return all facts that a question can ask for: {(kind, English words): {slot: (en, de, it, zh)}}."""
    facts = {}

    def add(kind, **slots):
        facts[name_fact(kind, slots)] = slots
    for i, day in enumerate(DAYS):
        add("after", a=day, b=DAYS[(i + 1) % 7])
        add("before", a=day, b=DAYS[i - 1])
    for a in SUMMANDS:
        for b in SUMMANDS:
            add("plus", a=NUMBERS[a], b=NUMBERS[b], c=NUMBERS[a + b])
            if a > b:
                add("minus", a=NUMBERS[a], b=NUMBERS[b], c=NUMBERS[a - b])
    for i, tongue in enumerate(TONGUES):
        for word in [*DAYS, *(NUMBERS[n] for n in SUMMANDS), *NOUNS, *itertools.chain(*OPPOSITES)]:
            add("word", a=word, b=tongue, c=(word[i],) * 4)
    for pair in OPPOSITES:
        for one, other in (pair, pair[::-1]):
            add("opposite", a=one, b=other)
    for greeting in GREETINGS:
        for person in PEOPLE:
            add("greet", a=greeting, b=person, A=tuple(word[0].upper() + word[1:] for word in greeting))
    for one, other in itertools.permutations(PEOPLE, 2):
        add("call", a=one, b=other)
    return facts


FACTS = all_facts()
WORDS = [*DAYS, *(NUMBERS[n] for n in SUMMANDS), *NOUNS, *itertools.chain(*OPPOSITES), *TONGUES, *GREETINGS, *PEOPLE]


def ask(fact, language):
    """Return (question, answer) on a fact, a key of FACTS, in a language."""
    i = LANGUAGES.index(language)
    slots = {name: words[i] for name, words in FACTS[fact].items()}
    question, answer = (form[i].format(**slots) for form in KINDS[fact[0]])
    return question[0].upper() + question[1:], answer


def languages_of(fact):
    """Return the languages a fact is asked in; the German word for something is not asked for in German."""
    return [la for la, tongue in zip(LANGUAGES, TONGUES) if fact[0] != "word" or tongue[0] != fact[2]]


def question_rows(fact, language, utterance, audio):
    """Return the rows of a spoken question: ASR, SQA and, unless the language is English, ST into English."""
    question, answer = ask(fact, language)
    return [*sentence_rows(language, question, ask(fact, "en")[0], utterance, audio),
            {"id": f"{utterance}/SQA.{language}", "utterance": utterance, "audio": audio, "transcript": question,
             "task": "SQA", "language": language, "question": question, "target": answer}]


def sentence_rows(language, text, translation, utterance, audio):
    """Return the ASR row of one utterance and, unless the language is English, its ST row."""
    return speech_rows(utterance, {"audio": audio}, text, {} if language == "en" else {"en": translation}, language)


def draw_sentence(rng):
    """Return a sentence without a meaning in en, de, it, zh: a question's form with random words, no fact."""
    while True:
        kind, (a, b) = rng.choice(list(KINDS)), rng.sample(WORDS, 2)
        slots = {"a": a, "b": b}
        if name_fact(kind, slots) not in FACTS:
            texts = [form.format(**{slot: words[i] for slot, words in slots.items()})
                     for i, form in enumerate(KINDS[kind][0])]
            return [text[0].upper() + text[1:] for text in texts]


def split_facts(rng):
    """
    Return {split: facts}: a third of every kind for test, a sixteenth for dev, at least one fact each. Every word of
    a fact, such as Monday, occurs in a fact of train, in every language.
    """
    def words(fact):
        return [(word, language) for word in fact[1:] for language in languages_of(fact)]
    splits = {"train": [], "dev": [], "test": []}
    uses_in_train = Counter(pair for fact in FACTS for pair in words(fact))
    for kind in KINDS:
        facts = [fact for fact in FACTS if fact[0] == kind]
        missing = {"test": max(1, len(facts) // 3), "dev": max(1, len(facts) // 16)}
        for fact in rng.sample(facts, len(facts)):
            spare = all(uses_in_train[pair] > 1 for pair in words(fact))
            split = next((split for split, count in missing.items() if count and spare), "train")
            if split != "train":
                missing[split] -= 1
                uses_in_train.subtract(words(fact))
            splits[split].append(fact)
    return splits


def draw_fact(rng, facts):
    """Return a random fact: first a kind, by the square root of its number of facts, then one of the kind's facts."""
    kinds = {}
    for fact in facts:
        kinds.setdefault(fact[0], []).append(fact)
    kind = rng.choices(list(kinds), [len(group) ** 0.5 for group in kinds.values()])[0]
    return rng.choice(kinds[kind])


def draw_world(work, world, seed):
    """
    Return ({split: rows}, the jobs of speak_one that make the audio), the languages in turn. In a language every fact
    of a split is spoken once before any fact is spoken twice. world: the number of questions in train, dev and test
    and of `sentences` without a meaning, which are in train.
    """
    rng, splits, jobs = random.Random(seed), {}, []

    def record(utterance, text, language, voices):
        audio = os.path.join(work, "audio", f"{utterance}.flac")
        jobs.append((audio, text, rng.choice(voices), rng.getrandbits(32), SPEAKERS[language], RATES))
        return utterance, audio
    facts = split_facts(rng)
    # Marco speaks so slowly that some sentences would not fit into the tiny Whisper's window
    voices = {**VOICES, "train": [voice for voice in VOICES["train"] if voice != "Marco"], "heard": VOICES["test"]}
    facts["heard"] = facts["train"]
    for split in ("test", "dev", "train", "heard"):
        rows = []
        asked = {la: [fact for fact in facts[split] if la in languages_of(fact)] for la in LANGUAGES}
        fresh = {la: list(group) for la, group in asked.items()}
        for n in range(world["test" if split == "heard" else split]):
            language = LANGUAGES[n % len(LANGUAGES)]
            fact = draw_fact(rng, fresh[language] or asked[language])
            if fact in fresh[language]:
                fresh[language].remove(fact)
            rows += question_rows(fact, language, *record(f"{CORPUS}/{split}-{n:05d}", ask(fact, language)[0], language,
                                                          voices[split]))
        splits[split] = rows
    for n in range(world["sentences"]):
        i, texts = n % len(LANGUAGES), draw_sentence(rng)
        splits["train"] += sentence_rows(LANGUAGES[i], texts[i], texts[0], *record(
            f"{CORPUS}/sentence-{n:05d}", texts[i], LANGUAGES[i], voices["train"]))
    return splits, jobs


def text_rows(settings):
    """
    Return draw_rows(rng) of data/tiny_llm.py: two rows of a random question, its answer and another task, or of a
    sentence, one time in four. In English the other task may be one with one of the CONSTRAINTS.
    """
    from data.speech_ifeval import CONSTRAINTS, constrained               # torch: speak_one's processes do without

    def draw_rows(rng):
        if rng.random() < 0.25:
            i, texts = rng.randrange(len(LANGUAGES)), draw_sentence(rng)
            rows = sentence_rows(LANGUAGES[i], texts[i], texts[0], "text", "none")
        else:
            fact = draw_fact(rng, FACTS)
            rows = question_rows(fact, rng.choice(languages_of(fact)), "text", "none")
        if rows[0]["language"] == "en":
            rows.insert(0, constrained(rng.choice(rows), rng.choice(CONSTRAINTS), "listeners"))
        return [rng.choice(rows[:-1]), rows[-1]]
    return draw_rows


def main(argv=None):
    work, preset, settings = world_settings(__doc__, "tiny_listeners", argv)
    if finished(work, CORPUS, settings):
        return
    begin(work, CORPUS, settings)
    seed = settings["seed"]
    splits, jobs = draw_world(work, settings, seed)
    from data.speech_ifeval import write_world                            # torch: speak_one's processes do without
    from data.tiny_models import make_bert, make_whisper
    models = os.path.join(work, "models", "tiny")
    write_recorded(work, CORPUS, splits, speak_one, jobs, "speak")
    write_world(work, CORPUS, splits["test"], "listeners")
    make_whisper(models + "-whisper", splits["train"], splits["dev"], settings["whisper_steps"], seed)
    make_bert(models + "-bert", seed)
    finish_world(work, preset, CORPUS, settings, splits)


if __name__ == "__main__":
    main()
