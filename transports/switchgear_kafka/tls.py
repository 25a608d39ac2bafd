"""Whom we trust over TLS, and what it means where that fails."""

from __future__ import annotations

import ssl

from switchgear.errors import ConfigurationError, SwitchgearError, Unavailable

from .tuning import Settings


def context(settings: Settings) -> ssl.SSLContext:
    """Read certificates and key. Raises ConfigurationError for files that hold none."""
    try:
        found = ssl.create_default_context(cafile=settings.ca)
        if settings.cert and settings.key:
            found.load_cert_chain(settings.cert, settings.key)
    except (ssl.SSLError, OSError) as error:
        raise ConfigurationError(
            f"{settings.address}: ca, cert and key have to be PEM files, key that of cert: {error}"
        ) from error
    if not settings.verify:
        found.check_hostname = False
        found.verify_mode = ssl.CERT_NONE
    return found


def failure(at: str, error: ssl.SSLError) -> SwitchgearError:
    """Our error for what a handshake failed with."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(at, error)
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING"):
        return ConfigurationError(f"{at}: the broker speaks no TLS there: write kafka://, or its TLS port")
    if "CERTIFICATE" in (error.reason or ""):
        return ConfigurationError(
            f"{at}: the broker wants a client certificate ({error.reason}): give ?cert= and ?key="
        )
    return Unavailable(f"{at}: TLS failed: {error.reason or error}")


def _untrusted(at: str, error: ssl.SSLCertVerificationError) -> ConfigurationError:
    said = error.verify_message
    if "expired" in said or "not yet valid" in said:
        return ConfigurationError(f"{at}: the broker's certificate: {said}: renew it there, or check both clocks")
    if "mismatch" in said or "not valid for" in said:
        return ConfigurationError(f"{at}: the broker's certificate: {said}: connect by a name that it is for")
    return ConfigurationError(f"{at}: the broker's certificate: {said}: name its authority with ?ca=/path/to/ca.pem")
