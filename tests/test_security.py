"""No input makes the code execute, write outside its folder or grow without end. Pickles: test_bad_input.py."""
import ast
import contextlib
import gzip
import io
import os
import tarfile

import pytest
from test_bad_input import TALK, TEST, at_most, refused, write
from test_layout import SOURCES, source

from data import acl6060, covost2, speak
from metrics import mcif
from speech_llm import rows

# --- The source.

MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "yaml", "xmlrpc", "pty", "code", "telnetlib"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "np.fromfile",
         "pd.read_pickle"}
METHODS = {"extractall", "extract", "unpack_archive"}        # they write where the archive says, without filter="data"
STRINGS = (ast.Constant, ast.JoinedStr, ast.BinOp)                         # a shell would read them
XML = {os.path.join("data", "acl6060.py"), os.path.join("metrics", "mcif.py")}                # both are tested below


def unsafe_imports(node, path):
    """Return the modules of an import that run code from a file, or parse XML in a file that is not tested here."""
    names = {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
    return [name for name in names if name.split(".")[0] in MODULES or name.startswith("xml") and path not in XML]


def unsafe_call(node):
    """Return whether a call runs a text, loads a pickle, unpacks an archive or starts a shell."""
    name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
    return (name in CALLS or "." in name and name.split(".")[-1] in METHODS and options.get("filter") != "'data'"
            or name == "torch.load" and options.get("weights_only") != "True"
            or name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False"
            or {options.get("allow_pickle", "False"), options.get("shell", "False")} != {"False"}
            or name.startswith("subprocess.") and isinstance((node.args or [None])[0], STRINGS))


@pytest.mark.parametrize("path", SOURCES)
def test_nothing_unsafe_in(path):
    text = source(path)
    nodes = list(ast.walk(ast.parse(text)))
    assert "trust_remote_code" not in text
    assert not [name for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))
                for name in unsafe_imports(node, path)]
    assert not [ast.unparse(node) for node in nodes if isinstance(node, ast.Call) and unsafe_call(node)]


# --- Names that would become paths.

HOSTILE = ["..", "../x", "a/../../x", "/etc/passwd", "a\\..\\x", "a\0b", "a\nb", "a\rb", "a\tb", "\x1b]0;x\x07",
           "a\x7fb", "a\x85b", "a\u2028b", "\u202egpj.exe", "x" * 201, "狗" * 67, "a/" + "x" * 256, "tiny/../x",
           "../" * 40 + "x", "a/..", "\ud800"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_name_that_leaves_its_folder_is_refused(name, tmp_path):
    row = {"id": name, "task": "ST", "language": "de", "transcript": "Yes.", "target": "Ja."}
    assert rows.defect(row) and rows.defect({**row, "id": "a", "utterance": name, "audio": "a.wav"})
    refused(speak.speak, {name: "Yes."}, str(tmp_path / "audio"), says="is no name of a file below")
    assert os.listdir(tmp_path) == [] and (len(name) > 50 or not covost2.CLIP.fullmatch(name))


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
    "parameters": ('<!DOCTYPE x [<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;]>', ""),
    "a definition elsewhere": ('<!DOCTYPE x SYSTEM "file:///etc/passwd">', ""),
    "after a comment": ("<!-- x -->" + LAUGHS, "&a9;"),
    "on two lines": (LAUGHS.replace("DOCTYPE x", "DOCTYPE\n\tx"), "&a9;")}
XML_READERS = [(acl6060.read_segments, TALK, "seg"), (mcif.read_xml, TEST, "sample")]


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("packing", ["plain", "byte order mark", "UTF-16", "gzip"])
@pytest.mark.parametrize("read, body, tag", XML_READERS)
def test_an_entity_is_not_resolved(bomb, packing, read, body, tag, tmp_path):
    head, text = BOMBS[bomb]
    content = ('<?xml version="1.0"?>\n' + head + body.format(f'<{tag} id="1">{text}</{tag}>')).encode(
        "utf-16" if packing == "UTF-16" else "utf-8")
    content = b"\xef\xbb\xbf" * (packing == "byte order mark") + content
    refused(read, write(tmp_path / "x.xml", gzip.compress(content) if packing == "gzip" else content), names="x.xml")


@pytest.mark.parametrize("read, body, tag", XML_READERS)
def test_an_include_is_not_followed_and_a_hundred_thousand_levels_are_no_hang(read, body, tag, tmp_path):
    include = '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="/etc/passwd" parse="text"/>'
    content = read(write(tmp_path / "x.xml", body.format(include)))
    assert content == {} or "root" not in "".join(content.itertext())      # segments, or the XML's root
    path = write(tmp_path / "deep.xml", body.format("<seg>" * 100_000 + "</seg>" * 100_000))
    with at_most(10), contextlib.suppress(SystemExit):
        read(path)


def test_a_gzip_that_grows_without_end_is_cut_off(tmp_path):
    path = write(tmp_path / "x.xml.gz", gzip.compress(bytes(2**20)) * 256)
    refused(mcif.read_xml, path, names=path, says="more than 128 MB")
