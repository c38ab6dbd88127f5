"""A language model on this machine behind OpenAI's protocol: the server of transformers, started and ended by handle.

A model in one GGUF file is written as a folder first, once on each machine, because that
server reads no such file from a disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qzhou.config.synthesis import LOCAL, SynthesisSection
from qzhou.errors import ModelError, first_line
from qzhou.run.models import is_gguf, repository_of, resolve, weights_fingerprint

# Runs a command until this process closes its standard input, or dies.
WITH_PARENT = (
    'exec 3<&0; "$@" </dev/null 3<&- & child=$!; (cat <&3 >/dev/null; kill -9 "$child" 2>/dev/null) & wait "$child"'
)
PATIENCE_S = 1800.0  # a large model is downloaded and loaded
POLL_S = 0.5
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # of a repository, what a server reads


class LocalServer:
    """A server of one model, which answers when the object is made.

    Args:
        spec: A folder, a hub id, ``package:<import name>/<file>``, or a GGUF file.
        host: The address on which it listens.

    Raises:
        ModelError: There is no such model, or it cannot be served.
    """

    def __init__(self, spec: str, host: str = "127.0.0.1") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="qzhou-llm-")
        place = _sampling(served_place(spec), Path(self._folder.name))
        self._log = tempfile.NamedTemporaryFile(prefix="qzhou-llm-", suffix=".log")  # noqa: SIM115
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
        command = [_program(), "serve", place, "--host", host, "--port", str(port)]
        self._process = subprocess.Popen(
            ["sh", "-c", WITH_PARENT, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.url = f"http://{host}:{port}/v1"
        try:
            self._wait_until_it_answers(spec)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()
        self._folder.cleanup()

    def _wait_until_it_answers(self, spec: str) -> None:
        health = self.url.removesuffix("/v1") + "/health"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                opener.open(health, timeout=10).close()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = Path(self._log.name).read_text("utf-8", "replace").strip().splitlines()
                said = lines[-1].strip() if lines else f"exit status {self._process.poll()}"
                raise ModelError(f"synthesis.model '{spec}' cannot be served on this machine: {said}")
            time.sleep(POLL_S)


def with_addresses(settings: SynthesisSection, addresses: Mapping[str, str]) -> SynthesisSection:
    """The settings with the URL of a model's server in place of ``local``; ``addresses`` are by model."""
    models = tuple(
        model.model_copy(
            update={"endpoints": tuple(addresses[model.model] if one == LOCAL else one for one in model.endpoints)}
        )
        for model in settings.pool
    )
    return settings.model_copy(update={"endpoint": "", "models": models})


def served_place(spec: str) -> str:
    """The folder or hub id that the server is given; a GGUF file is written as a folder beside the hub's cache."""
    place = resolve(spec)
    if not is_gguf(place):
        return "@".join(filter(None, repository_of(place)))
    from filelock import FileLock
    from huggingface_hub.constants import HF_HOME

    folder = Path(HF_HOME) / "qzhou" / "language_models" / weights_fingerprint(spec)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            _write_folder(spec, Path(place), folder)
    return str(folder)


def _sampling(place: str, folder: Path) -> str:
    """The same model, set to sample: where its own settings do not, the server leaves a request's temperature unused.

    A folder whose settings have to change is repeated as links below ``folder``.
    """
    from huggingface_hub import snapshot_download
    from transformers import AutoConfig, GenerationConfig

    is_folder = Path(place).is_dir()
    name, revision = (place, "main") if is_folder else (place.partition("@")[0], place.partition("@")[2] or "main")
    try:
        settings = GenerationConfig.from_pretrained(name, revision=revision)
    except OSError:  # it has none
        try:
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        except (OSError, ValueError):
            return place  # the server says what is wrong
        settings = GenerationConfig.from_model_config(config)
    if settings.do_sample:
        return place
    files = name if is_folder else snapshot_download(name, revision=revision, allow_patterns=FILES)
    for file in Path(files).iterdir():
        (folder / file.name).symlink_to(file.resolve())
    (folder / "generation_config.json").unlink(missing_ok=True)
    settings.do_sample = True
    settings.save_pretrained(folder)
    return str(folder)


def _write_folder(spec: str, file: Path, folder: Path) -> None:
    """A GGUF file as a folder of transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        packed: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(f"synthesis.model '{spec}' cannot be loaded: {first_line(error)}") from None
    settings = {key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"}
    plain = AutoModelForCausalLM.from_config(type(packed.config).from_dict(settings), dtype=torch.float32)
    plain.load_state_dict(packed.state_dict())
    temporary = folder.with_name(f"{folder.name}.writing")
    plain.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    # the server looks for the class of the model there
    config = json.loads((temporary / "config.json").read_text("utf-8"))
    config["architectures"] = [type(plain).__name__]
    (temporary / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    temporary.rename(folder)


def _program() -> str:
    """The command of transformers beside this Python."""
    found = shutil.which("transformers", path=str(Path(sys.executable).parent)) or shutil.which("transformers")
    if found is None:
        raise ModelError(
            "the command `transformers`, which serves a local model, is not on the PATH: install qzhou"
        )
    return found
