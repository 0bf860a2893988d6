"""`make test`: all tests in two runs side by side, or one plain run of pytest where it is given arguments.

    python -m scripts.run_tests [PYTEST ARGUMENT…]

Tests in containers mostly wait (for images, for models that load), and the others mostly compute: together they take little longer than
the longer of the two. The names that containers have are fixed, so all tests in containers are in one run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

CONTAINERS = "docker or tailnet"
RUNS = {"tests in containers": CONTAINERS, "other tests": f"not ({CONTAINERS})"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", *arguments]


def main(arguments: list[str]) -> int:
    """The exit status: 0, or that of the first run that failed. The first run's output is shown as it comes, the second's at its end."""
    if arguments:
        return subprocess.run(command(*arguments), check=False).returncode
    with tempfile.TemporaryFile() as kept:
        running: list[subprocess.Popen[bytes]] = []
        for name, markers in RUNS.items():
            options = ("-m", markers, "-o", f"cache_dir=.pytest_cache/{name.split()[0]}")
            print(f"{'shown at its end: ' if running else ''}{name}", flush=True)
            running.append(
                subprocess.Popen(command(*options), stdout=kept if running else None, stderr=subprocess.STDOUT if running else None)
            )
        statuses = []
        try:
            statuses = [process.wait() for process in running]
        finally:
            for process in running:
                process.wait()  # at Ctrl-C each ends its own services first
            kept.seek(0)
            sys.stdout.flush()
            sys.stdout.buffer.write(kept.read())
            sys.stdout.flush()
    for name, status in zip(RUNS, statuses, strict=True):
        print(f"{name}: {'passed' if status == 0 else f'exit status {status}'}")
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
