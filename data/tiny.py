"""
Make the tiny world: spoken English sentences with exact translations, questions and answers, and a tiny encoder.

    python -m data.tiny                      # 3,820 utterances and a tiny Seamless encoder; data/tiny_llm.py: the LLM
    python -m data.tiny --preset tiny26      # the world of the 2026 system: multiple choice

reads   `world` in the preset's page of config/
writes  <work>/rows/<corpus>/{train,dev,test}.jsonl, <work>/audio/<corpus>/*.flac,
        <work>/models/<corpus>-seamless (data/tiny_models.py), <work>/rows/<corpus>/config.json last

Ten sentence frames are filled from closed lists (names, cities, days, numbers, things, jobs, events). The German,
Italian and Chinese translations are exact because every list gives each word in four languages. No test sentence and no
test voice occurs in the training split. espeak-ng (PyPI: espeakng-loader) speaks, through ctypes. The whole world is
our choice: no paper has one.
"""
import ctypes
import functools
import math
import os
import random

import numpy as np

from data.recipe import begin, finish_world, finished, world_settings, write_recorded
from speech_llm.audio import write_flac
from speech_llm.prompts import NOT_ANSWERABLE
from speech_llm.rows import LANGUAGES

# ---------------------------------------------------------------------------------------------------------------------
# words: English, German, Italian, Chinese
NAMES = {  # English = German = Italian: (gender, Chinese)
    "Anna": ("f", "安娜"), "Peter": ("m", "彼得"), "Maria": ("f", "玛丽亚"), "David": ("m", "大卫"),
    "Sofia": ("f", "索菲亚"), "Thomas": ("m", "托马斯"), "Laura": ("f", "劳拉"), "Daniel": ("m", "丹尼尔"),
    "Julia": ("f", "朱莉娅"), "Martin": ("m", "马丁"), "Emma": ("f", "艾玛"), "Oscar": ("m", "奥斯卡"),
    "Nina": ("f", "尼娜"), "Robert": ("m", "罗伯特"), "Clara": ("f", "克拉拉"), "Victor": ("m", "维克多"),
}
CITIES = [
    ("London", "London", "Londra", "伦敦"), ("Rome", "Rom", "Roma", "罗马"), ("Paris", "Paris", "Parigi", "巴黎"),
    ("Berlin", "Berlin", "Berlino", "柏林"), ("Vienna", "Wien", "Vienna", "维也纳"),
    ("Madrid", "Madrid", "Madrid", "马德里"), ("Lisbon", "Lissabon", "Lisbona", "里斯本"),
    ("Prague", "Prag", "Praga", "布拉格"), ("Zurich", "Zürich", "Zurigo", "苏黎世"),
    ("Milan", "Mailand", "Milano", "米兰"), ("Oslo", "Oslo", "Oslo", "奥斯陆"), ("Boston", "Boston", "Boston", "波士顿"),
]
DAYS = [
    ("Monday", "Montag", "lunedì", "星期一"), ("Tuesday", "Dienstag", "martedì", "星期二"),
    ("Wednesday", "Mittwoch", "mercoledì", "星期三"), ("Thursday", "Donnerstag", "giovedì", "星期四"),
    ("Friday", "Freitag", "venerdì", "星期五"), ("Saturday", "Samstag", "sabato", "星期六"),
    ("Sunday", "Sonntag", "domenica", "星期日"),
]
NUMBERS = [
    ("two", "zwei", "due", "两"), ("three", "drei", "tre", "三"), ("four", "vier", "quattro", "四"),
    ("five", "fünf", "cinque", "五"), ("six", "sechs", "sei", "六"), ("seven", "sieben", "sette", "七"),
    ("eight", "acht", "otto", "八"), ("nine", "neun", "nove", "九"),
]
THINGS = [  # the Chinese form is (measure word, noun)
    ("books", "Bücher", "libri", ("本", "书")), ("apples", "Äpfel", "mele", ("个", "苹果")),
    ("chairs", "Stühle", "sedie", ("把", "椅子")), ("lamps", "Lampen", "lampade", ("盏", "灯")),
    ("tickets", "Karten", "biglietti", ("张", "票")), ("bottles", "Flaschen", "bottiglie", ("个", "瓶子")),
    ("shirts", "Hemden", "camicie", ("件", "衬衫")), ("flowers", "Blumen", "fiori", ("朵", "花")),
    ("phones", "Telefone", "telefoni", ("部", "电话")), ("keys", "Schlüssel", "chiavi", ("把", "钥匙")),
]
JOBS = [  # English with its article; German and Italian (man, woman)
    ("a teacher", ("Lehrer", "Lehrerin"), ("insegnante", "insegnante"), "老师"),
    ("a doctor", ("Arzt", "Ärztin"), ("medico", "medica"), "医生"),
    ("an engineer", ("Ingenieur", "Ingenieurin"), ("ingegnere", "ingegnera"), "工程师"),
    ("a nurse", ("Pfleger", "Pflegerin"), ("infermiere", "infermiera"), "护士"),
    ("a lawyer", ("Anwalt", "Anwältin"), ("avvocato", "avvocata"), "律师"),
    ("a cook", ("Koch", "Köchin"), ("cuoco", "cuoca"), "厨师"),
    ("a pilot", ("Pilot", "Pilotin"), ("pilota", "pilota"), "飞行员"),
    ("a painter", ("Maler", "Malerin"), ("pittore", "pittrice"), "画家"),
]
EVENTS = [  # with the article
    ("concert", "Das Konzert", "Il concerto", "音乐会"), ("meeting", "Das Treffen", "La riunione", "会议"),
    ("party", "Die Feier", "La festa", "聚会"), ("race", "Das Rennen", "La gara", "比赛"),
    ("fair", "Die Messe", "La fiera", "展览会"), ("wedding", "Die Hochzeit", "Il matrimonio", "婚礼"),
]
WEATHERS = [("cold", "kalt", "freddo", "冷"), ("hot", "heiß", "caldo", "热"), ("nice", "schön", "bello", "好"),
            ("bad", "schlecht", "brutto", "差")]

