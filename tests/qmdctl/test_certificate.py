"""Reading real certificates, made by openssl, without a library for it."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qmdctl.tailnet.certificate import read_certificate
from tests.qmdctl.pki import Pki

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
NAME = "qmd-embed.tail1234.ts.net"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki")).start()


@pytest.mark.parametrize("key", ["rsa", "ec"])
@pytest.mark.parametrize(
    ("until", "moment"),
    [
        ("20491231235959Z", datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),  # UTCTime, two digits of the year
        ("20510203040506Z", datetime(2051, 2, 3, 4, 5, 6, tzinfo=UTC)),  # GeneralizedTime, four (RFC 5280, 4.1.2.5)
        ("20210203040506Z", datetime(2021, 2, 3, 4, 5, 6, tzinfo=UTC)),  # past
    ],
)
def test_names_and_the_end(pki: Pki, key: str, until: str, moment: datetime) -> None:
    chain, _ = pki.certificate(NAME, key=key, until=until)
    found = read_certificate(chain.read_text())
    assert found is not None
    assert (found.names, found.not_after) == ((NAME,), moment)
    assert (found.days_left < 0) is (moment.year == 2021)


def test_days_left(pki: Pki) -> None:
    found = read_certificate(pki.certificate(NAME)[0].read_text())
    assert found is not None
    assert 0.9 < found.days_left <= 1.001


@pytest.mark.parametrize("extensions", ["", "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n"])
@pytest.mark.parametrize("names", [(NAME, "qmd-vllm.tail1234.ts.net", "*.tail1234.ts.net"), tuple(f"n{i}.ts.net" for i in range(40)), ()])
def test_lists_of_names(pki: Pki, names: tuple[str, ...], extensions: str) -> None:
    found = read_certificate(pki.certificate(*names, extensions=extensions)[0].read_text())
    assert found is not None
    assert found.names == names


def test_an_address_among_the_names_is_no_name(pki: Pki) -> None:
    found = read_certificate(pki.certificate(extensions=f"subjectAltName=IP:100.64.0.1,DNS:{NAME},email:a@b.c\n")[0].read_text())
    assert found is not None
    assert found.names == (NAME,)


def test_the_first_of_a_chain_is_the_nodes_own(pki: Pki) -> None:
    chain = pki.certificate(NAME)[0].read_text()
    assert chain.count("BEGIN CERTIFICATE") == 2
    found, authority = read_certificate(f"a line before\n{chain}"), read_certificate(pki.authority.read_text())
    assert found is not None and found.names == (NAME,)
    assert authority is not None and authority.names == ()


def test_damaged_ones_are_none(pki: Pki) -> None:
    text = pki.certificate(NAME, key="rsa")[0].read_text()
    lines = text.splitlines(keepends=True)
    for damaged in (
        "",
        "no certificate",
        text[:200],  # the file ends early
        lines[0] + "".join(lines[5:]),  # lines are gone
        lines[0] + "".join(lines[1:4]) + text[text.index("-----END") :],  # DER that ends early
        lines[0] + text[text.index("-----END") :],  # nothing in it
    ):
        assert read_certificate(damaged) is None, damaged


def test_no_damage_raises(pki: Pki) -> None:
    """A bit is flipped at every place in turn: None or something else, never an error."""
    import ssl

    der = bytearray(ssl.PEM_cert_to_DER_cert(pki.certificate(NAME)[0].read_text().split("-----END CERTIFICATE-----")[0] + END))
    for place in range(len(der)):
        der[place] ^= 0x81
        read_certificate(ssl.DER_cert_to_PEM_cert(bytes(der)))
        der[place] ^= 0x81
    for length in range(len(der)):
        read_certificate(ssl.DER_cert_to_PEM_cert(bytes(der[:length])))


END = "-----END CERTIFICATE-----\n"


def test_a_file_of_something_else(tmp_path: Path) -> None:
    assert read_certificate("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n") is None
    assert read_certificate("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n") is None
