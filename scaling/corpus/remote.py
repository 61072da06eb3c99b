"""Address of a file -> an answer over HTTP: what it says of the whole file, and its bytes."""

import http.client
import re
import urllib.error
import urllib.request

CHUNK_BYTES = 2**20
TIMEOUT_SECONDS = 60.0
RANGE_NOT_SATISFIABLE = 416


class Cut(Exception):
    """No answer, or one that ended early: worth another try."""


def ask(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Sends a GET, follows redirects; the answer's status is 2xx or 416.

    Raises:
      Cut: no connection, or a status that may pass (408, 429, 5xx).
      ValueError: any other status.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "scaling-fetch", **headers})
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == RANGE_NOT_SATISFIABLE:
            return error
        error.close()
        if error.code >= 500 or error.code in (408, 429):
            raise Cut(f"answers {error.code} {error.reason}") from error
        raise ValueError(
            f"{url}: answers {error.code} {error.reason}; see the set's source page for its "
            "present address"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise Cut(f"no connection ({error})") from error


def read(answer: http.client.HTTPResponse, wanted: int) -> bytes:
    """Bytes of an answer as they arrive, so that a cut loses none; at most wanted, none at its end.

    Raises:
      Cut: the connection failed.
    """
    try:
        return answer.read1(min(wanted, CHUNK_BYTES))
    except (OSError, http.client.HTTPException) as error:
        raise Cut(f"the connection was cut ({error})") from error


def described(url: str, answer: http.client.HTTPResponse) -> tuple[int, dict]:
    """Reads the headers of an answer.

    Returns:
      Position of its first byte in the file, and of the whole file: bytes (its length), etag and
      last_modified (None where not given).

    Raises:
      ValueError: no file of known length, but such as a page to log in.
    """
    if answer.status == 206:
        content_range = answer.headers.get("Content-Range", "")
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)
        first, length = map(int, place.groups()) if place else (0, 0)
    else:
        content_length = answer.headers.get("Content-Length", "")
        first, length = 0, int(content_length) if content_length.isdigit() else 0
    kind = answer.headers.get_content_type()
    if answer.status not in (200, 206) or kind == "text/html" or not length:
        raise ValueError(
            f"{url}: answers {answer.status} with {kind} of {length or 'unknown'} bytes instead of "
            "a file of known length, as servers do that want a browser or a login; download it in "
            "a browser, from the set's source page"
        )
    validators = {"etag": answer.headers["ETag"], "last_modified": answer.headers["Last-Modified"]}
    return first, {"bytes": length, **validators}


def range_from(start: int, file: dict) -> dict[str, str]:
    """Headers that ask for the rest of a file, or for all of it where it is another by now.

    Args:
      start: the first byte wanted.
      file: as `described` gave it; a weak ETag is no condition (RFC 9110, section 13.1.5).
    """
    strong = file["etag"] if (file["etag"] or "").startswith('"') else None
    condition = strong or file["last_modified"]
    return {"Range": f"bytes={start}-"} | ({"If-Range": condition} if condition else {})


def differences(before: dict, now: dict) -> str:
    """What tells two files apart, "" for nothing; dates count only where an ETag is missing."""
    keys = ("bytes", "etag" if before["etag"] and now["etag"] else "last_modified")
    differing = [k for k in keys if before[k] and now[k] and before[k] != now[k]]
    return ", ".join(f"{k} was {before[k]}, is {now[k]}" for k in differing)