# frame: the sentence in en, de, it, zh, and its questions {slot asked for: the question in en, de, it, zh}
FRAMES = {
    "buy": (
        ("{name} bought {number} {thing} in {city}.", "{name} kaufte {number} {thing} in {city}.",
         "{name} ha comprato {number} {thing} a {city}.", "{name}在{city}买了{number}{measure}{thing}。"),
        {"name": ("Who bought something?", "Wer hat etwas gekauft?", "Chi ha comprato qualcosa?", "谁买了东西?"),
         "thing": ("What was bought?", "Was wurde gekauft?", "Che cosa è stato comprato?", "买了什么?"),
         "number": ("How many things were bought?", "Wie viele Dinge wurden gekauft?",
                    "Quante cose sono state comprate?", "买了多少?"),
         "city": ("Where were the things bought?", "Wo wurden die Dinge gekauft?",
                  "Dove sono state comprate le cose?", "东西是在哪里买的?")}),
    "travel": (
        ("{name} will travel to {city} on {day}.", "{name} wird am {day} nach {city} reisen.",
         "{name} andrà a {city} {day}.", "{name}{day}要去{city}旅行。"),
        {"name": ("Who will travel?", "Wer wird reisen?", "Chi andrà in viaggio?", "谁要去旅行?"),
         "city": ("Where does the journey go?", "Wohin geht die Reise?", "Dove porta il viaggio?", "要去哪里旅行?"),
         "day": ("When is the journey?", "Wann ist die Reise?", "Quando è il viaggio?", "什么时候去旅行?")}),
    "event": (
        ("The {event} in {city} is on {day}.", "{event} in {city} ist am {day}.",
         "{event} a {city} è {day}.", "{city}的{event}在{day}。"),
        {"city": ("Where is the event?", "Wo ist die Veranstaltung?", "Dove è l'evento?", "活动在哪里?"),
         "day": ("When is the event?", "Wann ist die Veranstaltung?", "Quando è l'evento?", "活动是什么时候?")}),
    "gift": (
        ("{name} gave {other} {number} {thing}.", "{name} gab {other} {number} {thing}.",
         "{name} ha dato {number} {thing} a {other}.", "{name}给了{other}{number}{measure}{thing}。"),
        {"name": ("Who gave a present?", "Wer hat etwas geschenkt?", "Chi ha fatto un regalo?", "谁送了礼物?"),
         "other": ("Who got a present?", "Wer hat etwas bekommen?", "Chi ha ricevuto un regalo?", "谁收到了礼物?"),
         "thing": ("What was the present?", "Was war das Geschenk?", "Che cosa era il regalo?", "礼物是什么?"),
         "number": ("How many presents were given?", "Wie viele Geschenke waren es?", "Quanti erano i regali?",
                    "送了多少礼物?")}),
    "job": (
        ("{name} works as {job} in {city}.", "{name} arbeitet als {job} in {city}.",
         "{name} lavora come {job} a {city}.", "{name}在{city}当{job}。"),
        {"name": ("Who works there?", "Wer arbeitet dort?", "Chi lavora lì?", "谁在那里工作?"),
         "job": ("Which job is it?", "Welcher Beruf ist es?", "Quale lavoro è?", "是什么工作?"),
         "city": ("Where is the job?", "Wo ist die Arbeit?", "Dove è il lavoro?", "在哪里工作?")}),
    "meet": (
        ("{name} met {other} on {day}.", "{name} traf {other} am {day}.",
         "{name} ha incontrato {other} {day}.", "{name}{day}遇见了{other}。"),
        {"name": ("Who met someone?", "Wer traf jemanden?", "Chi ha incontrato qualcuno?", "谁遇见了别人?"),
         "other": ("Who was met?", "Wer wurde getroffen?", "Chi è stato incontrato?", "遇见了谁?"),
         "day": ("When did they meet?", "Wann trafen sie sich?", "Quando si sono incontrati?", "什么时候遇见的?")}),
    "need": (
        ("We need {number} {thing} by {day}.", "Wir brauchen bis {day} {number} {thing}.",
         "Abbiamo bisogno di {number} {thing} entro {day}.", "我们{day}之前需要{number}{measure}{thing}。"),
        {"thing": ("What is needed?", "Was wird gebraucht?", "Di che cosa c'è bisogno?", "需要什么?"),
         "number": ("How many are needed?", "Wie viele werden gebraucht?", "Quanti ne servono?", "需要多少?"),
         "day": ("When is it needed?", "Wann wird es gebraucht?", "Per quando serve?", "什么时候需要?")}),
    "train": (
        ("The train from {city} to {goal} leaves on {day}.", "Der Zug von {city} nach {goal} fährt am {day} ab.",
         "Il treno da {city} a {goal} parte {day}.", "从{city}到{goal}的火车{day}出发。"),
        {"city": ("Where does the train start?", "Wo fährt der Zug ab?", "Da dove parte il treno?", "火车从哪里出发?"),
         "goal": ("Where does the train go?", "Wohin fährt der Zug?", "Dove va il treno?", "火车去哪里?"),
         "day": ("When does the train leave?", "Wann fährt der Zug?", "Quando parte il treno?", "火车什么时候出发?")}),
    "weather": (
        ("The weather in {city} will be {weather} on {day}.", "Das Wetter in {city} wird am {day} {weather}.",
         "A {city} {day} farà {weather}.", "{city}{day}的天气会很{weather}。"),
        {"weather": ("How will the weather be?", "Wie wird das Wetter?", "Che tempo farà?", "天气怎么样?"),
         "city": ("Where is the forecast for?", "Für wo gilt die Vorhersage?", "Per dove sono le previsioni?",
                  "是哪里的天气?"),
         "day": ("Which day is the forecast for?", "Für wann gilt die Vorhersage?", "Per quando sono le previsioni?",
                 "是哪天的天气?")}),
    "house": (
        ("{name} and {other} have a house in {city}.", "{name} und {other} haben ein Haus in {city}.",
         "{name} e {other} hanno una casa a {city}.", "{name}和{other}在{city}有一座房子。"),
        {"city": ("Where is the house?", "Wo ist das Haus?", "Dove è la casa?", "房子在哪里?")}),
}


