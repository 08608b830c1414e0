"""Pushing to a hub that is a small server of the test: what arrives, what is asked first, and what is never told."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

import tiny
from depthcut.export.hub import PushError, check_push, push
from depthcut.types import InputError

TOKEN = "hf_aVerySecretToken"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for; `server.refusal` makes every answer an error."""

    def log_message(self, *_):
        """Requests are looked at, not printed."""

    def do_GET(self):
        self.answer({"sha": "0" * 40, "siblings": [], "id": "someone/smaller"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        self.server.paths.append(self.path)
        if self.server.refusal:
            self.answer({"error": "no"}, self.server.refusal)
        elif self.path.endswith("/repos/create"):
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.url}/someone/smaller"})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            self.answer({"commitUrl": f"{self.server.url}/someone/smaller/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer({})

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.refusal, server.created, server.files, server.tokens, server.paths = None, [], {}, set(), []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "smaller"
    (directory / "gguf").mkdir(parents=True)
    for name in ("README.md", "config.json", "model.safetensors", "gguf/model.gguf", "journal.jsonl", "plan.partial"):
        (directory / name).write_text(f"---\nlicense: mit\n---\n{name}" if name == "README.md" else name)
    return directory


def test_the_whole_directory_arrives_in_a_private_repository_without_what_only_a_run_needs(hub, folder):
    assert push(folder, "someone/smaller") == f"{hub.url}/someone/smaller"
    (created,) = hub.created
    assert created["visibility"] == "private"
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors", "gguf/model.gguf"}
    assert all(content == (folder / name).read_bytes() for name, content in hub.files.items())
    assert hub.tokens == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal_is_one_sentence_that_says_where_the_model_is_and_holds_no_token(hub, folder, capfd, status):
    hub.refusal = status
    with pytest.raises(PushError) as refused:
        push(folder, "someone/smaller")
    sentence = str(refused.value)
    assert sentence.startswith(f"{folder} could not be pushed to someone/smaller: ")
    assert str(status) in sentence
    assert f"`hf upload someone/smaller {folder}` tries again" in sentence
    assert "\n" not in sentence
    printed = capfd.readouterr()
    assert TOKEN not in sentence + printed.out + printed.err


def test_a_hub_that_is_not_there_is_told(hub, folder):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(PushError, match="could not be pushed to someone/smaller: "):
        push(folder, "someone/smaller")


def test_what_cannot_be_pushed_is_found_without_asking_the_hub(hub, monkeypatch, tmp_path):
    check_push("someone/smaller")
    with pytest.raises(InputError, match=r"'a/b/c' is no name of a repository on the hub; write USER/NAME"):
        check_push("a/b/c")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="without a token; log in with `hf auth login`, or set HF_TOKEN"):
        check_push("someone/smaller")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="while HF_HUB_OFFLINE is set"):
        check_push("someone/smaller")
    assert hub.paths == []


def test_a_run_pushes_what_it_wrote_and_only_where_asked(hub, tmp_path, monkeypatch, exit_code, capfd):
    tiny.reload_in_process(monkeypatch)
    model = tiny.save(tmp_path / "llama")
    words = "--remove 1 --unit block --method shortgpt --no-speed --calibration-samples 2 --calibration-length 16"
    words += " --evaluation-samples 2 --evaluation-length 16"

    def prune(output, *more):
        return exit_code("prune", model, "-o", output, *words.split(), *more)

    assert prune(tmp_path / "kept") == 0
    assert hub.paths == []
    assert prune(tmp_path / "out", "--push-to-hub", "someone/smaller") == 0
    assert {"config.json", "model.safetensors", "README.md", "plan.json", "report.html"} <= set(hub.files)
    assert hub.files["plan.json"] == (tmp_path / "out" / "plan.json").read_bytes()
    assert f"pushed to {hub.url}/someone/smaller" in capfd.readouterr().out

    hub.refusal = 403
    assert prune(tmp_path / "refused", "--push-to-hub", "someone/smaller") == 1
    assert (tmp_path / "refused" / "model.safetensors").is_file()
    printed = capfd.readouterr()
    assert "could not be pushed to someone/smaller" in printed.err
    assert TOKEN not in printed.out + printed.err + (tmp_path / "out" / "report.html").read_text()
