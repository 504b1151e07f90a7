"""Files over HTTP: validation, listing, expiry and uploads in parts."""

from __future__ import annotations

import gzip
import io
import json
import time
from datetime import date
from functools import partial
from pathlib import Path

import httpx
import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from ray_jobs.data.file_check import check_file
from ray_jobs.data.row_validation import check_rows
from ray_jobs.models import bases
from ray_jobs.registry.catalogue import CatalogueEntry
from ray_jobs.storage import Workspace
from ray_jobs.tasks.base import PromptSetting
from serving.files.stored_files import Files
from serving.http.ids import new_id
from tests.models.tiny_models import save_causal
from tests.serving.api_calls import upload
from tests.serving.api_harness import rows
from tests.tasks.chat.families import templates, tokenizer_of
from tests.tasks.chat.shapes import answer, user


def test_every_invalid_line_is_reported_in_one_error_and_nothing_is_stored(
    http: httpx.Client, store: Workspace
) -> None:
    good = rows(1).decode().strip()
    lines = [good, "not JSON", '{"messages": []}', good, '{"messages": [{"role": "king", "content": "x"}]}', "[1]"]
    before = sorted(info.key for info in store.list())
    answer = upload(http, "\n".join(lines).encode())
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_rows", "file")
    assert [finding["line"] for finding in error["details"]] == [2, 3, 5, 6]
    assert "role is 'king'" in error["details"][2]["reason"]
    assert "line 5" in error["message"]
    assert sorted(info.key for info in store.list()) == before


