"""TODO"""
from contextlib import contextmanager

import torch

from speech_llm.files import read_json
from speech_llm.turns import end_id


@contextmanager
def loading(path):
    """A ValueError that names the checkpoint, a folder or a hub name, in place of what a library says of its damage."""
    try:
        yield
    except Exception as error:           # there is one of its own for every kind; the hub says what to do
        raise ValueError(f"the checkpoint {path} cannot be loaded ({error}); get it again") from error


def load_checkpoint(kind, path, **options):
    """
    The parts of a checkpoint that the transformers class `kind` has, frozen, in eval mode. ValueError, naming it, if it
    cannot be loaded or lacks some of their weights.
    """
    from transformers import logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()        # it would list every weight of the other parts as unexpected
    with loading(path):
        model, info = kind.from_pretrained(path, output_loading_info=True, **options)
    logging.set_verbosity(verbosity)
    if info["missing_keys"]:             # transformers leaves them random and goes on
        raise ValueError(f"{path} is not complete: {len(info['missing_keys'])} weights of {kind.__name__} are not in "
                         f"it, such as {min(info['missing_keys'])}")
    return model.eval().requires_grad_(False)


def load_llm(path, device):
    """
    (LLM, tokenizer): frozen, in eval mode; bfloat16 on a GPU, float32 on the CPU. Of Qwen2.5-Omni it is the text part
    of the thinker, which is a Qwen2; what hears, sees and speaks there is not loaded, and not supported.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config
    names = {}
    with loading(path):
        config = AutoConfig.from_pretrained(path)
    if config.model_type == "qwen2_5_omni":
        text = config.thinker_config.text_config.to_dict()
        theta = text.pop("rope_parameters")["rope_theta"]              # without pictures its positions are Qwen2's
        config = Qwen2Config(**{**text, "model_type": "qwen2"}, rope_parameters={"rope_type": "default",
                                                                                 "rope_theta": theta})
        names = {r"^thinker\.": ""}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    llm = load_checkpoint(AutoModelForCausalLM, path, config=config, key_mapping=names, dtype=dtype).to(device)
    return llm, load_tokenizer(path)


def load_tokenizer(path):
    """The LLM's tokenizer."""
    from transformers import AutoTokenizer
    with loading(path):
        return AutoTokenizer.from_pretrained(path)


def load_table(path, device):
    """The LLM's embedding table, (V, D) float32; of the checkpoint nothing else is read."""
    from safetensors import safe_open
    from transformers.utils import cached_file
    name, file = "model.embed_tokens.weight", "model.safetensors"
    index = cached_file(path, f"{file}.index.json", _raise_exceptions_for_missing_entries=False)
    try:
        if index:                                                      # a checkpoint of several files
            file = read_json(index, f"get {path} again")["weight_map"][name]
        with safe_open(cached_file(path, file), "pt") as weights:
            return weights.get_tensor(name).float().to(device)
    except Exception as error:                                         # a library's own for every kind of damage
        raise ValueError(f"the checkpoint {path} has no {name} that can be read ({error}); get it again") from error


def stop_ids(llm, tokenizer):
    """Every id that ends a turn: the chat format's own and those of the checkpoint's generation config."""
    ends = llm.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {*ends, end_id(tokenizer)} - {None}


def decode_text(tokenizer, ids):
    """Token ids -> text, without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()
