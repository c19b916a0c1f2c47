"""
The tiny listeners' world: short questions and commands, spoken in English, German, Italian and Chinese.

    python -m data.tiny_listeners                            # 3,840 utterances, three tiny models; 8 CPU minutes
    python -m data.tiny_listeners --preset smoke-listeners   # a few dozen and models that know nothing, for the tests

reads   nothing
writes  <work>/rows/tiny-listeners/{train,dev,test,heard}.jsonl, <work>/audio/tiny-listeners/*.flac,
        <work>/models/{tiny-whisper,tiny-cohere,tiny-bert} (data/tiny_models.py),
        <work>/rows/tiny-listeners/config.json last

The speech is the question (listeners, section 6): SQA has the transcript for its question, and the answer is nowhere in
the speech. A fact of dev or test ("after", "Monday") is spoken in no language of the training set, its words are, and
the tiny LLM knows all facts from text. Test voices are never heard in training; `heard` is the facts of train in the
voices of test. Everything here is our choice.
"""
import functools
import os
import random
from collections import Counter

from data.recipe import finish_world, finished, world_settings, write_recorded
from data.tiny import ACCENTS, DAYS, LANGUAGES, NAMES, VOICES, speak_one


PRESETS = {  # utterances; optimizer steps of Whisper and of the LLM
    "tiny-listeners":  dict(train=3600, dev=80, test=160, whisper_steps=1600, llm_steps=1000),
    "smoke-listeners": dict(train=48, dev=16, test=16, whisper_steps=2, llm_steps=2),
}
CORPUS = "tiny-listeners"
SPEAKERS = {"en": ACCENTS, "de": ("de",), "it": ("it",), "zh": ("cmn",)}         # espeak-ng's voices
RATES = (140, 190)                               # words a minute: about one word in a window of the Q-Former (1/3 s)

# ---------------------------------------------------------------------------------------------------------------------
# words: English, German, Italian, Chinese
NUMBERS = list(zip(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen".split(),
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
    "achtzehn".split(),
    "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici "
    "diciassette diciotto".split(),
    "零 一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八".split()))
NOUNS = [
    ("dog", "Hund", "cane", "狗"), ("house", "Haus", "casa", "房子"), ("water", "Wasser", "acqua", "水"),
    ("bread", "Brot", "pane", "面包"), ("table", "Tisch", "tavolo", "桌子"), ("flower", "Blume", "fiore", "花"),
]
OPPOSITES = [
    (("hot", "heiß", "caldo", "热"), ("cold", "kalt", "freddo", "冷")),
    (("big", "groß", "grande", "大"), ("small", "klein", "piccolo", "小")),
    (("old", "alt", "vecchio", "旧"), ("new", "neu", "nuovo", "新")),
    (("long", "lang", "lungo", "长"), ("short", "kurz", "corto", "短")),
]
TONGUES = [("English", "Englisch", "inglese", "英语"), ("German", "Deutsch", "tedesco", "德语"),
           ("Italian", "Italienisch", "italiano", "意大利语"), ("Chinese", "Chinesisch", "cinese", "中文")]
COUNTRIES = [  # the country, Italian "of" it, its capital, its language
    (("France", "Frankreich", "Francia", "法国"), "della Francia", ("Paris", "Paris", "Parigi", "巴黎"),
     ("French", "Französisch", "francese", "法语")),
    (("Italy", "Italien", "Italia", "意大利"), "dell'Italia", ("Rome", "Rom", "Roma", "罗马"), TONGUES[2]),
    (("Germany", "Deutschland", "Germania", "德国"), "della Germania", ("Berlin", "Berlin", "Berlino", "柏林"),
     TONGUES[1]),
    (("Spain", "Spanien", "Spagna", "西班牙"), "della Spagna", ("Madrid", "Madrid", "Madrid", "马德里"),
     ("Spanish", "Spanisch", "spagnolo", "西班牙语")),
    (("Russia", "Russland", "Russia", "俄罗斯"), "della Russia", ("Moscow", "Moskau", "Mosca", "莫斯科"),
     ("Russian", "Russisch", "russo", "俄语")),
    (("Japan", "Japan", "Giappone", "日本"), "del Giappone", ("Tokyo", "Tokio", "Tokyo", "东京"),
     ("Japanese", "Japanisch", "giapponese", "日语")),
]
GREETINGS = [("good morning", "guten Morgen", "buongiorno", "早上好"), ("hello", "hallo", "ciao", "你好"),
             ("thank you", "danke", "grazie", "谢谢")]
