"""Entry point; also parsed by a Python that is too old, so nothing newer than 3.6 here."""

import os
import shutil
import subprocess
import sys

if sys.version_info < (3, 11):  # noqa: UP036
    for name in ("python3.13", "python3.12", "python3.11", "python3.14"):
        newer = shutil.which(name)
        if newer and subprocess.run([newer, "-c", "import venv"], stderr=subprocess.DEVNULL).returncode == 0:
            os.execv(newer, [newer, "-m", "scripts.bootstrap", *sys.argv[1:]])
    found = "%s is %d.%d" % (sys.executable, *sys.version_info[:2])  # noqa: UP031
    sys.exit("Python 3.11 or newer is needed; " + found + ". Install one, or name it: make PYTHON=/path/to/python3.11 …")

from scripts.bootstrap.environment import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