def test_the_report_counts_tokens_duplicates_and_long_rows(
    store: Workspace, http: httpx.Client, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    bases.add(store, str(save_causal(directory)), "counting")
    thought = {"role": "assistant", "content": "yes", "reasoning_content": "since it is so"}
    content = rows(3) + rows(2) + json.dumps({"prompt": "word " * 400, "completion": "yes"}).encode() + b"\n"
    content += json.dumps({"messages": [{"role": "user", "content": "is it?"}, thought]}).encode()
    (tmp_path / "rows.jsonl").write_bytes(content)
    files = Files(store, partial(check_rows, store))
    record = files.create("a", "k", tmp_path / "rows.jsonl", filename="r.jsonl", purpose="fine-tune", model="counting")
    report = record.report
    assert report is not None
    assert (report.rows, report.duplicates, report.task, report.model) == (7, 2, "chat", "counting")
    assert report.too_long == (6,)  # the tiny model has 256 tokens
    assert (report.examples, report.without_reasoning) == (7, (7,))
    assert report.tokens is not None
    assert report.supervised_tokens is not None
    assert report.longest_tokens is not None
    assert report.tokens > report.longest_tokens > 256
    assert 0 < report.supervised_tokens < report.tokens


def test_classification_rows_are_detected_by_columns_and_preference_rows_are_refused(http: httpx.Client) -> None:
    lines = b"".join(json.dumps({"text": f"t{i}", "label": "ab"[i % 2]}).encode() + b"\n" for i in range(12))
    assert upload(http, lines).json()["rows"]["task"] == "text_classification"
    assert upload(http, b"text,label\nhello,a\nbye,b\n", "rows.csv").json()["rows"]["rows"] == 2
    row = {"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}
    answer = upload(http, json.dumps(row).encode())
    assert answer.status_code == 400
    assert "preferences" in answer.json()["error"]["message"]


def test_the_answer_counts_personal_data_and_repeats_none(http: httpx.Client) -> None:
    lines = [
        {"prompt": "連絡先は？", "completion": "ｔａｒｏ＠ｅｘａｍｐｌｅ．ｃｏ．ｊｐ、090-1234-5678"},
        {"prompt": "mail?", "completion": "jane@example.com"},
        {"prompt": "order?", "completion": "1234567"},
    ]
    answer = upload(http, "\n".join(json.dumps(line) for line in lines).encode())
    assert answer.status_code == 200
    report = http.get(f"/files/{answer.json()['id']}").json()["rows"]
    assert report == answer.json()["rows"]
    assert report["personal_data"] == {"email": 2, "phone": 1}
    assert "2 row(s) seem to hold personal data or secrets" in report["warnings"][0]
    assert not {value for value in ("taro", "jane", "example.c", "1234") if value in json.dumps(report)}
    assert upload(http, rows(3)).json()["rows"]["personal_data"] == {}


def test_japanese_rows_and_names(http: httpx.Client) -> None:
    pair = {"prompt": "返品はできますか。", "completion": "はい、三十日以内であればできます。"}
    content = "\n".join(json.dumps(pair | {"prompt": f"{pair['prompt']}{i}"}, ensure_ascii=False) for i in range(10))
    file = upload(http, content.encode(), "質問.jsonl").json()
    assert (file["filename"], file["rows"]["rows"]) == ("質問.jsonl", 10)
    assert http.get(f"/files/{file['id']}/content").content == content.encode()
    converted = upload(http, content.encode("shift_jis")).json()["rows"]
    assert converted["rows"] == 10
    assert "CP932" in converted["warnings"][0]


def test_files_are_listed_by_purpose_paged_and_deleted(http: httpx.Client) -> None:
    ids = [upload(http, rows(1, start=i)).json()["id"] for i in range(3)]
    other = http.post("/files", files={"file": ("x.bin", b"\x00\x01")}, data={"purpose": "user_data"}).json()["id"]
    listed = http.get("/files", params={"purpose": "fine-tune", "limit": 2}).json()
    assert [file["id"] for file in listed["data"]] == [ids[2], ids[1]]
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (True, ids[2], ids[1])
    rest = http.get("/files", params={"purpose": "fine-tune", "after": listed["last_id"]}).json()
    assert [file["id"] for file in rest["data"]] == [ids[0]]
    assert http.get(f"/files/{other}/content").content == b"\x00\x01"
    assert http.delete(f"/files/{ids[0]}").json() == {"id": ids[0], "object": "file", "deleted": True}
    assert http.get(f"/files/{ids[0]}").status_code == 404


def test_expired_files_and_contents_without_a_record_are_swept(store: Workspace, http: httpx.Client) -> None:
    file = upload(http, rows(1), **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}).json()
    assert file["expires_at"] == file["created_at"] + 3600
    kept = upload(http, rows(1)).json()["id"]
    orphan = new_id("file", now_s=time.time() - 100_000)
    store.put(f"files/default/{orphan}/rows.jsonl", b"x")
    files = Files(store, partial(check_rows, store))
    files.sweep(time.time())
    assert not store.exists(f"files/default/{orphan}/rows.jsonl")
    assert http.get(f"/files/{file['id']}").status_code == 200
    files.sweep(time.time() + 3601)
    assert [info.key for info in store.list("files")] == [f"files/default/{kept}/rows.jsonl"]


@pytest.mark.parametrize("seconds", ["3599", "2592001", "soon"])
def test_an_expiry_out_of_range_is_refused(http: httpx.Client, seconds: str) -> None:
    answer = upload(http, rows(1), **{"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds})
    assert answer.status_code == 400
    assert "seconds" in answer.json()["error"]["param"]


def test_a_file_uploaded_in_parts(http: httpx.Client) -> None:
    content = rows(20)
    described = {"filename": "big.jsonl", "purpose": "fine-tune", "bytes": len(content), "mime_type": "text/jsonl"}
    made = http.post("/uploads", json=described).json()
    pieces = [content[:100], content[100:500], content[500:]]
    parts = [http.post(f"/uploads/{made['id']}/parts", files={"data": piece}).json()["id"] for piece in pieces]
    wrong = http.post(f"/uploads/{made['id']}/complete", json={"part_ids": parts[:2]})
    assert wrong.status_code == 400
    assert "declared" in wrong.json()["error"]["message"]
    md5 = {"part_ids": parts, "md5": "0" * 32}
    assert http.post(f"/uploads/{made['id']}/complete", json=md5).json()["error"]["param"] == "md5"
    done = http.post(f"/uploads/{made['id']}/complete", json={"part_ids": parts}).json()
    assert done["status"] == "completed"
    assert http.get(f"/files/{done['file']['id']}/content").content == content
    assert http.post(f"/uploads/{made['id']}/cancel").json()["error"]["code"] == "upload_not_pending"


def test_the_report_has_the_switches_and_the_date_of_the_prompts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [user(), answer(reasoning_content="They ask.")]}) + "\n")
    base = CatalogueEntry(name="b", digest="d", source="s", architecture="LlamaForCausalLM", tasks=("chat",))
    reports = {}
    for family in ("qwen3_5_nothink", "llama3_2"):
        tokenizer = tokenizer_of(family, templates()[family], tmp_path / family)
        reports[family] = check_file(path, "rows.jsonl", "chat", tokenizer, base, today=date(2026, 7, 26))
    thinking, dated = reports["qwen3_5_nothink"], reports["llama3_2"]
    assert thinking.prompts == PromptSetting(switches={"enable_thinking": True})
    assert thinking.without_reasoning == ()
    assert dated.prompts == PromptSetting(today=date(2026, 7, 26))
    assert dated.warnings == ("the template writes today's date: 2026-07-26 here, and the day of each request",)
    assert check_file(path, "rows.jsonl", "chat").prompts is None


