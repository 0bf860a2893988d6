"""The seed's native setup, as a stand-in: unit files of the form that its deploy.py writes, and FAKE programs.

FAKE, with their state in a folder: systemctl, tailscale and sudo. No systemd and no tailnet is here; each says FAKE on stderr.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EMBED_UNIT = """[Unit]
Description=QMD Embed/Rerank Server
After=network-online.target
Wants=network-online.target

[Service]
Type=simple
Restart=always
RestartSec=5
User={user}
Group={user}
WorkingDirectory={folder}
Environment="PATH={folder}/.venv/bin:/usr/local/bin:/usr/bin:/bin"
Environment="MAX_BATCH_SIZE=32"
{more}
# Start uvicorn
ExecStart={folder}/.venv/bin/uvicorn embed_rerank:app --host 127.0.0.1 --port {port}

[Install]
WantedBy=multi-user.target
"""
VLLM_UNIT = """[Unit]
Description=vLLM for query expansion
After=docker.service

[Service]
Restart=always
ExecStartPre=-/usr/bin/docker rm -f qmd-vllm
ExecStart=/usr/bin/docker run --rm --name qmd-vllm \\
    --gpus all \\
    -p 127.0.0.1:{port}:8000 \\
    -v {cache}:/root/.cache/huggingface \\
    nvcr.io/nvidia/vllm:25.12.post1-py3 \\
        vllm serve Qwen/Qwen3-1.7B \\
        --gpu-memory-utilization 0.12 \\
        --enforce-eager
ExecStop=/usr/bin/docker stop -t 60 qmd-vllm

[Install]
WantedBy=multi-user.target
"""
COMMON = '''#!{python}
"""FAKE {name}."""
import json, os, signal, sys
from pathlib import Path
state = Path({state!r})
words = sys.argv[1:]
print("FAKE {name}:", *words, file=sys.stderr)
with (state / "calls").open("a") as calls:
    calls.write("{name} " + " ".join(words) + "\\n")

def kill_caller(verb):
    """A crash of the program that called: FAKE_KILL names the verb after which it comes."""
    if os.environ.get("FAKE_KILL") == "{name} " + verb:
        os.kill(os.getppid(), signal.SIGKILL)

def refuse(text):
    print(text, file=sys.stderr)
    sys.exit(1)
'''
SYSTEMCTL = """
user = "--user" in words
options = [word for word in words if word.startswith("-")]
verb, *names = [word for word in words if not word.startswith("-")]
name = names[0].rsplit("/", 1)[-1].removesuffix(".service")
if (state / "down").exists():
    refuse("System has not been booted with systemd as init system (PID 1). Can't operate.\\nFailed to connect to bus: Host is down")
folder = state / ("user" if user else "system")
file = folder / (name + ".service")
enabled, active = folder / (name + ".enabled"), folder / (name + ".active")

def show():
    if not file.exists():
        return ["LoadState=not-found", "ActiveState=inactive", "UnitFileState=", "FragmentPath=", "Environment="]
    lines = ["LoadState=loaded", "ActiveState=" + ("active" if active.exists() else "inactive")]
    lines += ["UnitFileState=" + ("enabled" if enabled.exists() else "disabled"), "FragmentPath=" + str(file)]
    environment = []
    for line in file.read_text().replace("\\\\\\n", " ").splitlines():
        key, _, value = line.partition("=")
        if key == "Environment":
            environment.append(value)
        elif key == "EnvironmentFile":
            lines.append("EnvironmentFiles=" + value.lstrip("-") + " (ignore_errors=" + ("yes" if value[0] == "-" else "no") + ")")
        elif key == "ExecStart":
            argv = " ".join(value.split())
            lines.append("ExecStart={ path=" + argv.split()[0] + " ; argv[]=" + argv + " ; ignore_errors=no ; start_time=[n/a] ; pid=0 }")
        elif key in ("User", "WorkingDirectory"):
            lines.append(line)
    return [*lines, "Environment=" + " ".join(environment)]

if verb == "show":
    print("\\n".join(show()))
elif verb == "cat":
    print(file.read_text(), end="") if file.exists() else refuse("No files found for " + name + ".service.")
elif verb in ("is-active", "is-enabled"):
    there = (active if verb == "is-active" else enabled).exists()
    print({"is-active": ("inactive", "active"), "is-enabled": ("disabled", "enabled")}[verb][there])
    sys.exit(0 if there else 3 if verb == "is-active" else 1)
elif verb in ("start", "stop", "enable", "disable"):
    if os.geteuid() != 0 and not user and not os.environ.get("FAKE_SUDO"):
        refuse("Failed to " + verb + " " + name + ".service: Interactive authentication required.")
    if not file.exists() or os.environ.get("FAKE_FAIL") == "systemctl " + verb:
        refuse("Failed to " + verb + " " + name + ".service: Unit " + name + ".service could not be acted upon.")
    mark = active if verb in ("start", "stop") else enabled
    mark.touch() if verb in ("start", "enable") else mark.unlink(missing_ok=True)
    kill_caller(verb)
else:
    refuse("Unknown command verb " + verb)
"""
TAILSCALE = """
config_file, prefs_file = state / "serve.json", state / "prefs.json"
config, prefs = json.loads(config_file.read_text()), json.loads(prefs_file.read_text())

def save():
    if os.geteuid() != 0 and not os.environ.get("FAKE_SUDO"):
        refuse("Access denied: serve config denied\\n\\nUse 'sudo tailscale " + " ".join(words) + "'.")
    config_file.write_text(json.dumps(config))
    prefs_file.write_text(json.dumps(prefs))

