"""Hostile uploads to `/v1/files` are refused in the error shape, leave nothing in the store and need little memory."""

from __future__ import annotations

import gzip
import io
import json
import re
import select
import socket
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import httpx
import pytest

from ray_jobs.storage import Workspace
from tests.conftest import StoreServer
from tests.serving.api_harness import KEY, rows
from tests.serving.api_process import ApiProcess, api_process
from tests.serving.error_shape import Refusal, check_error

MIB = 2**20
MAX_BYTES = 110 * MIB
"""Largest file accepted in these tests."""
MAX_GROWTH_BYTES = 256 * MIB
"""Limit of memory growth for a file of any length; parts of 16 MiB are sent to the store concurrently, and each thread
of the process keeps some of what it freed. About 220 MiB are usual; a copy of the file would be 100 more."""
BOUNDARY = "boundary-of-the-tests"
HEADERS = {"Authorization": f"Bearer {KEY}"}
JAPANESE = json.dumps({"prompt": "こんにちは、元気ですか", "completion": "はい、元気です"}, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Endpoint:
    """The process, its store, and a client of it."""

    process: ApiProcess
    store: Workspace
    client: httpx.Client
    resident_bytes: int
    """Resident memory after warm-up uploads."""

    def objects(self) -> dict[str, str]:
        """Key → etag of all objects except usage counts and the audit log."""
        return {info.key: info.etag for info in self.store.list() if not info.key.startswith(("usage/", "audit/"))}

    def post(self, body: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}") -> httpx.Response:
        return self.client.post("/v1/files", content=body, headers={"Content-Type": content_type})


@pytest.fixture(scope="module")
def endpoint(store_server: StoreServer, module_store: Workspace) -> Iterator[Endpoint]:
    store = module_store
    with (
        api_process(store_server.environment(store.uri()), max_file_bytes=MAX_BYTES) as process,
        httpx.Client(base_url=process.url, headers=HEADERS, timeout=120) as client,
    ):
        for content in (b"{}\n", rows()):
            warm = client.post("/v1/files", files={"file": ("x.jsonl", content)}, data={"purpose": "fine-tune"})
        client.delete(f"/v1/files/{warm.json()['id']}").raise_for_status()  # writes what is written once
        for name in ("x.parquet", "x.xlsx", "x.csv.gz"):  # loads the readers
            client.post("/v1/files", files={"file": (name, b"none")}, data={"purpose": "fine-tune"})
        process.reset_peak()
        yield Endpoint(process, store, client, process.resident_bytes())


@pytest.fixture(autouse=True)
def untouched(endpoint: Endpoint) -> Iterator[None]:
    """Assert after each test that the store is unchanged and that memory has not grown."""
    before = endpoint.objects()
    yield
    assert endpoint.objects() == before
    grown = endpoint.process.peak_bytes() - endpoint.resident_bytes
    print(f"{grown / MIB:.0f} MiB more than idle")
    assert grown < MAX_GROWTH_BYTES, f"{grown / MIB:.0f} MiB more than idle"
    assert endpoint.client.get("/healthz").status_code == 200


def part(content: bytes, *, name: str = "file", filename: str | bytes | None = "rows.jsonl") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'.encode()
    if filename is not None:
        head += b'; filename="' + (filename if isinstance(filename, bytes) else filename.encode()) + b'"'
    return head + b"\r\n\r\n" + content + b"\r\n"


PURPOSE = part(b"fine-tune", name="purpose", filename=None)
END = f"--{BOUNDARY}--\r\n".encode()


def form(content: bytes, filename: str | bytes = "rows.jsonl") -> bytes:
    return PURPOSE + part(content, filename=filename) + END


def refused(response: httpx.Response, status: int = 400) -> Refusal:
    refusal = check_error(response)
    assert refusal.status == status, refusal
    return refusal


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", content)
    return buffer.getvalue()


def nested(depth: int) -> bytes:
    return b'{"messages": ' + b"[" * depth + b"]" * depth + b', "a": "\\u0000"}\n'


CONTENTS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    # name → content, file name, part of the message
    "empty": (lambda: b"", "x.jsonl", "is empty"),
    "newlines alone": (lambda: b"\n" * 50_000, "x.jsonl", "no rows"),
    "carriage returns alone": (lambda: b"\r" * 50_000, "x.jsonl", "no rows"),
    "cut off in a line": (lambda: rows()[:-30], "x.jsonl", "not JSON"),
    "NUL bytes alone": (lambda: bytes(100_000), "x.jsonl", "NUL"),
    "NUL in a text": (lambda: b'{"prompt": "a\x00", "completion": "b"}\n', "x.jsonl", "NUL"),
    "a zip bomb": (lambda: zipped(bytes(64 * MIB)), "x.zip", "cannot be read as rows"),
    "a zip bomb renamed": (lambda: zipped(bytes(64 * MIB)), "x.jsonl", "ZIP archive"),
    "a gzip bomb": (lambda: gzip.compress(bytes(64 * MIB)), "x.jsonl.gz", "longer than 10 MB"),
    "a workbook that is none": (lambda: zipped(bytes(64 * MIB)), "x.xlsx", "Excel workbook"),
    "a Parquet file that is none": (lambda: b"PAR1" + bytes(1000) + b"PAR1", "x.parquet", "Parquet"),
    "a gzip in a gzip": (lambda: gzip.compress(gzip.compress(bytes(64 * MIB))), "x.csv.gz", "gzip"),
    "a gzip bomb renamed": (lambda: gzip.compress(bytes(64 * MIB)), "x.jsonl", "packed by gzip"),
    "a gzip bomb as CSV": (lambda: gzip.compress(bytes(64 * MIB)), "x.csv", "packed by gzip"),
    "a line of 100 MB": (lambda: b'{"prompt": "' + b"a" * 100 * 10**6 + b'"}', "x.jsonl", "longer than 10 MB"),
    "a field of 20 MB": (lambda: b'text,label\n"' + b"a" * 20 * 10**6 + b'",x\n', "x.csv", "longer than 10 MB"),
    "an open quote over 100,000 lines": (lambda: b'text,label\n"' + b"a\n" * 100_000, "x.csv", "quoted"),
    "50,000 keys, one twice": (
        lambda: b"{" + b",".join(b'"%d":1' % i for i in [*range(50_000), 7]) + b"}\n",
        "x.jsonl",
        "the key '7' occurs twice",
    ),
    "50,000 columns, one twice": (
        lambda: b",".join(b"%d" % i for i in [*range(50_000), 7]) + b"\n1\n",
        "x.csv",
        "a table may have 2000",
    ),
    "a column for each line": (
        lambda: b"".join(b'{"%d": 1}\n' % i for i in range(20_000)),
        "x.jsonl",
        "none of the columns",
    ),
    "a key of 5 MB": (lambda: b'{"' + b"k" * 5_000_000 + b'": 1}\n', "x.jsonl", "none of the columns"),
    "a role of 5 MB": (
        lambda: b'{"messages": [{"role": "' + b"r" * 5_000_000 + b'", "content": "a"}]}\n',
        "x.jsonl",
        "role is",
    ),
    "300,000 wrong messages": (lambda: b'{"messages": [' + b"1," * 300_000 + b"1]}\n", "x.jsonl", "messages[0]"),
    "a number of 5,000 digits": (lambda: b'{"prompt": ' + b"9" * 5000 + b"}\n", "x.jsonl", "digits"),
    "a number beyond all": (lambda: b'{"messages": [{"role": "user", "content": 1e999}]}\n', "x.jsonl", "content must"),
    **{
        f"{depth} lists within another": (partial(nested, depth), "x.jsonl", "")
        for depth in (100, 500, 800, 900, 940, 970, 1_000_000)
    },
}


