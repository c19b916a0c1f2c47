"""
No input makes the code execute, write outside its folder, grow without end, or take somebody's words for the marks of a
turn. (Damaged files of every kind, pickles that would run code among them, are those of test_bad_input.py.)
"""
import ast
import gzip
import io
import json
import os
import random
import tarfile

import pytest
from test_bad_input import TALK, TEST, at_most, refused, write
from test_layout import SOURCES, source

from data import acl6060, covost2, rows, speak
from metrics import mcif


# --- The source.

MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "yaml", "xmlrpc", "pty", "code", "telnetlib"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "np.fromfile",
         "pd.read_pickle"}
STRINGS = (ast.Constant, ast.JoinedStr, ast.BinOp)
METHODS = {"extractall", "extract", "unpack_archive"}
XML = {os.path.join("data", "acl6060.py"), os.path.join("metrics", "mcif.py")}                # both are tested below


def unsafe(text, path=""):
    """[what a source does that it should not]."""
    found = ["trust_remote_code"] * ("trust_remote_code" in text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
            found += [f"import {name}" for name in names if name.split(".")[0] in MODULES]
            found += [f"import {name}" for name in names if name.startswith("xml") and path not in XML]
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in CALLS or "." in name and name.split(".")[-1] in METHODS:
            found.append(name)
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append("torch.load without weights_only")
        if name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
            found.append("np.load without allow_pickle=False")
        if options.get("allow_pickle", "False") != "False" or options.get("shell", "False") != "False":
            found.append(f"{name} with {options}")
        if name.startswith("subprocess.") and isinstance((node.args or [None])[0], STRINGS):
            found.append(f"{name} of a string")
    return found


@pytest.mark.parametrize("path", SOURCES)
def test_nothing_unsafe_in(path):
    assert unsafe(source(path), path) == []


@pytest.mark.parametrize("text", [
    "import pickle", "from pickle import loads", "import yaml", "torch.load(p)", "torch.load(p, weights_only=False)",
    "np.load(p)",
    "np.load(p, allow_pickle=True)", "np.save(p, a, allow_pickle=True)", "eval('1')", "exec(x)", "os.system('ls')",
    "os.popen(x)",
    "subprocess.run(x, shell=True)", "subprocess.run('ls', check=True)", "subprocess.run(f'ls {x}')",
    "tar.extractall(p)",
    "AutoModel.from_pretrained(p, trust_remote_code=True)", "from xml.etree import ElementTree", "tempfile.mktemp()"])
def test_the_test_of_the_source_finds(text):
    assert unsafe(text)


def test_what_is_safe_passes():
    assert unsafe("torch.load(p, weights_only=True); np.load(p, allow_pickle=False); subprocess.run(['ls', x])") == []
    assert unsafe("re.compile(x); extract(x)") == []


# --- Names that would become paths.

HOSTILE = ["..", "../x", "a/../../x", "/etc/passwd", "a\\..\\x", "a\0b", "a\nb", "a\rb", "a\tb", "\x1b]0;x\x07",
           "a\x7fb", "a\x85b",
           "a\u2028b", "\u202egpj.exe", "x" * 201, "狗" * 67, "a/" + "x" * 256, "tiny/../x", "../" * 40 + "x", "a/..",
           "\ud800"]
LOOK_ALIKES = ["a\u2215b", "..\u2215x", "..\uff0fx", "\uff0e\uff0e/x", "\u2024\u2024/x", "..\u2044x", "a\u29f8b",
               "\u2025/x", "%2e%2e/x",
               "..%2fx", "...", ".../x", "~/x", "$HOME/x", "a b", "-rf", "CON", "é", "e\u0301"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_name_that_leaves_its_folder_is_refused(name, tmp_path, monkeypatch):
    row = {"id": name, "task": "ST", "language": "de", "transcript": "Yes.", "target": "Ja."}
    assert rows.defect(row) and rows.defect({**row, "id": "a", "utterance": name, "audio": "a.wav"})
    monkeypatch.setattr(speak, "load_seamless", lambda *_: pytest.fail("nothing is to be spoken"))
    refused(speak.speak, {name: "Yes."}, str(tmp_path / "audio"), says="is no name of a file below")
    assert os.listdir(tmp_path) == [] and (len(name) > 50 or not covost2.CLIP.fullmatch(name))


@pytest.mark.parametrize("name", LOOK_ALIKES, ids=ascii)
def test_a_look_alike_is_a_name_like_any_other(name, tmp_path):
    """Nothing in the project folds characters: a division slash is no slash. What is not refused stays below."""
    assert not rows.name_defect(name)
    folder = tmp_path / "audio"
    with rows.replace_file(str(folder / f"{name}.flac")) as temporary, open(temporary, "w") as file:
        file.write("x")
    assert os.listdir(tmp_path) == ["audio"] and sum(map(len, (files for *_, files in os.walk(folder)))) == 1


def test_no_name_that_is_taken_leads_outside(tmp_path):
    rng, taken = random.Random(0), 0
    for _ in range(20_000):
        name = "".join(rng.choices(["a", ".", "..", "/", "\\", "\0", "\n", "\u2215", "\uff0e", "x" * 150, "~", " "],
                                   k=rng.randint(1, 6)))
        if name.strip() and not rows.name_defect(name):
            path = os.path.realpath(tmp_path / f"{name}.flac")
            assert path.startswith(os.path.realpath(tmp_path) + os.sep) and "\0" not in path, name
            assert max(len(part.encode()) for part in path.split("/")) < 255
            taken += 1
    assert taken > 1000


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_an_archive_gives_nothing_but_the_lines_of_a_file(kind, tmp_path):
    """A link, a device or a pipe under the file's name is not followed, and nothing is unpacked."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("covost_v2.en_de.tsv")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    write(tmp_path / "covost_v2.en_de.tsv.tar.gz", packed.getvalue())
    refused(covost2.read_translations, str(tmp_path / "covost_v2.en_de.tsv"), says="holds no covost_v2.en_de.tsv")
    assert os.listdir(tmp_path) == ["covost_v2.en_de.tsv.tar.gz"]


# --- XML: entities, and files that grow.

TIMES_10 = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
LAUGHS = f'<!DOCTYPE x [<!ENTITY a0 "ha">{TIMES_10}]>'
BOMBS = {
    "billion laughs": (LAUGHS, "&a9;"),
    "one large entity": (f'<!DOCTYPE x [<!ENTITY a "{"ha" * 50_000}">]>', "&a;" * 9999),
    "a file": ('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>', "&a;"),
    "an address": ('<!DOCTYPE x [<!ENTITY a SYSTEM "http://127.0.0.1:9/x">]>', "&a;"),
    "parameters": ('<!DOCTYPE x [<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;]>', ""),
    "a definition elsewhere": ('<!DOCTYPE x SYSTEM "file:///etc/passwd">', ""),
    "after a comment": ("<!-- x -->" + LAUGHS, "&a9;"),
    "on two lines": (LAUGHS.replace("DOCTYPE x", "DOCTYPE\n\tx"), "&a9;"), "no definition": ("", "&a9;"),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("packing", ["plain", "byte order mark", "UTF-16", "gzip"])
def test_an_entity_is_not_resolved(bomb, packing, tmp_path):
    head, text = BOMBS[bomb]
    for read, body in ((acl6060.read_segments, TALK.format(f'<seg id="1">{text}</seg>')),
                       (mcif.read_xml, TEST.format(f'<sample id="1">{text}</sample>'))):
        content = ('<?xml version="1.0"?>\n' + head + body).encode("utf-16" if packing == "UTF-16" else "utf-8")
        content = b"\xef\xbb\xbf" * (packing == "byte order mark") + content
        path = write(tmp_path / "x.xml", gzip.compress(content) if packing == "gzip" else content)
        if bomb == "no definition" and read is acl6060.read_segments and packing in ("plain", "byte order mark"):
            assert read(path) == {"1": ("1", "&a9;")}                      # an & that begins no entity of XML is text
        else:
            refused(read, path, names=path)


@pytest.mark.parametrize("read, body", [(acl6060.read_segments, TALK), (mcif.read_xml, TEST)])
def test_an_include_is_not_followed(read, body, tmp_path):
    include = '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="/etc/passwd" parse="text"/>'
    path = write(tmp_path / "x.xml", body.format(include))
    if read is mcif.read_xml:                                              # the other takes a foreign tag for text
        assert "root" not in "".join(read(path).itertext())
    else:
        assert read(path) == {}


def test_a_gzip_that_grows_without_end_is_cut_off(tmp_path):
    path = write(tmp_path / "x.xml.gz", gzip.compress(bytes(2 * mcif.LARGEST), 1))
    refused(mcif.read_xml, path, names=path, says="more than 128 MB")


def test_a_hundred_thousand_levels(tmp_path):
    for read, body in ((acl6060.read_segments, TALK), (mcif.read_xml, TEST)):
        path = write(tmp_path / "x.xml", body.format("<seg>" * 100_000 + "</seg>" * 100_000))
        with at_most(10):
            try:
                read(path)
            except SystemExit as error:
                assert path in str(error)
