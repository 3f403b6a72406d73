"""Describes a TLS connection and its client's certificate in variables, as Apache's mod_ssl names them."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from typing import Any

# The attributes of a distinguished name: as `ssl` calls them, their short names, and the ends of variables' names.
_ATTRIBUTES = (
    ("commonName", "CN", "CN"),
    ("countryName", "C", "C"),
    ("stateOrProvinceName", "ST", "ST"),
    ("localityName", "L", "L"),
    ("organizationName", "O", "O"),
    ("organizationalUnitName", "OU", "OU"),
    ("userId", "UID", "UID"),
    ("emailAddress", "emailAddress", "Email"),
    ("domainComponent", "DC", ""),
    ("title", "title", "T"),
    ("givenName", "GN", "G"),
    ("surname", "SN", "S"),
    ("initials", "initials", "I"),
    ("description", "description", "D"),
)
_SHORT = {name: short for name, short, _ in _ATTRIBUTES}
_ENDS = {name: end for name, _, end in _ATTRIBUTES if end}
_SANS = {"DNS": "DNS", "email": "Email"}
# RFC 4514, section 2.4: what is special anywhere, at the beginning and at the end.
_SPECIAL = re.compile(r'[,+"\\<>;]|\A[ #]|(?<=.) \Z')
_CONTROL = re.compile("[\0-\x1f\x7f]")


def tls_variables(connection: ssl.SSLSocket) -> dict[str, str]:
    """Return the variables of a connection after its handshake, with its client's certificate if it has sent one.

    Values are in UTF-8, its bytes as latin-1 like everything in an environ. Loop side.
    """
    cipher, protocol, bits = connection.cipher() or ("", "", 0)
    variables = {"SSL_PROTOCOL": protocol, "SSL_CIPHER": cipher, "SSL_CIPHER_USEKEYSIZE": str(bits)}
    # Only a certificate that has been verified is described; otherwise the handshake has failed.
    certificate: dict[str, Any] = connection.getpeercert() or {}
    variables["SSL_CLIENT_VERIFY"] = "SUCCESS" if certificate else "NONE"
    if not certificate:
        return variables
    variables |= {
        "SSL_CLIENT_M_VERSION": str(certificate["version"]),
        "SSL_CLIENT_M_SERIAL": certificate["serialNumber"],
        "SSL_CLIENT_V_START": certificate["notBefore"],
        "SSL_CLIENT_V_END": certificate["notAfter"],
        "SSL_CLIENT_CERT": ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b""),
    }
    for prefix, name in (("SSL_CLIENT_S_DN", certificate["subject"]), ("SSL_CLIENT_I_DN", certificate["issuer"])):
        variables[prefix] = _distinguished(name)
        for attribute, value in (pair for pairs in name for pair in pairs):
            if attribute in _ENDS:
                # Of several, mod_ssl puts the first here.
                variables.setdefault(f"{prefix}_{_ENDS[attribute]}", value)
    counts = dict.fromkeys(_SANS, 0)
    for kind, value in certificate.get("subjectAltName", ()):
        if kind in _SANS:
            variables[f"SSL_CLIENT_SAN_{_SANS[kind]}_{counts[kind]}"] = value
            counts[kind] += 1
    return {name: value.encode().decode("latin-1") for name, value in variables.items()}


def _distinguished(name: Iterable[Iterable[tuple[str, str]]]) -> str:
    """Return a distinguished name as text (RFC 4514): the most specific part first."""
    parts = [
        "+".join(f"{_SHORT.get(attribute, attribute)}={_escaped(value)}" for attribute, value in pairs)
        for pairs in name
    ]
    return ",".join(reversed(parts))


def _escaped(value: str) -> str:
    escaped = _SPECIAL.sub(lambda match: f"\\{match[0]}", value)
    return _CONTROL.sub(lambda match: f"\\{ord(match[0]):02X}", escaped)
