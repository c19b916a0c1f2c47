"""
Speech-IFEval's rule-based part: does a response obey the form its instruction asked for?

    follows("startend:quotation", {}, '"Hello."')                                     -> True
    follows("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b")  -> True
    follows("change_case:english_capital", {}, "")                -> False, an empty response obeys nothing
    rates(rows)          -> {"closed": 83.70..., "creative": 91.75}, on the responses published for DeSTA2

The verifiers do what Speech-IFEval's own code does (kehanlu/Speech-IFEval e2e9c14, arXiv 2505.19037), a
modified Google IFEval in its strict form; "Google" below marks where the two differ. The third part,
chain-of-thought, is judged by GPT-4o and not here; the paper's IFrate is the plain mean of the three parts'
rates.

Sentences are counted by NLTK's English Punkt, as in the reference, where nltk and its data are installed (pip
install "nltk>=3.10"; python -m nltk.downloader punkt_tab; older ones do not end a sentence at .” with a curly
quote). Without them Punkt's rules run on our own short word lists (our choice), which matter only after an
abbreviation, an initial or an ellipsis; DeSTA2's 1,333 published verdicts come out the same.
`sentence_counter()` says which of the two is in use.
"""
import json
import re
from functools import lru_cache


# ----------------------------------------------------------------------------------------------------
# The verifiers: (response, its keyword arguments) -> bool

def capital(response, _):
    return response.isupper()


def lowercase(response, _):
    return response.islower()                         # Google also asks a language detector for English


def json_format(response, _):
    response = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):   # each is removed once, in this order
        response = response.removeprefix(fence)
    try:
        json.loads(response.removesuffix("```").strip())
    except (ValueError, RecursionError):   # RecursionError: a looping model's thousands of brackets
        return False
    return True                                       # a bare string, number or NaN passes too


def quotation(response, _):
    response = response.strip()
    return len(response) > 1 and response[0] == response[-1] == '"'


def title(response, _):
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", response))


def repeat_prompt(response, arguments):
    wanted = arguments["prompt_to_repeat"].strip().lower()
    return response.strip().lower().strip("\"'").startswith(wanted)   # Google keeps the quotes


def end_checker(response, arguments):
    return response.strip().strip('"').lower().endswith(arguments["end_phrase"].strip().lower())


def bullets(response, arguments):
    response = response.replace("\\n", "\n")          # Google does neither this nor the last two patterns
    patterns = (r"^\s*\*[^\*].*$", r"^\s*-.*$", r"^\s*•.*$", r"^\s*\d.*$")
    return sum(len(re.findall(pattern, response, re.M)) for pattern in patterns) == arguments["num_bullets"]


def existence(response, arguments):   # a keyword is a regular expression, found inside words too
    return all(re.search(keyword, response, re.I) for keyword in arguments["keywords"])


def forbidden(response, arguments):
    return not any(re.search(rf"\b{word}\b", response, re.I) for word in arguments["forbidden_words"])


def number_words(response, arguments):
    return compare(len(re.findall(r"\w+", response)), arguments["num_words"], arguments["relation"])


def number_sentences(response, arguments):
    _, count = sentence_counter()
    return compare(count(response), arguments["num_sentences"], arguments["relation"])


def number_paragraphs(response, arguments):
    pieces = re.split(r"\s*\*\*\*\s*|\n+", response.strip())   # Google splits at *** only
    blank = [not piece.strip() for piece in pieces]
    if any(blank[1:-1]):
        return False
    # a *** that opens or closes the text leaves a blank piece there, which is no paragraph
    return blank.count(False) == arguments["num_paragraphs"]


def compare(count, bound, relation):
    if relation == "less than":
        return count < bound
    if relation == "at least":
        return count >= bound
    raise ValueError(f"relation {relation!r}: must be 'less than' or 'at least'")


CLOSED = {      # constraints on closed-ended questions; the groups are the paper's
    "change_case:english_capital": capital,                         # CC change case
    "change_case:english_lowercase": lowercase,
    "combination:repeat_prompt": repeat_prompt,                     # SE start and end
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,                                # WR wrap
    "detectable_format:title": title,
    "detectable_format:json_format": json_format,                   # JS JSON
}
CREATIVE = {    # constraints on creative writing
    "detectable_format:number_bullet_lists": bullets,               # BP bullet points
    "keywords:existence": existence,                                # KW keywords
    "keywords:forbidden_words": forbidden,
    "length_constraints:number_sentences": number_sentences,        # LN length
    "length_constraints:number_words": number_words,
    "length_constraints:number_paragraphs": number_paragraphs,
}


def follows(instruction_id, kwargs, response):
    """Whether the response obeys one instruction, strictly: not blank, and its verifier says yes.

    ValueError for an unknown id or relation, KeyError for a missing argument.
    """
    verifiers = CLOSED | CREATIVE
    if instruction_id not in verifiers:
        raise ValueError(f"unknown instruction {instruction_id!r}; known: {', '.join(sorted(verifiers))}")
    return bool(response.strip()) and verifiers[instruction_id](response, kwargs)


def rates(rows):
    """Speech-IFEval rows with a `response` each -> {"closed": percent, "creative": percent} of rows followed.

    A row is a line of the benchmark's closed_ended_questions or creative_writing file, whose
    `instruction_id_list` and `kwargs` run in parallel (one instruction a row, as published); it counts when
    all are followed. A group without rows is left out. ValueError for a row without instructions, or with
    both groups'.
    """
    verdicts = {"closed": [], "creative": []}
    for row in rows:
        ids = row["instruction_id_list"]
        followed = [follows(i, kwargs, row["response"]) for i, kwargs in zip(ids, row["kwargs"], strict=True)]
        groups = {"closed" if i in CLOSED else "creative" for i in ids}
        if len(groups) != 1:
            raise ValueError(f"row {row.get('id')!r}: one group of instructions expected, got {ids}")
        verdicts[groups.pop()].append(all(followed))
    return {group: 100 * sum(v) / len(v) for group, v in verdicts.items() if v}