def draw_sentence(rng):
    """Return a random sentence: {"frame", "text": (en, de, it, zh), "slots": {slot: (en, de, it, zh)}}."""
    frame = rng.choice(list(FRAMES))
    name, other = rng.sample(list(NAMES), 2)
    city, goal = rng.sample(CITIES, 2)
    thing, job, female = rng.choice(THINGS), rng.choice(JOBS), NAMES[name][0] == "f"
    number = rng.choice(NUMBERS)
    slots = {
        "name": (name, name, name, NAMES[name][1]), "other": (other, other, other, NAMES[other][1]),
        "city": city, "goal": goal, "day": rng.choice(DAYS), "number": number, "event": rng.choice(EVENTS),
        "thing": (*thing[:3], thing[3][1]), "measure": ("", "", "", thing[3][0]),
        "job": (job[0], job[1][female], job[2][female], job[3]), "weather": rng.choice(WEATHERS),
    }
    text = tuple(form.format(**{slot: words[i] for slot, words in slots.items()})
                 for i, form in enumerate(FRAMES[frame][0]))
    return {"frame": frame, "text": text, "slots": slots}


def draw_question(rng, sentence, language, answerable):
    """
    Return (question, answer) on a sentence.
    An unanswerable question is a question on another frame (2025, section 2.1).
    """
    i = LANGUAGES.index(language)
    frame = sentence["frame"] if answerable else rng.choice([f for f in FRAMES if f != sentence["frame"]])
    questions = FRAMES[frame][1]
    slot = rng.choice(list(questions))
    if not answerable:
        return questions[slot][i], NOT_ANSWERABLE[language]
    answer = sentence["slots"][slot][i]
    return questions[slot][i], answer + sentence["slots"]["measure"][i] if slot == "number" else answer


