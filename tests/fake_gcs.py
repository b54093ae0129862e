"""Cloud Storage in memory: what gcsfs, google-cloud-storage and TensorStore ask of its JSON API.

A bucket is a flat table of whole objects. There are no directories, no rename and no appending; every write
makes a new generation, and a request may name the generation that it expects. A request that is not known
here is answered with 501, so that a test fails instead of guessing.
"""

import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c

_TIME = "2026-01-01T00:00:00.000Z"
_PAGE = 1000  # entries of a listing
_OBJECT = r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)"
_ROUTES = [
    ("GET", r"/storage/v1/b/([^/]+)", "bucket"),
    ("GET", r"/storage/v1/b/([^/]+)/o", "listing"),
    ("GET", _OBJECT, "read"),
    ("DELETE", _OBJECT, "delete"),
    ("POST", _OBJECT + r"/rewriteTo/b/([^/]+)/o/([^/]+)", "rewrite"),
    ("POST", r"/upload/storage/v1/b/([^/]+)/o", "upload"),
    ("PUT", r"/upload/storage/v1/b/([^/]+)/o", "upload"),
]


@dataclasses.dataclass(frozen=True)
class Object:
    """What is stored under a name."""

    data: bytes
    generation: int

    def hashes(self) -> dict[str, str]:
        crc = google_crc32c.value(self.data).to_bytes(4, "big")
        md5 = hashlib.md5(self.data).digest()
        return {"crc32c": base64.b64encode(crc).decode(), "md5Hash": base64.b64encode(md5).decode()}


class Refusal(Exception):
    """An answer other than 200: its status and the service's words."""


class FakeGcs:
    """The service.

    Attributes:
      buckets: name → object's name → Object. closed, read_only: names of buckets with fewer rights.
      reads: names of the objects whose bytes were asked for.
    """

    def __init__(self, *buckets: str):
        self.buckets: dict[str, dict[str, Object]] = {name: {} for name in buckets}
        self.closed: set[str] = set()
        self.read_only: set[str] = set()
        self.reads: list[str] = []
        self.lock = threading.RLock()
        self.sessions: dict[str, tuple[str, dict[str, str], bytearray]] = {}
        self._numbers = itertools.count(1)

    def put(self, bucket: str, name: str, data: bytes) -> Object:
        """A new generation of an object."""
        with self.lock:
            self.buckets[bucket][name] = Object(data, next(self._numbers))
            return self.buckets[bucket][name]

    def objects(self, bucket: str, writing: bool = False) -> dict[str, Object]:
        """The table of a bucket that may be used."""
        if bucket not in self.buckets:
            raise Refusal(404, "The specified bucket does not exist.")
        if bucket in self.closed or (writing and bucket in self.read_only):
            raise Refusal(403, "someone@example.com does not have storage.objects access to the bucket.")
        return self.buckets[bucket]

    def expect(self, found: Object | None, query: dict[str, str]) -> None:
        """The preconditions of a request."""
        generation = found.generation if found else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            raise Refusal(412, "At least one of the pre-conditions you specified did not hold.")
        if query.get("ifGenerationNotMatch") == str(generation):
            raise Refusal(304, "")

    def existing(self, bucket: str, name: str, query: dict[str, str], writing: bool = False) -> Object:
        found = self.objects(bucket, writing).get(name)
        if found is None or query.get("generation", str(found.generation)) != str(found.generation):
            raise Refusal(404, f"No such object: {bucket}/{name}")
        self.expect(found, query)
        return found

    def new_session(self, bucket: str, query: dict[str, str]) -> str:
        key = f"session-{next(self._numbers)}"
        self.sessions[key] = (bucket, query, bytearray())
        return key


