"""Real certificates, made by openssl for a test."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

KEYS = {"rsa": ("rsa", "rsa_keygen_bits:2048"), "ec": ("EC", "ec_paramgen_curve:P-256")}


@dataclass(frozen=True)
class Pki:
    """An authority of the test's own in `folder`."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.pem"

    def start(self) -> Pki:
        self._openssl(
            *("req", "-x509", "-newkey", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650"),
            *("-subj", "/CN=An authority of the tests", "-keyout", "ca.key", "-out", "ca.pem"),
        )
        return self

    def certificate(self, *names: str, key: str = "ec", until: str = "", extensions: str = "") -> tuple[Path, Path]:
        """(chain, key) for these DNS names, ending at `until` (20510101000000Z); by default in a day."""
        stem = f"{len(list(self.folder.iterdir()))}"
        algorithm, option = KEYS[key]
        subject = names[0] if names else "nobody"
        request = ("req", "-new", "-newkey", algorithm, "-pkeyopt", option, "-nodes", "-subj", f"/CN={subject}")
        self._openssl(*request, "-keyout", f"{stem}.key", "-out", f"{stem}.csr")
        alternative = f"subjectAltName={','.join(f'DNS:{name}' for name in names)}\n" if names else ""
        (self.folder / f"{stem}.ext").write_text(f"basicConstraints=critical,CA:FALSE\n{alternative}{extensions}")
        for name, text in (("index.txt", ""), ("index.txt.attr", "unique_subject = no\n"), ("ca.cnf", CONFIGURATION)):
            (self.folder / name).write_text(text)
        dates = ("-startdate", "20200101000000Z", "-enddate", until) if until else ("-days", "1")
        self._openssl(
            *("ca", "-batch", "-config", "ca.cnf", "-extfile", f"{stem}.ext", *dates),
            *("-in", f"{stem}.csr", "-out", f"{stem}.crt", "-notext"),
        )
        chain = self.folder / f"{stem}.pem"
        chain.write_text((self.folder / f"{stem}.crt").read_text() + self.authority.read_text())
        return chain, self.folder / f"{stem}.key"

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=self.folder, check=False, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()


CONFIGURATION = """
[ca]
default_ca = tests
[tests]
new_certs_dir = .
database = index.txt
serial = serial
rand_serial = yes
certificate = ca.pem
private_key = ca.key
default_md = sha256
policy = any
[any]
commonName = supplied
"""
