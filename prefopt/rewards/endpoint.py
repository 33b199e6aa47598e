"""Calls of an OpenAI-compatible chat endpoint: one answer or one error a call, and a budget of both."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefopt.errors import RunError

_LARGEST = 1 << 20
"""Bytes of an answer that are read."""
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_REFUSED = frozenset({401, 402, 403, 404, 405})
_BYTES_A_TOKEN = 4
"""What stands for a token where an endpoint counts none: fewer than most tokenizers need for English."""


class CallError(Exception):
    """A call that brought no answer."""

    def __init__(self, message: str, *, passing: bool, wait: float = 0.0, tokens: int = 0) -> None:
        super().__init__(message)
        self.tokens = tokens
        """That it took all the same."""
        self.passing = passing
        """Whether the same call may succeed later."""
        self.wait = wait
        """Seconds that the endpoint asks to wait."""


class RefusedError(Exception):
    """The endpoint refuses calls of this key, model or address."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    text: str
    tokens: int
    """Of question and reply, as the endpoint counts them; estimated where it doesn't."""


class Budget:
    """Calls and tokens that may be used by all threads together; calls under way may overdraw the tokens.

    Args:
        calls: that may be made.
        tokens: that may be used.
        ledger: a file that keeps what is spent, a line each; what an earlier process spent is in it and counts.

    Raises:
        RunError: the ledger can't be read.
    """

    def __init__(self, calls: int, tokens: int, ledger: Path | None = None) -> None:
        self.calls, self.tokens = (0, 0) if ledger is None else _spent(ledger)
        self._most_calls, self._most_tokens = calls, tokens
        self._ledger = ledger
        self._lock = threading.Lock()

    def take(self) -> str | None:
        """Count one call, or return why there may be none.

        Raises:
            RunError: the ledger can't be written, so that the call would be forgotten.
        """
        with self._lock:
            if self.calls >= self._most_calls:
                return f"the budget of {self._most_calls} calls (max_calls) is spent."
            if self.tokens >= self._most_tokens:
                return f"the budget of {self._most_tokens} tokens (max_total_tokens) is spent."
            self._note(calls=1)  # before it is made: a kill must not forget it
            self.calls += 1
            return None

    def spend(self, tokens: int) -> None:
        """Count the tokens of a call."""
        with self._lock:
            self.tokens += tokens
            self._note(tokens=tokens)

    def _note(self, **spent: int) -> None:
        if self._ledger is None:
            return
        try:
            self._ledger.parent.mkdir(parents=True, exist_ok=True)
            with self._ledger.open("ab", buffering=0) as file:
                file.write(b"\n" + json.dumps(spent).encode())  # a line that a kill tore swallows no other
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"{self._ledger} can't be written: {error.strerror}; free the disk, then start again."
            ) from error


def _spent(ledger: Path) -> tuple[int, int]:
    """Return the calls and tokens that a ledger says; a line that a kill tore counts as nothing."""
    try:
        lines = ledger.read_bytes().split(b"\n") if ledger.exists() else []
    except OSError as error:
        raise RunError(f"{ledger} can't be read: {error.strerror}; mend its permissions.") from error
    calls = tokens = 0
    for line in lines:
        try:
            said = json.loads(line)
        except ValueError:
            continue
        calls += said.get("calls", 0)
        tokens += said.get("tokens", 0)
    return calls, tokens


def is_local(address: str) -> bool:
    """Whether an address is of this very machine."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Endpoint:
    """An address that answers POST /chat/completions.

    Args:
        address: its base, such as http://localhost:8000/v1.
        key: sent as a bearer token; None sends none.
        timeout: seconds that a call may take, from its first to its last byte.
    """

    def __init__(self, address: str, key: str | None, timeout: float) -> None:
        self._url = f"{address.rstrip('/')}/chat/completions"
        self._key = key
        self._timeout = timeout
        # A redirect would carry the key to where the recipe never said.
        handlers: list[Any] = [_NoRedirect]
        if is_local(address):  # a proxy of the environment is for what lies outside, and would see the prompts
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def __repr__(self) -> str:
        return f"Endpoint({self._url})"

    def ask(self, body: dict[str, Any]) -> Reply:
        """Return the first choice's text.

        Raises:
            CallError: there is none.
            RefusedError: nor will there be.
        """
        payload = json.dumps(body).encode()
        found: list[Reply | BaseException] = []

        def call() -> None:
            try:
                found.append(self._call(payload))
            except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
                found.append(error)

        # The time limit of a socket is that of one read, and a look-up of the name has none: what a server sends in
        # drops would never end. The thread that is left behind then ends with its connection, or with the process.
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(self._timeout)
        if not found:
            raise CallError(f"{self._url} took longer than {self._timeout:g} seconds (TimeoutError).", passing=True)
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    def _call(self, payload: bytes) -> Reply:
        headers = {"Content-Type": "application/json", "User-Agent": "prefopt"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, payload, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                content = self._read(response, time.monotonic() + self._timeout)
        except urllib.error.HTTPError as error:
            raise self._of_status(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            text = self.without_key(f"{type(reason).__name__}: {reason}")
            raise CallError(f"{self._url} can't be reached ({text}).", passing=True) from None
        return self._reply(content, len(payload))

    def _read(self, response: http.client.HTTPResponse, until: float) -> bytes:
        """Return the body; also a thread that nobody waits for any more stops to read."""
        parts: list[bytes] = []
        size = 0
        while part := response.read1(1 << 16):
            parts.append(part)
            size += len(part)
            if time.monotonic() > until:
                raise TimeoutError("the answer takes too long")
            if size > _LARGEST:
                raise CallError(f"{self._url} answered more than {_LARGEST} bytes.", passing=False)
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        return b"".join(parts)

    def _of_status(self, error: urllib.error.HTTPError) -> CallError | RefusedError:
        try:
            said = error.read(2000).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            said = ""
        finally:
            error.close()
        text = self.without_key(" ".join(said.split()))[:200]
        sentence = f"{self._url} answered {error.code}{': ' if text else ''}{text or ''}."
        if error.code in _REFUSED:
            return RefusedError(sentence)
        try:
            wait = float(error.headers.get("Retry-After", "0"))
        except ValueError:  # a date
            wait = 0.0
        return CallError(sentence, passing=error.code in _PASSING, wait=wait if wait >= 0 else 0.0)

    def _reply(self, content: bytes, asked: int) -> Reply:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        try:
            text = answer["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            text = None
        usage = answer.get("usage") if isinstance(answer, dict) else None
        counted = usage.get("total_tokens") if isinstance(usage, dict) else None
        known = counted if isinstance(counted, int) and not isinstance(counted, bool) and counted >= 0 else None
        if not isinstance(text, str):
            shown = self.without_key(content.decode(errors="replace"))[:80]
            sentence = f"{self._url} answered what is no chat completion with a text: {shown!r}."
            # One that counts its tokens was made and is paid for: asking again brings no other.
            raise CallError(sentence, passing=known is None, tokens=known or 0)
        return Reply(text, (asked + len(text.encode())) // _BYTES_A_TOKEN + 1 if known is None else known)

    def without_key(self, text: str) -> str:
        """Return a text that may be shown."""
        return text if self._key is None else text.replace(self._key, "<key>")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
