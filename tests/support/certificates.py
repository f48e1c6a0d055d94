"""Authorities and certificates for tests, made with openssl: ECDSA P-256, valid for two days."""

import subprocess
from pathlib import Path

from tests.support.needs import require


class Authority:
    """Signs certificates into a folder of its own."""

    def __init__(self, directory: Path, name: str = "test authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.certificate = directory / "ca.pem"
        self._key = directory / "ca-key.pem"
        _openssl("req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.certificate, "-days", "2", "-subj", f"/CN={name}",
                 "-addext", "basicConstraints=critical,CA:TRUE")  # fmt: skip

    def issue(self, name: str, *others: str, label: str = "", days: int = 2) -> tuple[Path, Path]:
        """A certificate for these host names, and its key; again under the same ``label`` replaces both."""
        label = label or name.replace("*", "any")
        certificate, key, request = (self._directory / f"{label}{end}" for end in (".pem", "-key.pem", ".csr"))
        names = ",".join(f"DNS:{each}" for each in (name, *others))
        extension = self._directory / f"{label}.ext"
        extension.write_text(f"subjectAltName={names}\nbasicConstraints=CA:FALSE\n")
        fresh = [path.with_suffix(".new") for path in (certificate, key)]
        _openssl("req", *_NEW_KEY, "-keyout", fresh[1], "-out", request, "-subj", f"/CN={name}")
        _openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
                 "-out", fresh[0], "-days", str(days), "-extfile", extension)  # fmt: skip
        fresh[1].replace(key)
        fresh[0].replace(certificate)
        return certificate, key


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _openssl(*words: str | Path) -> None:
    subprocess.run([require("openssl"), *words], check=True, capture_output=True, timeout=30)