def resource(bucket: str, name: str, found: Object) -> dict[str, str]:
    """The service's description of an object."""
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{found.generation}",
        "bucket": bucket,
        "name": name,
        "size": str(len(found.data)),
        "generation": str(found.generation),
        "metageneration": "1",
        "contentType": "application/octet-stream",
        "storageClass": "STANDARD",
        "timeCreated": _TIME,
        "updated": _TIME,
        "timeStorageClassUpdated": _TIME,
        "etag": f"etag{found.generation}",
        **found.hashes(),
    }


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: in two, the second waits 40 ms for the first to be confirmed
    service: FakeGcs

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        body = self._body()
        for method, pattern, name in _ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, parts.path)):
                try:
                    with self.service.lock:
                        getattr(self, f"_{name}")(*map(unquote, match.groups()), query=query, body=body)
                except Refusal as refusal:
                    status, message = refusal.args
                    self._answer(status, {"error": {"code": status, "message": message}})
                return
        self._answer(501, {"error": {"code": 501, "message": f"{self.command} {self.path} is not known"}})

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, status: int, content: object = None, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        data = b"" if status in (204, 304) or content is None else data
        self.send_response(status)
        if not isinstance(content, bytes):
            self.send_header("Content-Type", "application/json; charset=UTF-8")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _bucket(self, bucket, query, body):
        self.service.objects(bucket)
        about = {"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "US"}
        self._answer(200, {**about, "storageClass": "STANDARD", "timeCreated": _TIME, "updated": _TIME})

    def _listing(self, bucket, query, body):
        found, prefix = self.service.objects(bucket), query.get("prefix", "")
        delimiter, after = query.get("delimiter"), query.get("pageToken", "")
        entries: dict[str, Object | None] = {}  # None: a prefix
        for name in sorted(found):
            if name.startswith(prefix):
                rest = name[len(prefix) :]
                cut = rest.find(delimiter) if delimiter else -1
                shown = name if cut < 0 else prefix + rest[: cut + len(delimiter)]
                entries[shown] = found[name] if cut < 0 else None
        names = [name for name in entries if name > after]
        page = names[: min(_PAGE, int(query.get("maxResults", _PAGE)))]
        answer: dict[str, object] = {"kind": "storage#objects"}
        items = [resource(bucket, name, entries[name]) for name in page if entries[name]]
        prefixes = [name for name in page if entries[name] is None]
        answer |= {"items": items} if items else {}
        answer |= {"prefixes": prefixes} if prefixes else {}
        answer |= {"nextPageToken": page[-1]} if len(page) < len(names) else {}
        self._answer(200, answer)

    def _read(self, bucket, name, query, body):
        found = self.service.existing(bucket, name, query)
        if query.get("alt") != "media":
            return self._answer(200, resource(bucket, name, found))
        self.service.reads.append(name)
        hashes = found.hashes()
        headers = {
            "Content-Type": "application/octet-stream",
            "x-goog-generation": str(found.generation),
            "x-goog-metageneration": "1",
            "x-goog-hash": f"crc32c={hashes['crc32c']},md5={hashes['md5Hash']}",
            "x-goog-stored-content-length": str(len(found.data)),
        }
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match:
            return self._answer(200, found.data, headers)
        size = len(found.data)
        first = int(match[1]) if match[1] else max(0, size - int(match[2]))
        last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
        if first >= size:
            raise Refusal(416, "The requested range cannot be satisfied.")
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return self._answer(206, found.data[first : last + 1], headers)

    def _delete(self, bucket, name, query, body):
        self.service.existing(bucket, name, query, writing=True)
        del self.service.buckets[bucket][name]
        self._answer(204)

    def _rewrite(self, bucket, name, to_bucket, to_name, query, body):
        source = {"generation": query["sourceGeneration"]} if "sourceGeneration" in query else {}
        found = self.service.existing(bucket, name, source)
        self.service.expect(self.service.objects(to_bucket, writing=True).get(to_name), query)
        copy = self.service.put(to_bucket, to_name, found.data)
        size = str(len(copy.data))
        answer = {"kind": "storage#rewriteResponse", "totalBytesRewritten": size, "objectSize": size}
        self._answer(200, {**answer, "done": True, "resource": resource(to_bucket, to_name, copy)})

    def _upload(self, bucket, query, body):
        kind = query.get("uploadType")
        if "upload_id" in query:
            return self._continue(query["upload_id"], body)
        if kind == "media":
            return self._store(bucket, query, body)
        if kind == "multipart":
            boundary = b"--" + self.headers.get_param("boundary").encode()
            end = b"\r\n" if body.startswith(boundary + b"\r\n") else b"\n"
            _, about, media = body.removesuffix(end).removesuffix(end + boundary + b"--").split(boundary, 2)
            named = query | {"name": json.loads(about.partition(2 * end)[2])["name"]}
            return self._store(bucket, named, media.partition(2 * end)[2])
        if kind == "resumable":
            key = self.service.new_session(bucket, query)
            address = f"http://{self.headers['Host']}{urlsplit(self.path).path}?upload_id={key}"
            return self._answer(200, b"", {"Location": address})
        raise Refusal(501, f"uploadType {kind} is not known")

    def _continue(self, key, body):
        """A piece of an upload; nothing is to be seen of the object before the last."""
        bucket, query, received = self.service.sessions[key]
        match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers["Content-Range"])
        if match[1] is not None and int(match[1]) != len(received):
            raise Refusal(503, "a piece is missing")
        received += body
        if match[2] != "*" and int(match[2]) == len(received):
            del self.service.sessions[key]
            return self._store(bucket, query, bytes(received))
        return self._answer(308, b"", {"Range": f"bytes=0-{len(received) - 1}"} if received else {})

    def _store(self, bucket, query, data):
        found = self.service.objects(bucket, writing=True)
        self.service.expect(found.get(query["name"]), query)
        self._answer(200, resource(bucket, query["name"], self.service.put(bucket, query["name"], data)))

    def log_message(self, *_: object) -> None:
        """Says nothing on the terminal."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up (gcsfs, when another answer is enough) is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(*buckets: str) -> Iterator[FakeGcs]:
    """A service with empty buckets; while entered, this process and those it starts find it."""
    service = FakeGcs(*buckets)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": service}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",  # TensorStore
        "GOOGLE_CLOUD_PROJECT": "project",
    }
    with mock.patch.dict(os.environ, environment):
        try:
            yield service
        finally:
            server.shutdown()
            server.server_close()
