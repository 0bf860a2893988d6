"""The project's git checkout: what is checked out, what a name means, what lies between two commits, and going from one to the other."""

from __future__ import annotations

import re
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qmdctl.errors import ConfigurationError, QmdError
from qmdctl.process import Completed, run
from qmdctl.releases.record import Release

FETCH_SECONDS = 300.0
RELEASE_TAG = re.compile(r"v?\d+(\.\d+){1,3}")
VERSION_LINE = re.compile(r"^__version__ = [\"']([^\"']+)[\"']", re.MULTILINE)
SHOWN = 12  # lines of a log or of CHANGELOG.md


@dataclass(frozen=True)
class Target:
    """A commit, and the branch that is to stand there (empty: none, the commit alone is checked out). `name` as it was asked for."""

    name: str
    commit: str
    branch: str = ""

    def payload(self) -> dict[str, Any]:
        return asdict(self)


class Checkout:
    """git in the project's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def git(self, *arguments: str, check: bool = True, seconds: float = 60.0) -> Completed:
        """QmdError with git's own last line when it fails and `check` is set, MissingError where there is no git."""
        environment = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        done = run(["git", *arguments], cwd=self.folder, environment=environment, check=False, timeout_seconds=seconds)
        if check and not done.ok:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise QmdError(f"git {arguments[0]}: {lines[-1] if lines else f'status {done.returncode}'}", details=done.stderr[-2000:])
        return done

    def release(self) -> Release:
        """What is checked out; the version alone where this is no checkout that git can read."""
        try:
            version = VERSION_LINE.search((self.folder / "embed_service/__init__.py").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            version = None
        number = version[1] if version else ""
        try:
            if not self.is_one:
                return Release(number)
            tag = self.git("describe", "--tags", "--exact-match", "HEAD", check=False)
            return Release(number, self.commit, tag.stdout.strip() if tag.ok else "", self.branch, bool(self.changes()))
        except QmdError:
            return Release(number)

    @property
    def is_one(self) -> bool:
        """Whether the folder itself is a checkout with a commit; one inside another repository is not."""
        found = self.git("rev-parse", "--show-toplevel", "--verify", "HEAD", check=False)
        return found.ok and Path(found.stdout.splitlines()[0]).resolve() == self.folder.resolve()

    @property
    def commit(self) -> str:
        return self.git("rev-parse", "--verify", "HEAD").stdout.strip()

    @property
    def branch(self) -> str:
        """Empty where a commit alone is checked out."""
        found = self.git("symbolic-ref", "--quiet", "--short", "HEAD", check=False)
        return found.stdout.strip() if found.ok else ""

    def changes(self) -> list[str]:
        """Tracked files that differ from the commit."""
        return [line[3:] for line in self.git("status", "--porcelain", "--untracked-files=no").stdout.splitlines()]

    def need_clean(self) -> None:
        """ConfigurationError that names the changed files."""
        changes = self.changes()
        if changes:
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise ConfigurationError(
                f"Files of the project were changed here: {', '.join(changes[:3])}{more}",
                "git stash (git stash pop brings them back), or commit them; values of your own belong in .env or compose.override.yaml",
            )

    @property
    def remote(self) -> str:
        """Where releases come from; empty where there is none."""
        remotes = self.git("remote").stdout.split()
        return "origin" if "origin" in remotes else next(iter(remotes), "")

    def fetch(self) -> bool:
        """Bring what the remote has, where there is one. QmdError where it cannot be reached."""
        remote = self.remote
        if remote:
            self.git("fetch", "--tags", "--prune", remote, seconds=FETCH_SECONDS)
        return bool(remote)

    def resolve(self, name: str) -> Target:
        """A tag, a branch (of the remote, else of this checkout) or a commit. ConfigurationError for anything else."""
        if name.startswith("-"):
            raise ConfigurationError(f"{name!r} is not the name of a release", "qmdctl upgrade RELEASE: a tag, a branch or a commit")
        remote = self.remote or "origin"
        for reference, branch in (
            (f"refs/tags/{name}", ""),
            (f"refs/remotes/{remote}/{name}", name),
            (f"refs/heads/{name}", name),
            (name, ""),
        ):
            found = self.git("rev-parse", "--quiet", "--verify", "--end-of-options", f"{reference}^{{commit}}", check=False)
            if found.ok:
                return self._with_branch(name, found.stdout.strip(), branch)
        tags = ", ".join(self.release_tags()[:5])
        raise ConfigurationError(
            f"{name!r} is neither a tag nor a branch nor a commit of this checkout", f"choose one: {tags or 'git tag; git branch -a'}"
        )

    def _with_branch(self, name: str, commit: str, branch: str) -> Target:
        here = self.git("rev-parse", "--quiet", "--verify", f"refs/heads/{branch}", check=False).stdout.strip() if branch else ""
        if here and not self.contains(commit, here):
            raise ConfigurationError(
                f"The branch {branch} here has commits of its own, which {name} does not have",
                f"git rebase {self.remote or 'origin'}/{branch}, or name the commit: qmdctl upgrade {commit[:9]}",
            )
        return Target(name, commit, branch)

    def release_tags(self) -> list[str]:
        """Tags that are versions, the newest first; pre-releases are left out."""
        listed = self.git("tag", "--list", "--sort=-version:refname").stdout.split()
        return [tag for tag in listed if RELEASE_TAG.fullmatch(tag)]

    def contains(self, commit: str, other: str) -> bool:
        """Whether `other` is `commit` or lies before it."""
        return self.git("merge-base", "--is-ancestor", other, commit, check=False).ok

    def has(self, commit: str) -> bool:
        return self.git("cat-file", "-e", f"{commit}^{{commit}}", check=False).ok

    def log(self, old: str, new: str) -> list[str]:
        """A line for each commit that `new` has and `old` has not, the newest first."""
        return self.git("log", "--no-decorate", "--format=%h %s", f"{old}..{new}").stdout.splitlines()

    def changelog(self, old: str, new: str) -> list[str]:
        """The lines that CHANGELOG.md gained."""
        diff = self.git("diff", "--no-color", "--unified=0", old, new, "--", "CHANGELOG.md").stdout
        return [line[1:] for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++") and line[1:].strip()]

    def differs(self, old: str, new: str, path: str) -> bool:
        return not self.git("diff", "--quiet", old, new, "--", path, check=False).ok

    def export(self, commit: str, folder: Path) -> None:
        """Write the commit's files into an empty folder, beside the checkout, which stays as it is."""
        archive = folder.with_suffix(".tar")
        try:
            self.git("archive", "--format=tar", "--output", str(archive), commit)
            with tarfile.open(archive) as files:
                files.extractall(folder, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise QmdError(f"The files of {commit[:9]} cannot be written to {folder}: {error}", f"df -h {folder.parent}") from None
        finally:
            archive.unlink(missing_ok=True)

    def go(self, commit: str, branch: str) -> None:
        """Check out; `branch` is moved there. QmdError where git refuses, as it does where an untracked file would be overwritten."""
        self.git("checkout", "--quiet", *_to(commit, branch))

    def go_over(self, commit: str, branch: str, other: str) -> None:
        """The same where a checkout to or from `other` was cut off: git moves HEAD and its index last, so files of both lie there.

        Nothing but that lies there, as the checkout was clean before. QmdError where git fails.
        """
        for name in ("index.lock", "HEAD.lock"):  # of a git that was killed
            (self.folder / self.git("rev-parse", "--git-path", name).stdout.strip()).unlink(missing_ok=True)
        half = bool(self.changes())
        self.git("checkout", "--quiet", "--force", *_to(commit, branch))
        if half:  # files that `other` alone has are not in the index yet, and git would not overwrite them the next time
            for name in self.git("diff", "--name-only", "--no-renames", "--diff-filter=A", "-z", commit, other).stdout.split("\0"):
                if name:
                    (self.folder / name).unlink(missing_ok=True)


def _to(commit: str, branch: str) -> list[str]:
    return ["-B", branch, commit] if branch else ["--detach", commit]
