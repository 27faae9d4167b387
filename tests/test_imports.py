"""Imports stand at the top of a module; which ones may stand in a function, and why, is said here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import wsi_chat

ROOT = Path(wsi_chat.__file__).resolve().parents[1]
HEAVY = {
    "IPython", "PIL", "accelerate", "aiohttp", "blake3", "cv2", "datasets", "fastslide", "fsspec", "highdicom",
    "httpx2", "huggingface_hub", "imagecodecs", "kfbslide", "matplotlib", "mpl_toolkits", "mrxsslide", "nicegui",
    "nltk", "numpy", "opensdpc", "openslide", "pandas", "peft", "psutil", "pyarrow", "pycocoevalcap", "pydicom",
    "pynvml", "ray", "rouge_score", "s3fs", "sacrebleu", "safetensors", "scipy", "shapely", "sklearn", "tifffile",
    "tiffslide", "tokenizers", "torch", "torchvision", "transformers", "typst", "uvicorn", "vllm", "zarr",
}  # fmt: skip
"""Libraries that take long to load, or that need not be installed."""
HEAVY_OWN = {
    "aggregators", "tilers", "reports",  # numpy, pyarrow
    "wsi_chat.analysis.cascade", "wsi_chat.analysis.mechanisms", "wsi_chat.analysis.pipeline",
    "wsi_chat.analysis.preparation", "wsi_chat.analysis.stages",  # these, in turn
    "wsi_chat.cohort.page", "wsi_chat.cohort.search",
    "wsi_chat.app.server", "wsi_chat.app.source", "wsi_chat.app.words",  # nicegui, an extra
    "wsi_chat.cohort.on_ray",  # ray, an extra
    "wsi_chat.engines.engine_pool", "wsi_chat.engines.openai", "wsi_chat.engines.serving",
    "wsi_chat.engines.transformers", "wsi_chat.engines.vllm",  # one of them is loaded
    "wsi_chat.training.trainer", "wsi_chat.training.embedded.scores",  # torch
    "wsi_chat.datasets.render",  # cv2
    "wsi_chat.picture",  # PIL
    "wsi_chat.chat.conversation", "wsi_chat.analysis.narrator", "wsi_chat.scoring.pdf",  # reports
}  # fmt: skip
"""Packages and modules of this project that load one of those, or stand for one of several."""
ELSEWHERE = {
    ("wsi_chat/training/embedded/fields.py", "wsi_chat.training.embedded.pool"): "a circle",
    ("wsi_chat/__main__.py", "wsi_chat.cli"): "interrupts are handled before anything is imported",
    ("wsi_chat/remarks.py", "pydantic_core"): "wsi-chat --help has no pydantic",
    ("wsi_chat/commands/console.py", "wsi_chat.commands.terminal"): "wsi-chat --help has no rich",
    ("wsi_chat/commands/chat.py", "readline"): "not on every system",
    ("wsi_chat/commands/view.py", "webbrowser"): "seldom needed, and looks for browsers",
    }  # fmt: skip
PLATFORM = {"msvcrt", "fcntl"}


def inside() -> Iterator[tuple[str, int, str]]:
    """File, line and module of every import in a function."""
    for package in ("wsi_chat", "tilers", "aggregators", "reports"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            functions = (
                node
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            )
            found = {
                (node.lineno, module)
                for function in functions
                for node in ast.walk(function)
                if isinstance(node, ast.Import | ast.ImportFrom)
                for module in (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                )
            }
            yield from ((name, line, module) for line, module in sorted(found))


def test_only_heavy_imports_stand_in_functions() -> None:
    light = [
        f"{file}:{line} {module}"
        for file, line, module in inside()
        if module.split(".")[0] not in HEAVY | PLATFORM
        and not any(module == own or module.startswith(f"{own}.") for own in HEAVY_OWN)
        and (file, module) not in ELSEWHERE
    ]
    assert light == [], "move these to the top of their modules, or say here why not"


def test_no_exception_stands_here_that_is_not_needed() -> None:
    there = {(file, module) for file, _, module in inside()}
    assert set(ELSEWHERE) <= there