@pytest.mark.parametrize("ending", [".json", ".xlsx", ".parquet", ".jsonl.gz", ".csv.zst"])
def test_rows_in_every_format_are_validated_and_kept_as_sent(http: httpx.Client, ending: str) -> None:
    pairs = [{"prompt": f"返品はできますか。{i}", "completion": "はい、できます。"} for i in range(4)]
    target, lines = io.BytesIO(), "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs).encode()
    if ending == ".xlsx":
        book = openpyxl.Workbook()
        for values in (list(pairs[0]), *(list(pair.values()) for pair in pairs)):
            book.worksheets[0].append(values)
        book.save(target)
    elif ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs), target)
    elif ending == ".csv.zst":
        table = "".join(",".join(values) + "\n" for values in (pairs[0], *(pair.values() for pair in pairs)))
        target.write(pyarrow.compress(table.encode(), codec="zstd", asbytes=True))
    else:
        target.write(json.dumps(pairs).encode() if ending == ".json" else gzip.compress(lines))
    file = upload(http, target.getvalue(), f"rows{ending}").json()
    assert (file["rows"]["task"], file["rows"]["rows"]) == ("chat", 4)
    assert http.get(f"/files/{file['id']}/content").content == target.getvalue()


@pytest.mark.parametrize("name", ["rows.zip", "rows.xls", "rows.gz", "rows.txt.gz", "rows.parquet.zst"])
def test_what_cannot_be_rows_is_refused_by_its_name(http: httpx.Client, name: str) -> None:
    error = upload(http, b"x", name).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_file", "file")


def test_columns_with_other_names_are_named_at_the_upload(http: httpx.Client) -> None:
    content = "本文,評価\r\n配送がとても遅いです,悪い\r\nまた買いたいと思います,良い\r\n".encode("cp932")

    def send(columns: str) -> httpx.Response:
        form = {"purpose": "fine-tune", "columns": columns}
        return http.post("/files", files={"file": ("rows.csv", content)}, data=form)

    answer = send('{"text": "本文", "label": "評価"}')
    assert answer.status_code == 200, answer.text
    report = answer.json()["rows"]
    assert (report["task"], report["rows"]) == ("text_classification", 2)
    assert report["columns"] == {"text": "本文", "label": "評価"}
    for wrong in ("[]", "{", '{"text": 1}', '{"text": ""}'):
        error = send(wrong).json()["error"]
        assert (error["param"], "JSON object" in error["message"]) == ("columns", True)
    assert "no row has a column '評'" in send('{"text": "本文", "label": "評"}').json()["error"]["message"]
    assert "has no column 'txt'" in json.dumps(send('{"txt": "本文", "label": "評価"}').json(), ensure_ascii=False)
