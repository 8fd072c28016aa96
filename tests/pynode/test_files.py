"""Files over HTTP: as the document has them, and downloads by token and by link."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bedplate import compose
from bedplate.kernel.ids import new_id
from bedplate.modules.files.public import Files
from tests import world as worlds
from tests.factories import Account
from tests.fakes.s3_server import S3Server
from tests.modules.files import pdfs
from tests.security.crowd import at_once, on_both_engines, statuses
from tests.world import World

NOT_FOUND = {"error": "Not Found", "message": "Resource not found", "code": "RESOURCE_NOT_FOUND"}
MAXIMUM = 50 * 2**20
IN_ONE_PROCESS = pytest.mark.parametrize("world", ["sqlite"], indirect=True)

# What strangers upload, and as what it must not come back.
ACTIVE = {
    "page.html": b"<!DOCTYPE html><html><script>alert(1)</script></html>",
    "image.svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
    "image.png": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
    "page.pdf": b"<html><body onload=alert(1)>",
    "data.csv": b"  <script>alert(1)</script>",
    "photo.gif": b"GIF89a/*<script>alert(1)</script>*/=0",
    "utf16.txt": "<html><script>alert(1)</script>".encode("utf-16"),
    "feed.xml": b'<?xml version="1.0"?><?xml-stylesheet href="x.xsl"?><x/>',
    "app.js": b"alert(document.cookie)",
    "sheet.css": b"body { background: url(//evil.example.com) }",
}
NAMES = [
    "../../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "/etc/shadow",
    "nul\\0.txt",
    "a\u202egpj.exe",
    "CON",
    "x" * 300,
    "ü" * 200 + ".txt",
    ".htaccess",
    "a;b=c.txt",
    "%2e%2e%2fpasswd",
    "….txt",
]


def sent(content: bytes = b"Cats sleep.", filename: str = "cats.txt") -> dict[str, Any]:
    return {"file": (filename, content, "text/html")}


async def upload(account: Account, content: bytes = b"Cats sleep.", filename: str = "cats.txt") -> dict[str, Any]:
    answer = await account.client.post("/api/files/upload", files=sent(content, filename))
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_file_goes_in_and_comes_out(world: World) -> None:
    account = await world.user("pynode")
    content = bytes(range(256)) * 5000
    file = await upload(account, content, "Größe.bin")
    assert file == {
        "id": file["id"],
        "filename": "Größe.bin",
        "size": len(content),
        "mime_type": "application/octet-stream",
        "url": file["url"],
        "created_at": file["created_at"],
    }
    assert re.fullmatch(r"file-[0-9a-f-]{36}", file["id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", file["created_at"])
    assert (await account.client.get(f"/api/files/{file['id']}")).json() == file
    listed = (await account.client.get("/api/files")).json()
    assert listed == {"files": [file], "total": 1, "limit": 50, "offset": 0}
    answer = await account.client.get(f"/api/files/{file['id']}/download")
    assert (answer.status_code, answer.content) == (200, content)
    assert (
        answer.headers["content-disposition"]
        == "attachment; filename=\"Gr__e.bin\"; filename*=UTF-8''Gr%C3%B6%C3%9Fe.bin"
    )
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
    gone = await account.client.delete(f"/api/files/{file['id']}")
    assert (gone.status_code, gone.json()) == (200, {"message": "File deleted successfully"})
    for path in ("", "/download"):
        answer = await account.client.get(f"/api/files/{file['id']}{path}")
        assert (answer.status_code, answer.json()) == (404, NOT_FOUND)


async def test_the_url_opens_the_file_without_a_token_until_it_expires(world: World) -> None:
    file = await upload(await world.user("pynode"))
    stranger = world.client("pynode")
    assert file["url"].startswith(f"http://testserver/files/{file['id']}?expires=")
    answer = await stranger.get(file["url"])
    assert (answer.status_code, answer.content) == (200, b"Cats sleep.")
    world.clock.advance(3600 + 300)
    answer = await stranger.get(file["url"])
    assert (answer.status_code, answer.json()["code"]) == (403, "INSUFFICIENT_PERMISSIONS")


async def test_a_changed_url_opens_nothing(world: World) -> None:
    account = await world.user("pynode")
    one, two = await upload(account), await upload(account, b"another")
    stranger = world.client("pynode")
    url = one["url"]
    expires, signature = re.findall(r"expires=(\d+)&signature=(\w+)", url)[0]
    for changed in (
        url.replace(one["id"], two["id"]),
        url.replace(one["id"], f"file-{new_id()}"),
        url.replace(expires, str(int(expires) + 1)),
        url.replace(signature, "0" * 64),
        url.replace(signature, ""),
        url.replace(expires, "never"),
        f"{url}&signature={'0' * 64}",
    ):
        answer = await stranger.get(changed)
        assert answer.status_code == 403, changed
    for missing in (url.partition("?")[0], url.partition("&")[0]):
        assert (await stranger.get(missing)).status_code == 400
    await account.client.delete(f"/api/files/{one['id']}")
    answer = await stranger.get(url)
    assert (answer.status_code, answer.json()) == (404, NOT_FOUND)


@pytest.mark.parametrize("door", ["token", "link"])
async def test_downloads_know_ranges_and_validators(world: World, door: str) -> None:
    account = await world.user("pynode")
    file = await upload(account, b"0123456789")
    client = account.client if door == "token" else world.client("pynode")
    url = f"/api/files/{file['id']}/download" if door == "token" else file["url"]
    whole = await client.get(url)
    tag = whole.headers["etag"]
    part = await client.get(url, headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    head = await client.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")
    assert (await client.get(url, headers={"if-none-match": tag})).status_code == 304
    assert (await client.get(url, headers={"range": "bytes=2-4", "if-range": '"other"'})).content == b"0123456789"
    beyond = await client.get(url, headers={"range": "bytes=10-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */10")
    assert beyond.json()["code"] == "RANGE_NOT_SATISFIABLE"


@on_both_engines
async def test_another_users_file_is_no_other_than_one_that_is_not_there(world: World) -> None:
    mine, stranger = await world.user("pynode"), await world.user("pynode")
    file = await upload(mine)
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/download"), ("HEAD", "/download")):
        foreign = await stranger.client.request(method, f"/api/files/{file['id']}{path}")
        unknown = await stranger.client.request(method, f"/api/files/file-{new_id()}{path}")
        malformed = await stranger.client.request(method, f"/api/files/nothing{path}")
        seen = [(each.status_code, each.content, set(each.headers)) for each in (foreign, unknown, malformed)]
        assert seen[0] == seen[1] == seen[2]
        assert foreign.status_code == 404
    assert (await stranger.client.get("/api/files")).json()["total"] == 0
    assert (await mine.client.get(f"/api/files/{file['id']}/download")).content == b"Cats sleep."


@pytest.mark.parametrize("name", ACTIVE)
@IN_ONE_PROCESS
async def test_nothing_that_a_browser_runs_is_sent_as_that(world: World, name: str) -> None:
    account = await world.user("pynode")
    file = await upload(account, ACTIVE[name], name)
    for answer in (
        await account.client.get(f"/api/files/{file['id']}/download"),
        await account.client.get(file["url"]),
    ):
        assert answer.content == ACTIVE[name]
        assert not re.search("html|svg|xml|script|css", answer.headers["content-type"])
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("name", NAMES)
@IN_ONE_PROCESS
async def test_no_name_leads_anywhere(world: World, name: str) -> None:
    account = await world.user("pynode")
    file = await upload(account, b"x", name)
    assert not set(file["filename"]) & set("/\\\0\u202e")
    assert 0 < len(file["filename"].encode()) <= 255
    root = world.settings.data / "files" / "users" / account.id / "uploads"
    assert [path.name for path in children(root)] == [file["id"].removeprefix("file-")]
    assert (await account.client.get(f"/api/files/{file['id']}/download")).content == b"x"


def children(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@IN_ONE_PROCESS
async def test_the_type_that_a_client_says_is_not_believed(world: World) -> None:
    account = await world.user("pynode")
    for content, kind in (
        (b"text", "text/plain"),
        (pdfs.pdf("x"), "application/pdf"),
        (bytes(9), "application/octet-stream"),
    ):
        assert (await upload(account, content, "photo.png"))["mime_type"] == kind


@IN_ONE_PROCESS
async def test_a_file_may_have_fifty_mebibytes_and_no_byte_more(world: World) -> None:
    account = await world.user("pynode")
    assert (await upload(account, bytes(MAXIMUM)))["size"] == MAXIMUM
    for size in (MAXIMUM + 1, MAXIMUM + 2_000_000):  # found while it comes, and told by its length
        answer = await account.client.post("/api/files/upload", files=sent(bytes(size)))
        assert answer.status_code == 413
        assert answer.json() == {
            "error": "Payload Too Large",
            "message": f"File is larger than {MAXIMUM} bytes",
            "code": "FILE_TOO_LARGE",
        }
    assert (await account.client.get("/api/files")).json()["total"] == 1


@IN_ONE_PROCESS
async def test_other_requests_are_not_larger_than_before(world: World) -> None:
    account = await world.user("pynode")
    answer = await account.client.post("/api/chat", json={"message": "x" * 2_000_000})
    assert (answer.status_code, answer.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")


@pytest.fixture
async def small(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[World]:
    """Where a user may keep 10,000 bytes."""
    limits = {"storage_quota_bytes": 10_000, "rate_limit_enabled": False}
    async with worlds.embedded(tmp_path, sqlite_template, **limits) as world:
        yield world


async def test_the_quota_is_exact_under_parallel_uploads(small: World) -> None:
    account = await small.user("pynode")
    answers = await at_once(lambda _: account.client.post("/api/files/upload", files=sent(bytes(1000))), 20)
    assert statuses(answers) == {201: 10, 403: 10}
    refused = next(answer for answer in answers if answer.status_code == 403)
    assert refused.json()["code"] == "STORAGE_QUOTA_EXCEEDED"
    page = (await account.client.get("/api/files")).json()
    assert (page["total"], sum(file["size"] for file in page["files"])) == (10, 10_000)
    await account.client.delete(f"/api/files/{page['files'][0]['id']}")
    assert (await upload(account, bytes(1000)))["size"] == 1000


@IN_ONE_PROCESS
@pytest.mark.parametrize("wanted", ["limit=0", "limit=101", "limit=x", "offset=-1", "offset=99999999999999999999"])
async def test_pages_are_bounded(world: World, wanted: str) -> None:
    account = await world.user("pynode")
    answer = await account.client.get(f"/api/files?{wanted}")
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETERS")
    assert answer.json()["details"]["field"] == wanted.partition("=")[0]


@IN_ONE_PROCESS
async def test_where_links_begin_can_be_set(tmp_path: Path, sqlite_template: Path, world: World) -> None:
    (tmp_path / "other").mkdir()
    public = {"storage_public_url": "https://storage.example.com/", "rate_limit_enabled": False}
    async with worlds.embedded(tmp_path / "other", sqlite_template, **public) as elsewhere:
        file = await upload(await elsewhere.user("pynode"))
        assert file["url"].startswith(f"https://storage.example.com/files/{file['id']}?")
        path = file["url"].removeprefix("https://storage.example.com")
        assert (await elsewhere.client("pynode").get(path)).content == b"Cats sleep."


@IN_ONE_PROCESS
async def test_a_file_that_is_still_being_read_is_said_to_be(world: World) -> None:
    account = await world.user("pynode")
    file = await upload(account, pdfs.laborious(), "long.pdf")
    question = {"message": "What is in it?", "file_ids": [file["id"]]}
    answer = await account.client.post("/api/chat", json=question)
    assert (answer.status_code, answer.json()["code"]) == (503, "TEXT_NOT_READY")
    assert answer.json()["retry_after"] == int(answer.headers["retry-after"]) == 2


@IN_ONE_PROCESS
async def test_links_lead_through_the_front_door_where_there_is_one(world: World) -> None:
    account = await world.user("pynode")
    transport = httpx2.ASGITransport(app=compose.application(None, world.front), client=("127.0.0.1", 50000))
    async with httpx2.AsyncClient(transport=transport, base_url="http://all.example.com") as client:
        headers = {"Authorization": f"Bearer {account.access_token}"}
        large = sent(bytes(2_000_000))
        answer = await client.post("/pynode/api/files/upload", files=large, headers=headers)
        assert answer.status_code == 201, answer.text
        url = answer.json()["url"]
        assert url.startswith("http://all.example.com/pynode/files/file-")
        assert (await client.get(url)).content == bytes(2_000_000)


async def test_files_can_be_kept_on_an_s3_server(tmp_path: Path, sqlite_template: Path, s3: S3Server) -> None:
    settings = {"storage_url": s3.url, "storage_access_key": "key", "storage_secret_key": "secret"}
    async with worlds.embedded(tmp_path, sqlite_template, rate_limit_enabled=False, **settings) as world:
        account = await world.user("pynode")
        content = bytes(range(256)) * 50_000
        file = await upload(account, content)
        assert s3.keys() == [f"users/{account.id}/uploads/{file['id'].removeprefix('file-')}"]
        url = f"/api/files/{file['id']}/download"
        assert (await account.client.get(url)).content == content
        assert (await account.client.get(url, headers={"range": "bytes=-300"})).content == content[-300:]
        assert (await account.client.get("/ready")).json()["services"]["storage"] == "connected"
        await account.client.delete(f"/api/files/{file['id']}")
        await world.deliver()
        assert s3.keys() == []
        with S3Server() as other:
            gone = {**settings, "storage_url": other.url}
        (tmp_path / "away").mkdir()
        async with worlds.embedded(tmp_path / "away", sqlite_template, rate_limit_enabled=False, **gone) as away:
            account = await away.user("pynode")
            answer = await account.client.post("/api/files/upload", files=sent())
            assert (answer.status_code, answer.json()["code"]) == (503, "SERVICE_UNAVAILABLE")
            ready = await account.client.get("/ready")
            assert (ready.status_code, ready.json()["services"]["storage"]) == (503, "disconnected")
            assert (await account.client.get("/api/files")).json()["total"] == 0


@IN_ONE_PROCESS
async def test_a_file_whose_bytes_are_lost_is_not_found(world: World) -> None:
    account = await world.user("pynode")
    file = await upload(account)
    found = await world.runtime.get(Files).find_file(file["id"])
    assert found is not None
    await world.runtime.blobs.delete(found.blob)
    answer = await account.client.get(f"/api/files/{file['id']}/download")
    assert (answer.status_code, answer.json()) == (404, NOT_FOUND)


@IN_ONE_PROCESS
async def test_a_form_without_a_file_is_told_so(world: World) -> None:
    account = await world.user("pynode")
    answers = [
        await account.client.post("/api/files/upload"),
        await account.client.post("/api/files/upload", json={"file": "x"}),
        await account.client.post("/api/files/upload", data={"file": "x"}),
        await account.client.post("/api/files/upload", files={"other": ("a.txt", b"x")}),
        await account.client.post("/api/files/upload", files={"file": (None, b"x")}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETERS")
        assert answer.json()["details"]["field"] == "file"


@on_both_engines
async def test_an_upload_that_is_cut_off_leaves_nothing(world: World) -> None:
    account = await world.user("pynode")

    async def cut() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(500_000)

    kind = {"content-type": "multipart/form-data; boundary=b"}
    answer = await account.client.post("/api/files/upload", content=cut(), headers=kind)
    assert answer.status_code == 400
    await world.deliver()
    assert (await account.client.get("/api/files")).json()["total"] == 0
    assert [path for path in everything_in(world.settings.data / "files") if path.is_file()] == []


def everything_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


@IN_ONE_PROCESS
async def test_many_upload_and_download_at_once(world: World) -> None:
    account = await world.user("pynode")

    async def there_and_back(number: int) -> bool:
        content = bytes([number]) * (100_000 + number)
        file = await upload(account, content, f"{number}.bin")
        answer: httpx2.Response = await account.client.get(f"/api/files/{file['id']}/download")
        return answer.content == content

    async with asyncio.timeout(30):
        assert all(await at_once(there_and_back, 20))
