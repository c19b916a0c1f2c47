"""
The language model: its loading, its embeddings and logits, what ends its answers.

    llm, tokenizer = load_llm("Qwen/Qwen2.5-0.5B-Instruct", torch.device("cpu"))

Any chat LLM will do that transformers loads without code from the hub, whose layers attend to all earlier positions or
to a window of them. A model of another kind is refused by name.
"""
import json
import os
from contextlib import contextmanager
from textwrap import shorten

import torch

from speech_llm.constants import in_bfloat16
from speech_llm.thoughts import after_thought, ids_after_thought
from speech_llm.turns import end_id, turn_of


TABLES = [f"{part}embed_tokens.weight" for part in ("model.", "model.language_model.", "language_model.model.",
                                                    "thinker.model.")]       # of an LLM; of one that also sees or hears
LAYERS = {"full_attention", "sliding_attention"}             # kinds of layers that read a row of a batch as if alone


# --- Errors of loading, and what to do about them.

def damaged_file(folder):
    """Return the path of the first file of weights or settings in a folder that cannot be read, or None."""
    from safetensors import safe_open
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        try:
            if name.endswith(".safetensors"):
                with safe_open(path, "pt"):
                    pass
            elif name.endswith(".json"):
                with open(path, encoding="utf-8") as file:
                    json.load(file)
        except Exception:                       # each library raises other errors for damaged files
            return path
    return None