@pytest.mark.parametrize("name", CONTENTS)
def test_invalid_contents_are_refused(endpoint: Endpoint, name: str) -> None:
    make, filename, message = CONTENTS[name]
    error = refused(endpoint.post(form(make(), filename)))
    assert message in error.message
    assert error.param == "file"


def test_every_invalid_line_is_reported_up_to_a_limit(endpoint: Endpoint) -> None:
    error = refused(endpoint.post(form(b'{"prompt": 1}\n' * 200_000)))
    assert error.message.startswith("200000 problems in rows.jsonl; line 1: prompt must be")
    lines = [detail["line"] for detail in error.details]
    assert lines == [*range(1, 10_001), None]
    assert error.details[-1]["reason"] == "+190000 more"


NAMES: dict[str, tuple[str | bytes, str | None]] = {
    # name → file name sent, file name stored; None: refused
    "a path": ("../../etc/passwd", "passwd"),
    "an absolute path": ("/etc/passwd.jsonl", "passwd.jsonl"),
    "a path of Windows": (rb"C:\\x", "x"),
    "a share of Windows": (rb"\\\\host\\share\\rows.jsonl", "rows.jsonl"),
    "a directory": ("rows/", "rows"),
    "5,000 characters": ("a" * 5000, None),
    "5,000 characters with an ending": ("a" * 5000 + ".csv", None),
    "255 characters of three bytes": ("あ" * 249 + ".jsonl", "あ" * 249 + ".jsonl"),
    "one dot": (".", None),
    "two dots": ("..", None),
    "dots": ("......", None),
    "blanks": ("   ", None),
    "nothing": ("", "upload"),
    "a NUL": ("ro\x00ws.jsonl", "rows.jsonl"),
    "control characters": ("\x1b[31mrows\x07.jsonl", "[31mrows.jsonl"),
    "a right-to-left mark": ("rows\u202elnosj.exe", "rowslnosj.exe"),
    "invisible marks": ("\u200frows\u200b\u2066.jsonl\ufeff", "rows.jsonl"),
    "bytes that are not UTF-8": (b"r\xf6ws.jsonl", "röws.jsonl"),
    "a query": ("rows.jsonl?x=1#y", "rows.jsonl?x=1#y"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_name_is_never_used_as_a_path(endpoint: Endpoint, name: str) -> None:
    given, shown = NAMES[name]
    before = endpoint.objects()
    response = endpoint.post(form(rows(), given))
    if response.status_code != 200:
        assert shown is None or name == "a NUL", response.text  # a form parser may refuse it
        refused(response)
        return
    file = response.json()
    assert file["filename"] == shown
    new = sorted(endpoint.objects().keys() - before.keys())
    index = rf"teams/default/index/files/[0-9a-f]{{16}}/{file['id']}.json"
    assert new[:2] == [f"files/default/{file['id']}/rows.jsonl", f"teams/default/files/{file['id']}.json"]
    assert [re.fullmatch(index, key) is not None for key in new[2:]] == [True]
    assert re.fullmatch(r"file-[0-9a-z]{26}", file["id"])
    assert endpoint.client.delete(f"/v1/files/{file['id']}").status_code == 200


FORMS: dict[str, tuple[bytes, str]] = {
    # name → body, content type
    "no boundary": (form(rows()), "multipart/form-data"),
    "an empty boundary": (form(rows()), "multipart/form-data; boundary="),
    "another boundary": (form(rows()), "multipart/form-data; boundary=other"),
    "a boundary of 5,000 characters": (form(rows()), f"multipart/form-data; boundary={'b' * 5000}"),
    "no body": (b"", f"multipart/form-data; boundary={BOUNDARY}"),
    "no parts": (END, f"multipart/form-data; boundary={BOUNDARY}"),
    "cut off in a header": (form(rows())[:20], f"multipart/form-data; boundary={BOUNDARY}"),
    "cut off in the file": (form(rows(1000))[:-20_000], f"multipart/form-data; boundary={BOUNDARY}"),
    "cut off in the last boundary": (form(rows())[:-8], f"multipart/form-data; boundary={BOUNDARY}"),
    "no file": (PURPOSE + END, f"multipart/form-data; boundary={BOUNDARY}"),
    "a file that is a field": (
        PURPOSE + part(rows(), filename=None) + END,
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "two files": (PURPOSE + part(rows()) + part(rows()) + END, f"multipart/form-data; boundary={BOUNDARY}"),
    "two files of two names": (
        PURPOSE + part(rows()) + part(rows(), name="other") + END,
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "10,000 fields": (
        PURPOSE + b"".join(part(b"x", name=f"n{i}", filename=None) for i in range(10_000)) + part(rows()) + END,
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "a field of 5 MB": (
        PURPOSE + part(b"x" * 5 * MIB, name="task", filename=None) + part(rows()) + END,
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "a header of 5 MB": (
        PURPOSE + part(rows(), filename="x" * 5 * MIB) + END,
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "10,000 headers": (
        PURPOSE + f"--{BOUNDARY}\r\n".encode() + b"X: y\r\n" * 10_000 + b"\r\nx\r\n" + END,
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "a part without a name": (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data\r\n\r\nx\r\n".encode() + END,
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "an unknown purpose": (
        part(b"nothing", name="purpose", filename=None) + part(rows()) + END,
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "a purpose that is not UTF-8": (
        part(b"\xff\xfe", name="purpose", filename=None) + part(rows()) + END,
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "an unknown encoding": (
        part(b"x", name="purpose", filename=None) + part(rows()) + END,
        f"multipart/form-data; boundary={BOUNDARY}; charset=rot13",
    ),
    "lone surrogates": (
        PURPOSE + part(b"+2AA-", name="model", filename=None) + part(rows()) + END,
        f"multipart/form-data; boundary={BOUNDARY}; charset=utf-7",
    ),
    "JSON": (b'{"file": "x", "purpose": "fine-tune"}', "application/json"),
    "a URL-encoded form": (b"file=x&purpose=fine-tune", "application/x-www-form-urlencoded"),
    "a URL-encoded form of 100,000 fields": (b"a=b&" * 100_000, "application/x-www-form-urlencoded"),
    "no content type": (rows(), ""),
}


@pytest.mark.parametrize("name", FORMS)
def test_invalid_forms_are_refused(endpoint: Endpoint, name: str) -> None:
    body, content_type = FORMS[name]
    refused(endpoint.post(body, content_type))


def raw(endpoint: Endpoint, head: str, *pieces: bytes, close: bool = False) -> bytes:
    """Send raw bytes. Returns the response. `close`: disconnect without reading a response."""
    with socket.create_connection(("127.0.0.1", endpoint.process.port), timeout=30) as connection:
        lines = ["POST /v1/files HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", head, "Connection: close"]
        kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
        connection.sendall("\r\n".join([*lines, kind, "", ""]).encode())
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                if select.select([connection], [], [], 0)[0]:  # the response has begun
                    break
            if close:
                return b""
            while data := connection.recv(65536):
                answer += data
        except ConnectionError:  # the server may close the connection before it has read the whole request
            pass
        return answer


def test_a_wrong_content_length_is_refused(endpoint: Endpoint) -> None:
    body = form(rows(1000))
    assert raw(endpoint, f"Content-Length: {len(body) + 1000}", body, close=True) == b""
    assert raw(endpoint, f"Content-Length: {len(body) - 1000}", body).startswith(b"HTTP/1.1 400")
    assert raw(endpoint, f"Content-Length: {MAX_BYTES + 2 * MIB}").startswith(b"HTTP/1.1 413")
    assert raw(endpoint, "Content-Length: 99999999999999999999999999").startswith(b"HTTP/1.1 4")
    assert raw(endpoint, "Content-Length: -1").startswith(b"HTTP/1.1 4")
    assert raw(endpoint, "Content-Length: 1_0").startswith(b"HTTP/1.1 4")
    assert raw(endpoint, "Transfer-Encoding: chunked", b"xyz\r\n").startswith(b"HTTP/1.1 4")
    assert raw(endpoint, "Transfer-Encoding: chunked", b"ff\r\n" + body[:100], close=True) == b""


def test_a_chunked_body_over_the_limit_is_refused(endpoint: Endpoint) -> None:
    piece = b"100000\r\n" + b"a" * MIB + b"\r\n"
    first = PURPOSE + part(b"")[:-2]
    answer = raw(
        endpoint,
        "Transfer-Encoding: chunked",
        b"%x\r\n" % len(first) + first + b"\r\n",
        *[piece] * (MAX_BYTES // MIB + 1),  # one more than the limit, which includes an allowance for the form
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413"), head
    assert json.loads(body)["error"]["code"] == "request_too_large"


def test_hostile_parts_of_uploads_are_refused(endpoint: Endpoint) -> None:
    described = {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": 10}
    upload = endpoint.client.post("/v1/uploads", json=described).json()
    parts = f"/v1/uploads/{upload['id']}/parts"
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    for body, status in (
        (part(b"", name="data") + END, 400),
        (part(b"x" * 11, name="data") + END, 400),
        (part(b"x", name="data") + part(b"x", name="data") + END, 400),
        (part(b"x", name="data", filename=None) + END, 400),
        (part(b"x", name="data")[:-10], 400),
        (part(b"x" * 66 * MIB, name="data") + END, 413),
    ):
        refused(endpoint.client.post(parts, content=body, headers=kind), status)
    for name in ("../../etc/passwd", "....", "a/b\\c"):
        answer = endpoint.client.post("/v1/uploads", json=described | {"filename": name, "bytes": 1})
        record = f"teams/default/uploads/{answer.json()['id']}.json" if answer.status_code == 200 else None
        if record is None:
            refused(answer)
        else:
            endpoint.store.delete(record)
    endpoint.store.delete(f"teams/default/uploads/{upload['id']}.json")
