"""Entry point of the vLLM container: download, wait for embed, choose the chat template, become `vllm serve`.

    python3 /qmd/start.py             all of it
    python3 /qmd/start.py download    the download alone; exit status 1 when it fails

A reboot ignores `depends_on`, and two engines must not measure free GPU memory at the same moment: so vLLM itself waits until embed is
ready. What cannot work (a wrong value, a model that the hub refuses, a full disk) does not end the container, which would hide the cause in
a loop of restarts: it is logged, shown by the healthcheck, and tried again from time to time. A network that breaks in the middle of a
download is shown as a download that stalls.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType
from typing import NoReturn

import arguments
import certificates
import download
import phase
import template
from hub_errors import HubError
from phase import StartError, say

EMBED_HEALTH = os.environ.get("QMD_EMBED_HEALTH_URL", "http://embed:8001/health")
NVIDIA_ENTRYPOINT = Path("/opt/nvidia/nvidia_entrypoint.sh")  # checks the driver, prints what the image is, then execs
TEMPLATE_FILE = phase.FILE.with_name("qmd-chat-template.jinja")
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 15.0, 300.0
POLL_SECONDS = 1.0


def main(argv: list[str]) -> int:
    signal.signal(signal.SIGTERM, end)
    if argv not in ([], ["download"]):
        say("usage: start.py [download]")
        return 2
    certificates.trust()
    phase.write("starting")
    pause, progressed = FIRST_RETRY_SECONDS, 0.0
    while True:
        try:
            revision = os.environ.get("QMD_REVISION") or "main"
            folder = download.obtain(os.environ["QMD_MODEL"], revision, code=arguments.runs_code(os.environ))
            if argv == ["download"]:
                say(f"downloaded: {folder}")
                return 0
            chosen = choose_template(folder)
            command = arguments.serve(os.environ, folder, chosen)
            wait_for_embed(arguments.wait_for_embed_seconds(os.environ))
            become(command)
        except StartError as error:
            say(f"error: {error}")
            if argv == ["download"]:
                return 1
            state = phase.read()
            if not (isinstance(error, HubError) and error.offline and state["phase"] == "downloading"):
                phase.write("error", error=str(error))
            elif state["progressed"] > progressed:  # bytes came since the last try: the network is not gone for long
                pause, progressed = FIRST_RETRY_SECONDS, state["progressed"]
            say(f"next try in {pause:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, LAST_RETRY_SECONDS)


def choose_template(folder: Path) -> Path | None:
    """The file for vLLM's --chat-template; None: the model's own as it is."""
    if (own := arguments.chat_template(os.environ)) is not None:
        return own
    text = template.with_thinking_off(folder)
    if text is None:
        return None
    TEMPLATE_FILE.write_text(text, encoding="utf-8")
    say("the model's chat template is served with thinking off by default")
    return TEMPLATE_FILE


def wait_for_embed(gone_seconds: float) -> None:
    """Until embed's /health says that its engine is loaded or will not be for now, or embed was gone for so long. 0: no wait."""
    if gone_seconds <= 0:
        return
    phase.write("waiting")
    seen, said = time.monotonic(), ""
    while time.monotonic() - seen < gone_seconds:
        status = embed_status()
        if status in ("ok", "error", "paused", "idle"):
            say(f"embed's status is {status}: starting vLLM")
            return
        if status is not None:
            seen = time.monotonic()
        now = f"waiting for embed ({status or 'no answer'})"
        if now != said:
            say(now)
            said = now
        time.sleep(POLL_SECONDS)
    say(f"no answer from {EMBED_HEALTH} for {gone_seconds:.0f} s: starting vLLM without it")


def embed_status() -> str | None:
    """The status that embed's /health tells; None without an answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(EMBED_HEALTH, timeout=5) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    except OSError:
        return None
    try:
        return str(json.loads(body)["status"])
    except (ValueError, KeyError, TypeError):
        return None


def become(command: list[str]) -> NoReturn:
    """Replace this process by vLLM. Raises StartError where it is not in the image."""
    if shutil.which(command[0]) is None:
        raise StartError(f"the image has no command {command[0]!r}", "set VLLM_IMAGE to an image of vLLM")
    os.environ.update(arguments.variables(os.environ))
    if NVIDIA_ENTRYPOINT.exists():
        command = [str(NVIDIA_ENTRYPOINT), *command]
    phase.write("loading")
    say(" ".join(command))
    os.execvp(command[0], command)


def end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)  # at once, whatever the threads of a download do


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
