"""FAKE service: goes through a script of phases and answers as the true services do, or wrongly where the script says so.

    python3 service.py PORT     FAKE_SCRIPT="loading 2; log TEXT; downloading 100 1000 0; exit 3"
    python3 service.py probe    the healthcheck: prints what the script is at, exit status 0 once it is through

Steps: `PHASE SECONDS`, `downloading DONE TOTAL STALLED` (1 s), `log TEXT`, `error TEXT FIX TEXT` (for good), `exit STATUS`, `once` (in
later runs of the same container the script ends here), `answer KIND` (think, empty, silent, nan, score: a wrong answer).
"""

import json
import os
import pathlib
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STATE = pathlib.Path("/tmp/state.json")
RAN = pathlib.Path("/tmp/ran")
WRONG = set()


def run_script(script):
    for step in filter(None, map(str.strip, script.split(";"))):
        word, _, rest = step.partition(" ")
        if word == "once":
            if RAN.exists():
                break
            RAN.touch()
        elif word == "exit":
            os._exit(int(rest))
        elif word == "log":
            sys.stdout.write(f"{rest}\n")
            sys.stdout.flush()
        elif word == "error":
            write(status="error", phase=word, error=rest.replace(" FIX ", "; fix: "))
            return
        elif word == "answer":
            WRONG.add(rest)
        elif word == "downloading":
            done, total, stalled = map(int, rest.split())
            write(status="loading", phase="downloading", done_bytes=done, total_bytes=total, stalled_seconds=stalled)
            time.sleep(1)
        else:
            write(status="loading", phase=word)
            time.sleep(float(rest))
    write(status="ok", phase="ready")


def write(**state):
    new = STATE.with_suffix(".new")
    new.write_text(json.dumps(state))
    os.replace(new, STATE)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        ready = json.loads(STATE.read_text())["status"] == "ok"
        if self.path == "/metrics":
            self.answer(200, b'vllm:num_requests_waiting{engine="0"} 3.0\n')
        elif self.path == "/version" and not self.let_in():
            self.answer(401, b'{"error": {"message": "no key"}}')
        elif self.path == "/v1/models":
            self.answer(200, json.dumps({"data": [{"id": os.environ.get("QMD_MODEL", "")}]}).encode())
        else:
            self.answer(200 if ready else 503, STATE.read_bytes())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.let_in():
            return self.answer(401, b'{"error": {"message": "no key"}}')
        if "silent" in WRONG:
            time.sleep(30)
        text = "" if "empty" in WRONG else "<think> hm" if "think" in WRONG else "Paris."
        if self.path == "/v1/embeddings":
            data = {"data": [{"embedding": [float("nan") if "nan" in WRONG else 0.6, 0.8]}]}
        elif self.path == "/v1/rerank":
            score = 7.5 if "score" in WRONG else 0.9
            data = {"results": [{"index": 0, "relevance_score": score}, {"index": 1, "relevance_score": 0.1}][: len(body["documents"])]}
        elif self.path == "/v1/completions":
            data = {"choices": [{"text": text}]}
        else:
            data = {"choices": [{"message": {"content": text}}]}
        return self.answer(200, json.dumps(data).encode())

    def let_in(self):
        return not os.environ.get("API_KEYS_FILE") or self.headers.get("authorization") == "Bearer the-key"

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


if __name__ == "__main__":
    if sys.argv[1] == "probe":
        sys.stdout.write(STATE.read_text())
        sys.exit(json.loads(STATE.read_text())["status"] != "ok")
    write(status="loading", phase="starting")
    server = ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run_script(os.environ["FAKE_SCRIPT"])
    threading.Event().wait()