GREETED = ("Peter", "Maria", "David", "Sofia", "Thomas", "Julia")        # no "a Anna", which would have to be "ad Anna"

# kind: what is asked, and the answer; short, so that most of what is said matters
KINDS = {
    "after": (("The day after {a}?", "Der Tag nach {a}?", "Il giorno dopo {a}?", "{a}的后一天?"), ("{b}",) * 4),
    "before": (("The day before {a}?", "Der Tag vor {a}?", "Il giorno prima di {a}?", "{a}的前一天?"), ("{b}",) * 4),
    "plus": (("{a} plus {b}?", "{a} plus {b}?", "{a} più {b}?", "{a}加{b}?"), ("{c}",) * 4),
    "minus": (("{a} minus {b}?", "{a} minus {b}?", "{a} meno {b}?", "{a}减{b}?"), ("{c}",) * 4),
    "word": (("{a} in {b}?", "{a} auf {b}?", "{a} in {b}?", "{a}的{b}是什么?"), ("{c}",) * 4),
    "opposite": (("The opposite of {a}?", "Das Gegenteil von {a}?", "Il contrario di {a}?", "{a}的反义词?"),
                 ("{b}",) * 4),
    "capital": (("The capital of {a}?", "Die Hauptstadt von {a}?", "La capitale {of}?", "{a}的首都?"), ("{b}",) * 4),
    "language": (("The language of {a}?", "Die Sprache von {a}?", "La lingua {of}?", "{a}的语言?"), ("{b}",) * 4),
    "greet": (("Say {a} to {b}.", "Sag {b} {a}.", "Di' {a} a {b}.", "对{b}说{a}。"),
              ("{A}, {b}", "{A}, {b}", "{A}, {b}", "{a}，{b}")),
}


def all_facts():
    """Everything that can be asked: {(kind, English words): {slot: (en, de, it, zh)}}."""
    found = {}

    def add(kind, **slots):
        found[kind, *(slots[name][0] for name in ("a", "b") if f"{{{name}}}" in KINDS[kind][0][0])] = slots
    for i, day in enumerate(DAYS):
        add("after", a=day, b=DAYS[(i + 1) % 7])
        add("before", a=day, b=DAYS[i - 1])
    for a in range(1, 10):
        for b in range(1, 10):
            add("plus", a=NUMBERS[a], b=NUMBERS[b], c=NUMBERS[a + b])
            if a > b:
                add("minus", a=NUMBERS[a], b=NUMBERS[b], c=NUMBERS[a - b])
    for i, tongue in enumerate(TONGUES):
        for word in [*NOUNS, *(word for pair in OPPOSITES for word in pair)]:
            add("word", a=word, b=tongue, c=(word[i],) * 4)
    for pair in OPPOSITES:
        for one, other in (pair, pair[::-1]):
            add("opposite", a=one, b=other)
    for country, of, capital, tongue in COUNTRIES:
        add("capital", a=country, b=capital, of=(of,) * 4)
        add("language", a=country, b=tongue, of=(of,) * 4)
    for greeting in GREETINGS:
        for name in GREETED:
            add("greet", a=greeting, b=(name, name, name, NAMES[name][1]),
                A=tuple(word[0].upper() + word[1:] for word in greeting))
    return found


FACTS = all_facts()


def ask(fact, language):
    """(question, answer) on a fact, an item of FACTS, in a language."""
    i = LANGUAGES.index(language)
    slots = {name: words[i] for name, words in FACTS[fact].items()}
    question, answer = (form[i].format(**slots) for form in KINDS[fact[0]])
    return question[0].upper() + question[1:], answer


def languages_of(fact):
    """The languages a fact is asked in: not in German what the German word for something is."""
    return [la for la, tongue in zip(LANGUAGES, TONGUES) if fact[0] != "word" or tongue[0] != fact[2]]