def draw_choice(rng, sentence, language):
    """
    Return (question, answer) of a multiple-choice question on a sentence (2026, section 2.1 and Table 7).
    The question ends with four different options on the same line; an answer reads "B Rome".
    """
    i = LANGUAGES.index(language)
    questions = FRAMES[sentence["frame"]][1]
    slot, measure = rng.choice(list(questions)), sentence["slots"]["measure"][i]
    options = [sentence["slots"][slot][i]]
    while len(options) < 4:
        other = draw_sentence(rng)["slots"][slot][i]
        options += [other] * (other not in options)
    options = [option + measure * (slot == "number") for option in options]
    right = options[0]
    rng.shuffle(options)
    listed = " ".join(f"{letter}. {option}" for letter, option in zip("ABCD", options))
    return f"{questions[slot][i]} {listed}", f"{'ABCD'[options.index(right)]} {right}"


def sentence_rows(rng, sentence, utterance, audio, choices=False):
    """
    Yield the twelve rows of one utterance: ASR, ST into three languages, and in each of four languages one SQA with an
    answer and one without; with `choices`, sixteen rows: also one multiple-choice question in each language.
    """
    base = {"utterance": utterance, "audio": audio, "transcript": sentence["text"][0]}
    yield {"id": f"{utterance}/ASR.en", **base, "task": "ASR", "language": "en", "answerable": True,
           "target": sentence["text"][0]}
    for language, translation in zip(LANGUAGES[1:], sentence["text"][1:]):
        yield {"id": f"{utterance}/ST.{language}", **base, "task": "ST", "language": language, "answerable": True,
               "target": translation}
    for language in LANGUAGES:
        for answerable in (True, False):
            question, answer = draw_question(rng, sentence, language, answerable)
            kind = "SQA" if answerable else "SQA-invalid"
            yield {"id": f"{utterance}/{kind}.{language}", **base, "task": "SQA", "language": language,
                   "answerable": answerable, "question": question, "target": answer}
        if choices:
            question, answer = draw_choice(rng, sentence, language)
            yield {"id": f"{utterance}/MCQ.{language}", **base, "task": "MCQ", "language": language,
                   "answerable": True, "question": question, "target": answer}


# ---------------------------------------------------------------------------------------------------------------------
# voices: espeak-ng's voice files change formants and pitch, the accents change the phonemes
ACCENTS = ("en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan")
RATES = (170, 235)  # words a minute
# The voices of dev and test never speak in train. espeak's voices with breath are left out: their noise differs from
# run to run
VOICES = {
    "train": ("m1", "m2", "m4", "m5", "m6", "m7", "f1", "Alex", "Andrea", "Annie", "Denis", "Diogo", "Gene", "Henrique",
              "Hugo", "Jacky", "Lee", "Marco", "Michael", "Mike", "Nguyen", "RicishayMax", "adam", "anika",
              "announcer", "antonio", "aunty", "belinda", "benjamin", "boris", "ed", "edward", "grandma", "grandpa",
              "gustave", "ian", "iven", "john", "linda", "marcelo", "max", "michel", "miguel", "mike2", "norbert",
              "pablo", "pedro", "quincy", "robert", "shelby", "steph", "steph2", "travis"),
    "dev": ("m8", "paul", "zac"),
    "test": ("m3", "f4", "Andy", "Mario", "david", "rob"),
}
ESPEAK_RATE = 22050  # Hz


