"""
What a recipe needs before it begins: files, packages, models of the Hugging Face hub, free disk.

Every function returns a list of (what is missing, how to mend it). A recipe joins these lists in its function
missing(work, raw), so that one run names everything that is missing.
"""
import importlib.util
import os
import shutil


def files(paths, mend):
    """Return the paths that do not exist, each with the same advice."""
    return [(path, mend) for path in paths if not os.path.exists(path)]


def package(name, use):
    """Return the package if it cannot be imported. use: what it is for, in words."""
    return [] if importlib.util.find_spec(name) else [(f"the package {name}, {use}", f"run: pip install {name}")]


def models(*names):
    """
    Return the models that are neither folders nor in the hub's cache and that the hub does not give us: models whose
    licence is not accepted yet, unknown names, and all of them if the hub cannot be reached.
    """
    return [(f"the model {name}", why) for name in dict.fromkeys(names) if (why := refusal(name))]


def refusal(name):
    """Return in words what to do before a model can be loaded; "" if it is there or can be downloaded."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    if os.path.exists(name):
        return ""
    try:
        snapshot_download(name, local_files_only=True)
        return ""
    except (OSError, ValueError):        # not in the cache, or no name of a repository
        pass
    try:
        HfApi().auth_check(name)
        return ""
    except GatedRepoError:
        return f"accept its licence at https://huggingface.co/{name} and run: hf auth login"
    except (RepositoryNotFoundError, ValueError):
        return "it is no folder, and the hub has no model of this name for your account"
    except Exception as error:           # no network: requests, httpx and the hub have errors of their own
        return f"the hub cannot be reached ({type(error).__name__}); with a network run: hf download {name}"


def disk(folder, gigabytes, use):
    """Return the free disk of `folder` if it is less than `gigabytes`. use: what is written there, in words."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(os.path.abspath(folder))
    free = shutil.disk_usage(folder).free / 1e9
    return [] if free >= gigabytes else [
        (f"disk for {use}: {gigabytes:,.0f} GB, and {folder} has {free:,.0f} GB free",
         "free some, choose another --work, or take a part of the corpus")]


def require(missing):
    """Exit with one line for each missing thing and what mends it, if there are any."""
    if missing:
        raise SystemExit("\n".join(f"{what} is missing: {mend}" for what, mend in missing))