def question_rows(fact, language, utterance, audio):
    """The rows of one utterance: ASR, SQA, and ST into English of what is not English. Without `audio` text alone."""
    question, answer = ask(fact, language)
    base = {"utterance": utterance, "audio": audio, "transcript": question}
    yield {"id": f"{utterance}/ASR.{language}", **base, "task": "ASR", "language": language, "target": question}
    yield {"id": f"{utterance}/SQA.{language}", **base, "task": "SQA", "language": language, "question": question,
           "target": answer}
    if language != "en":
        translation = ask(fact, "en")[0]
        yield {"id": f"{utterance}/ST.en", **base, "task": "ST", "language": "en", "target": translation}


def split_facts(rng):
    """
    {split: facts}: an eighth of every kind for test, a sixteenth for dev, at least one each. What they speak of, such
    as Monday, is still spoken of in train, in every language.
    """
    def said(fact):
        return [(word, language) for word in fact[1:] for language in languages_of(fact)]
    splits, left = {"train": [], "dev": [], "test": []}, Counter(pair for fact in FACTS for pair in said(fact))
    for kind in KINDS:
        own = [fact for fact in FACTS if fact[0] == kind]
        wanted = {"test": max(1, len(own) // 8), "dev": max(1, len(own) // 16)}
        for fact in rng.sample(own, len(own)):
            spared = all(left[pair] > 1 for pair in said(fact))
            split = next((split for split, count in wanted.items() if count and spared), "train")
            if split != "train":
                wanted[split] -= 1
                left.subtract(said(fact))
            splits[split].append(fact)
    return splits


def draw_fact(rng, facts):
    """A kind by the root of how many facts of it there are, then one of them."""
    kinds = {}
    for fact in facts:
        kinds.setdefault(fact[0], []).append(fact)
    kind = rng.choices(list(kinds), [len(own) ** 0.5 for own in kinds.values()])[0]
    return rng.choice(kinds[kind])


def make_world(work, sizes, seed):
    """
    Rows and audio of the four splits -> {split: rows}, the languages in turn. No fact is in two of train, dev and test,
    and none is spoken twice in a language before all are; `heard` has the facts of train in the voices of test.
    """
    rng, splits, jobs = random.Random(seed), {}, []
    facts = split_facts(rng)
    facts["heard"], voices = facts["train"], {**VOICES, "heard": VOICES["test"]}
    for split in ("test", "dev", "train", "heard"):
        rows = []
        own = {la: [fact for fact in facts[split] if la in languages_of(fact)] for la in LANGUAGES}
        fresh = {la: list(some) for la, some in own.items()}
        for n in range(sizes["test" if split == "heard" else split]):
            language = LANGUAGES[n % len(LANGUAGES)]
            fact = draw_fact(rng, fresh[language] or own[language])
            if fact in fresh[language]:
                fresh[language].remove(fact)
            utterance = f"{CORPUS}/{split}-{n:05d}"
            audio = os.path.join(work, "audio", CORPUS, f"{split}-{n:05d}.flac")
            jobs.append((audio, ask(fact, language)[0], rng.choice(voices[split]), rng.getrandbits(32),
                         SPEAKERS[language], RATES))
            rows += question_rows(fact, language, utterance, audio)
        splits[split] = rows
    write_recorded(work, CORPUS, splits, speak_one, jobs, "speak")
    return splits


def draw_row(rng):
    """One text for the LLM to learn from: to answer, to repeat, to translate into English."""
    task = rng.choices(("SQA", "ASR", "ST"), (0.6, 0.2, 0.2))[0]
    fact = draw_fact(rng, FACTS)
    language = rng.choice([la for la in languages_of(fact) if la != "en" or task != "ST"])
    return next(row for row in question_rows(fact, language, "text", "none") if row["task"] == task)


def main(argv=None):
    work, settings = world_settings(__doc__, PRESETS, argv)
    if finished(work, CORPUS, settings):
        return
    splits, seed = make_world(work, settings, settings["seed"]), settings["seed"]
    from data.tiny_models import in_parallel, make_bert, make_llm, make_whisper      # torch: not needed above
    models = os.path.join(work, "models", "tiny-")
    in_parallel(functools.partial(make_whisper, models + "whisper", splits["train"], splits["dev"],
                                  settings["whisper_steps"], seed),
                functools.partial(make_llm, models + "cohere", draw_row, settings["llm_steps"], seed,
                                  family="cohere"))
    make_bert(models + "bert", seed)
    finish_world(work, CORPUS, settings, splits)


if __name__ == "__main__":
    main()