if words[:2] == ["serve", "status"]:
    print(json.dumps(config, indent=2))
elif words[:2] == ["debug", "prefs"]:
    print(json.dumps(prefs))
elif words[0] == "status":
    print(json.dumps({"Self": {"DNSName": "spark.tail1234.ts.net.", "HostName": "spark", "Tags": ["tag:qmd-server"]}}))
elif words[:2] == ["serve", "drain"]:
    prefs["AdvertiseServices"] = [name for name in prefs["AdvertiseServices"] or [] if name != words[2]] or None
    save()
    kill_caller("drain")
elif words[:2] == ["serve", "advertise"]:
    prefs["AdvertiseServices"] = sorted({*(prefs["AdvertiseServices"] or []), words[2]})
    save()
elif words[0] == "serve":
    options = dict(word[2:].partition("=")[::2] for word in words[1:] if word.startswith("--"))
    port, target = options.get("https"), words[-1]
    service = options.get("service")
    where = config.setdefault("Services", {}).setdefault(service, {}) if service else config
    name = (service.removeprefix("svc:") if service else "spark") + ".tail1234.ts.net:" + port
    path = options.get("set-path") or "/"
    if target == "off":
        del where["Web"][name]["Handlers"][path]
        if not where["Web"][name]["Handlers"]:
            del where["Web"][name], where["TCP"][port]
    else:
        where.setdefault("TCP", {})[port] = {"HTTPS": True}
        where.setdefault("Web", {}).setdefault(name, {"Handlers": {}})["Handlers"][path] = {"Proxy": target}
        if service:
            prefs["AdvertiseServices"] = sorted({*(prefs["AdvertiseServices"] or []), service})
    save()
else:
    refuse("unknown: " + " ".join(words))
"""
SUDO = """
if (state / "sudo-refuses").exists():
    refuse("sudo: a password is required")
if words[0] == "-n":
    words = words[1:]
os.execvpe(words[0], words, {**os.environ, "FAKE_SUDO": "1"})
"""

# Other users may not be let into the folder of the interpreter that runs the tests.
PYTHON = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable


@dataclass
class Native:
    """The programs in `folder/bin`, their state in `folder/state`, a Hugging Face cache in `folder/home/.cache/huggingface`."""

    folder: Path

    def __post_init__(self) -> None:
        for name in ("bin", "state/system", "state/user"):
            (self.folder / name).mkdir(parents=True)
        self.program("systemctl", SYSTEMCTL)
        (self.state / "calls").touch()

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def path(self) -> str:
        return f"{self.folder / 'bin'}:{os.environ['PATH']}"

    @property
    def cache(self) -> Path:
        return self.folder / "home/.cache/huggingface"

    def program(self, name: str, body: str) -> None:
        script = self.folder / "bin" / name
        script.write_text(COMMON.format(python=PYTHON, name=name, state=str(self.state)) + body)
        script.chmod(0o755)

    def unit(self, name: str, text: str, *, active: bool = True, enabled: bool = True, manager: str = "system") -> Path:
        file = self.state / manager / f"{name}.service"
        file.write_text(text)
        for mark, there in (("active", active), ("enabled", enabled)):
            if there:
                (file.parent / f"{name}.{mark}").touch()
        return file

    def embed_unit(self, port: int, more: str = "", **options: Any) -> Path:
        """As deploy.py writes it; HF_HOME stands for the home of a user whom this machine has."""
        more = f'Environment="HF_HOME={self.cache}"\n{more}'
        return self.unit("qmd-embed", EMBED_UNIT.format(user="root", folder=self.folder / "server", port=port, more=more), **options)

    def vllm_unit(self, port: int, **options: Any) -> Path:
        return self.unit("qmd-vllm", VLLM_UNIT.format(port=port, cache=self.cache), **options)

    def unit_state(self, name: str = "qmd-embed") -> tuple[bool, bool]:
        """(active, enabled)."""
        return (self.state / f"system/{name}.active").exists(), (self.state / f"system/{name}.enabled").exists()

    def serves(self, config: dict[str, Any], advertised: list[str]) -> None:
        """A FAKE tailscale with this serve config."""
        self.program("tailscale", TAILSCALE)
        (self.state / "serve.json").write_text(json.dumps(config))
        (self.state / "prefs.json").write_text(json.dumps({"AdvertiseServices": advertised, "OperatorUser": ""}))

    def serving(self) -> tuple[dict[str, Any], list[str]]:
        prefs = json.loads((self.state / "prefs.json").read_text())
        return json.loads((self.state / "serve.json").read_text()), prefs["AdvertiseServices"] or []

    def model(self, name: str, size: int) -> None:
        folder = self.cache / "hub" / f"models--{name.replace('/', '--')}"
        (folder / "blobs").mkdir(parents=True)
        (folder / "blobs" / "0a1b").write_bytes(b"w" * size)
        (folder / "blobs" / "cut.incomplete").write_bytes(b"x" * 9)
        snapshot = folder / "snapshots/abc"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to("../../blobs/0a1b")

    def calls(self) -> list[str]:
        return (self.state / "calls").read_text().splitlines()


def service(name: str, port: int) -> dict[str, Any]:
    """A Service's part of a serve config, as `tailscale serve --service=svc:NAME --bg --https=443 127.0.0.1:PORT` makes it."""
    return {
        "TCP": {"443": {"HTTPS": True}},
        "Web": {f"{name}.tail1234.ts.net:443": {"Handlers": {"/": {"Proxy": f"http://127.0.0.1:{port}"}}}},
    }