@functools.cache  # once in every worker process
def load_espeak():
    """
    Return speak(text, voice, words a minute, pitch from 0 to 99), which returns a float32 wave at 22,050 Hz.
    RuntimeError if espeak-ng does not start. The library is called through ctypes.
    """
    import espeakng_loader
    lib = ctypes.CDLL(espeakng_loader.get_library_path())
    synchronous, utf8, rate_parameter, pitch_parameter = 2, 1, 1, 3
    sample_rate = lib.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
    if sample_rate != ESPEAK_RATE:
        raise RuntimeError(f"espeak-ng did not start: espeak_Initialize returned {sample_rate}, not {ESPEAK_RATE}")
    chunks = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(wave, count, events):
        if wave and count > 0:
            chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0
    lib.espeak_SetSynthCallback(collect)

    def speak(text, voice, rate, pitch):
        chunks.clear()
        if lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        lib.espeak_SetParameter(rate_parameter, rate, 0)
        lib.espeak_SetParameter(pitch_parameter, pitch, 0)
        data = text.encode() + b"\0"
        lib.espeak_Synth(data, len(data), 0, 0, 0, utf8, None, None)
        return np.concatenate(chunks).astype(np.float32) / 2**15
    speak.keep_alive = collect  # ctypes does not hold a reference to a callback
    return speak


def resample(wave, old, new):
    """Return a wave at a lower sample rate, band-limited: the spectrum of the wave and the silence after it is cut."""
    period = 16 * old // math.gcd(old, new)              # Fourier transforms of multiples of 16 samples are fast
    padded = -(-len(wave) // period) * period
    count = padded * new // old
    spectrum = np.fft.rfft(wave, padded)[:count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (new / old))[:len(wave) * new // old].astype(np.float32)


def speak_one(job):
    """
    Write one utterance as FLAC at 16 kHz; accent, speed, pitch and noise are drawn from the job's seed.
    job: (path, text, voice, seed, accents, (lowest, highest words a minute)).
    """
    path, text, voice, seed, accents, rates = job
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    wave = load_espeak()(text, f"{rng.choice(accents)}+{voice}", rng.randint(*rates), rng.randint(30, 70))
    wave = resample(wave, ESPEAK_RATE, 16000)
    wave *= 0.5 / max(np.abs(wave).max(), 1e-4)
    snr = rng.uniform(15, 40)  # dB
    wave += noise.standard_normal(len(wave)).astype(np.float32) * np.sqrt((wave**2).mean()) * 10 ** (-snr / 20)
    write_flac(path, wave)


def draw_world(work, world, seed):
    """
    Return ({split: rows}, the jobs of speak_one that make the audio). No sentence occurs twice.
    world: {"corpus", "choices", and the number of utterances of "train", "dev" and "test"}.
    """
    rng, sentences, splits, jobs, corpus = random.Random(seed), set(), {}, [], world["corpus"]
    for split in ("test", "dev", "train"):
        splits[split] = []
        for n in range(world[split]):
            sentence = draw_fresh(rng, sentences)
            sentences.add(sentence["text"][0])
            audio = os.path.join(work, "audio", corpus, f"{split}-{n:05d}.flac")
            jobs.append((audio, sentence["text"][0], rng.choice(VOICES[split]), rng.getrandbits(32), ACCENTS, RATES))
            splits[split] += sentence_rows(rng, sentence, f"{corpus}/{split}-{n:05d}", audio, world["choices"])
    return splits, jobs


def draw_fresh(rng, excluded):
    """Return a random sentence whose English text is not in `excluded`."""
    while (sentence := draw_sentence(rng))["text"][0] in excluded:
        pass
    return sentence


def text_rows(settings):
    """Return draw_rows(rng) of data/tiny_llm.py: a row of a random sentence that dev and test do not have."""
    from data.tiny_llm import instruction_of
    splits, _ = draw_world("", settings, settings["seed"])
    held_out = {row["transcript"] for split in ("dev", "test") for row in splits[split]}

    def draw_rows(rng):
        sentence = draw_fresh(rng, held_out)
        return [instruction_of(list(sentence_rows(rng, sentence, "tiny/text", "none", settings["choices"])), rng)]
    return draw_rows


def main(argv=None):
    work, preset, settings = world_settings(__doc__, "tiny", argv)
    corpus, seed = settings["corpus"], settings["seed"]
    if finished(work, corpus, settings):
        return
    begin(work, corpus, settings)
    splits, jobs = draw_world(work, settings, seed)
    from data.speech_ifeval import write_world           # these import torch, which speak_one's processes do without
    from data.tiny_models import make_encoder
    write_recorded(work, corpus, splits, speak_one, jobs, "speak")
    write_world(work, corpus, splits["test"])
    make_encoder(os.path.join(work, "models", f"{corpus}-seamless"), splits["train"], splits["dev"],
                 settings["encoder_steps"], seed)
    finish_world(work, preset, corpus, settings, splits)


if __name__ == "__main__":
    main()