def advice(path, error):
    """Return what a user does about an error of loading a model, a folder or a hub name."""
    from huggingface_hub import snapshot_download
    kinds, cause = set(), error
    while cause:
        kinds.add(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    if "GatedRepoError" in kinds:
        return f"accept its licence at https://huggingface.co/{path}, then run: hf auth login"
    if os.path.isdir(path):
        file = damaged_file(path)
        return f"{file} is damaged; replace it" if file else "a file is missing, or is another model's"
    if path.count("/") > 1 or path.startswith("."):
        return "there is no such folder"
    try:
        file = damaged_file(snapshot_download(path, local_files_only=True))
    except Exception:                           # nothing of the model was ever downloaded
        file = None
    return f"{file} is damaged; run: hf download {path} --force-download" if file else f"run: hf download {path}"


@contextmanager
def loading(path):
    """Raise ValueError with the checkpoint's name and what to do, in place of any error that a library has of it."""
    try:
        yield
    except Exception as error:                  # each library raises other errors for damaged files
        reason = shorten(f"{type(error).__name__}: {error}", 400)
        raise ValueError(f"the checkpoint {path} cannot be loaded ({reason}); {advice(path, error)}") from error


# --- Checkpoints.

def load_checkpoint(kind, path, **options):
    """
    Return the parts of a checkpoint that the transformers class `kind` has, frozen, in eval mode. ValueError, naming
    it, if it cannot be loaded or lacks a weight.
    """
    from transformers import logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()               # it would list every weight of the other parts as unexpected
    with loading(path):
        model, info = kind.from_pretrained(path, output_loading_info=True, **options)
    logging.set_verbosity(verbosity)
    if info["missing_keys"]:                    # transformers leaves them random and goes on
        raise ValueError(f"{path} is not complete: {len(info['missing_keys'])} weights of {kind.__name__} are not in "
                         f"it, such as {min(info['missing_keys'])}")
    return model.eval().requires_grad_(False)


def text_part(config):
    """Return (config of the part of a model that reads text, {pattern in the names of its weights: replacement})."""
    from transformers import Qwen2Config
    if config.model_type == "qwen2_5_omni":     # the thinker reads text and audio as a Qwen2 does
        text = config.thinker_config.text_config.to_dict()
        rope = {"rope_type": "default", "rope_theta": text.pop("rope_parameters")["rope_theta"]}
        return Qwen2Config(**{**text, "model_type": "qwen2"}, rope_parameters=rope), {r"^thinker\.": ""}
    if config.get_text_config() is not config:  # Gemma 3, which also sees
        return config.get_text_config(), {r"^(model\.)?language_model\.(model\.)?(?!lm_head)": "model.",
                                          r"^language_model\.lm_head": "lm_head"}
    return config, {}


def ropes(config):
    """Return the settings of a model's rotary embeddings, a list of one dict, or of one for each kind of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    return [settings] if "rope_type" in settings else [rope for rope in settings.values() if isinstance(rope, dict)]


@torch.no_grad()
def require_readable(llm, path):
    """Raise ValueError if speech cannot stand beside text in the LLM, or a row of a batch is not read as if alone."""
    kinds = {*(getattr(llm.config, "layer_types", None) or [])} - LAYERS
    if kinds or getattr(llm, "_is_stateful", False):
        raise ValueError(f"{path}: layers of the kind {', '.join(sorted(kinds)) or llm.config.model_type} cannot be "
                         "decoded in batches here; choose an LLM of full or sliding attention")
    if any("dynamic" in rope.get("rope_type", "") for rope in ropes(llm.config)):
        raise ValueError(f"{path}: under dynamic RoPE scaling a row's answer depends on the rows beside it; set "
                         "another rope_type in its config.json")
    ids = torch.arange(4, 8, device=llm.device)[None]
    vectors = llm.get_input_embeddings()(ids)
    try:
        llm(inputs_embeds=vectors.flip(-1))     # vectors of no token, as speech is; Gemma 4 fails here
        equal = torch.allclose(llm(input_ids=ids).logits, llm(inputs_embeds=vectors).logits, rtol=1e-2, atol=1e-2)
    except RuntimeError:
        equal = False
    if not equal:
        raise ValueError(f"{path}: {type(llm).__name__} reads more of a token than its embedding, and speech has no "
                         "tokens; choose another LLM")


def load_llm(path, device):
    """
    Return (LLM, tokenizer), frozen, in eval mode; bfloat16 where `in_bfloat16` says so, else float32. Of a model that
    also sees or hears it is the text part. ValueError for a model that cannot be loaded, prompted or decoded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    with loading(path):
        config, names = text_part(AutoConfig.from_pretrained(path))
    if getattr(config, "attn_logit_softcapping", None):             # Gemma 2: PyTorch's fused attention has no cap
        config._attn_implementation = "eager"
    dtype = torch.bfloat16 if in_bfloat16(device) else torch.float32
    llm = load_checkpoint(AutoModelForCausalLM, path, config=config, key_mapping=names, dtype=dtype).to(device)
    require_readable(llm, path)
    tokenizer = load_tokenizer(path)
    turn_of(tokenizer)
    return llm, tokenizer


def load_tokenizer(path):
    """Return the LLM's tokenizer; its chat template may stand with the processor of a model that also hears."""
    from transformers import AutoTokenizer
    from transformers.utils import cached_file
    with loading(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
        file = None if tokenizer.chat_template else cached_file(path, "chat_template.json",
                                                                _raise_exceptions_for_missing_entries=False)
        if file:
            with open(file, encoding="utf-8") as text:
                tokenizer.chat_template = json.load(text)["chat_template"]
    return tokenizer


def load_table(path, device):
    """Return the LLM's embedding table, (V, D) float32; nothing else of the checkpoint is read."""
    from safetensors import safe_open
    from transformers.utils import cached_file
    with loading(path):
        index = cached_file(path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
        if index:                                                   # a checkpoint of several files
            with open(index, encoding="utf-8") as text:
                files = json.load(text)["weight_map"]
        else:
            with safe_open(cached_file(path, "model.safetensors"), "pt") as weights:
                files = dict.fromkeys(weights.keys(), "model.safetensors")
        name = next((name for name in TABLES if name in files), TABLES[0])
        with safe_open(cached_file(path, files[name]), "pt") as weights:
            return weights.get_tensor(name).float().to(device)


# --- Embeddings, logits, answers.

def embedding_scale(llm):
    """Return what the LLM multiplies its embedding table by (sqrt(D) in Gemma, else 1); speech is multiplied, too."""
    return float(getattr(llm.get_input_embeddings(), "embed_scale", 1.0))


def logits_at(llm, rows, columns, **inputs):
    """
    Return the logits, (N, V) float32, after the positions (rows[n], columns[n]) of the LLM's inputs. The LLM's own
    forward computes them, with its scale or cap (Cohere, Gemma, Granite). A hook passes only these N hidden states to
    the output layer, so that the logits of all other positions are never computed.
    """
    def keep(module, arguments, output):
        output.last_hidden_state = output.last_hidden_state[rows, columns][None]                     # (1, N, D)
        return output
    hook = llm.base_model.register_forward_hook(keep)
    try:
        return llm(**inputs).logits[0].float()
    finally:
        hook.remove()


def end_ids(llm):
    """Return the set of ids that end an answer by the checkpoint's generation config."""
    ends = llm.generation_config.eos_token_id
    return {*(ends if isinstance(ends, list) else [ends])} - {None}


def stop_ids(llm, tokenizer):
    """Return the set of ids that end a turn: the chat template's and those of the checkpoint's generation config."""
    return end_ids(llm) | {end_id(tokenizer)}


def decode_text(tokenizer, ids):
    """Return the text of the token ids of an answer, without its thought and without special tokens."""
    answer = ids_after_thought(tokenizer, list(ids))
    return after_thought(tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False))