# ----------------------------------------------------------------------------------------------------
# Sentences

@lru_cache(maxsize=1)
def sentence_counter():
    """-> ("nltk punkt" or "own lists", the function from an English text to its number of sentences)."""
    try:
        from nltk.tokenize.punkt import PunktTokenizer
        punkt = PunktTokenizer("english")
    except (ImportError, LookupError):                # no nltk (or one before punkt_tab), or no data for it
        return "own lists", lambda text: len(sentences(text))
    return "nltk punkt", lambda text: len(punkt.tokenize(text))


# Punkt learnt its lists from newspapers; these are ours. Words that often end sentences ("sat") stay out.
ABBREVIATIONS = set("""
    mr mrs ms mx messrs dr drs prof rev fr hon st sr jr gen col lt sgt capt cpl cmdr maj adm gov sen
    rep reps pres supt inc ltd co cos corp bros plc llc assn dept univ inst est ave blvd rd mt ft vs
    viz etc al cf approx e.g i.e ph.d b.sc m.sc d.phil jan feb apr jun jul aug sep sept oct nov dec
    mon tues thurs fri ariz calif colo conn fla kan mich minn mo mont neb nev okla pa penn tenn tex
    va vt wis wyo""".split())
BEFORE_NUMBERS = set("no nos p pp fig figs eq eqs vol vols ch sec art ca par".split())   # "No. 5" only
STARTERS = set("""
    a about according additionally after again all also although an and another any are as at based
    because before both but by can could did do does during each either even every finally first for
    from furthermore given has have he her here hers his how however i if in instead is it it's its
    just last lastly later let like many may maybe meanwhile more moreover most my neither next
    nevertheless no nonetheless not nothing now of often on once one only or other others our out
    over overall people perhaps please rather second several she should similarly since so some
    someone sometimes soon still such than that that's the their them then there there's therefore
    these they they're third this those though through thus to today together too two under
    unfortunately unlike until up upon we we're well were what when whenever where whether which
    while who whoever whose why will with within without would yes yet you you're your""".split())

NOT_IN_WORDS = "][)\";}*:@'({!?\u2018\u2019\u201c\u201d\xab\xbb"   # a period can end a sentence before these
NOT_A_START = "][(\"`{:;&#*@)},-"                                  # no word begins with these
MULTIPLE = r"-{2,}|\.{2,}|(?:\.\s){2,}\."                          # dashes and ellipses are tokens
WORD_END = rf"\s|$|[{re.escape(NOT_IN_WORDS)}]|{MULTIPLE}"
TOKEN = re.compile(rf"{MULTIPLE}|(?![{re.escape(NOT_A_START)}])\S+?(?={WORD_END}|,(?:{WORD_END}))|\S")
CLOSING = re.compile(r"[\"')\]}\u2018\u2019\u201c\u201d\xab\xbb]+?(?:\s+|(?=--)|$)", re.M)


def sentences(text):
    """English text -> its sentences, by Punkt's rules (Kiss and Strunk 2006, as in NLTK 3.10), our lists."""
    begins, ends = [0], []
    found = list(re.finditer(r"\S+", text))
    for word, following in zip(found, [*found[1:], None]):
        for spot in marks(word.group(), following):
            head, rest = word.group()[:spot + 1], word.group()[spot + 1:spot + 2]
            tokens = TOKEN.findall(head + rest) + ([] if rest else TOKEN.findall(following.group()))
            if any(ends_sentence(token, after) for token, after in zip(tokens, tokens[1:])):
                ends.append(word.start() + spot + 1)
                begins.append(word.start() + spot + 1 if rest else following.start())
    ends.append(len(text.rstrip()))
    for i in range(1, len(begins)):                   # quotes and brackets that close a sentence belong to it
        closing = CLOSING.match(text, begins[i], ends[i])
        if closing:
            ends[i - 1] = begins[i] + len(closing.group().rstrip())
            begins[i] = closing.end()
    return [text[begin:end] for begin, end in zip(begins, ends) if begin < end]


def marks(word, following):
    """Where a run of non-spaces may end a sentence: its last . ? ! before something, and one at its start."""
    spots = [m.start() for m in re.finditer(r"[.?!]", word)]
    spots = [i for i in spots if (word[i + 1] in NOT_IN_WORDS if i + 1 < len(word) else following)]
    return [i for i in spots if i in (0, spots[-1])]


def ends_sentence(token, following):
    if token in (".", "?", "!"):
        return True
    starter = following[0].isupper() and following.lower().removesuffix(".") in STARTERS
    if re.fullmatch(r"\.{2,}", token):
        return starter
    if not token.endswith(".") or token.endswith(".."):
        return False
    word = token[:-1].lower()
    goes_on = following[0].islower() or following in (";", ":", ",", ".", "!", "?")
    if re.fullmatch(r"[^\W\d]", word):                # an initial: "J. Bach" goes on, "plan B. The" does not
        return starter or not (goes_on or following[0].isupper())
    if word in BEFORE_NUMBERS and following[0].isdigit():
        return False
    tail = word.split("-")[-1]
    if {word, tail} & ABBREVIATIONS or re.fullmatch(r"(?:[^\W\d]\.)+[^\W\d]", tail):   # "U.S.", "non-U.S."
        return starter
    if re.fullmatch(r"-?[.,]?\d[\d,.-]*", word):      # "in 1990. he": an ordinal or a list number
        return not goes_on
    return True
