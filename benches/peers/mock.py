"""What the peers with mock backends share: an HTTP server on loopback that can go away and come back, a queue of jobs, and a
peer that is started and offered jobs through them.

A mock backend answers as its model's public protocol says and keeps what it is told. It decides nothing by itself: a job
has the status that the agent gave it, or none.
"""

import json
import re
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from system import Job, System, free_port


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """An agent that was killed leaves connections behind; that is no fault."""


class Mock:
    """Jobs that wait, jobs that are out, and the server that tells of them."""

    def __init__(self):
        self.port = free_port()
        self.lock = threading.Condition()
        self.waiting = []
        self.out = {}
        self.last_id = 100
        # Requests in all, and those for a job.
        self.requests = 0
        self.asked = 0
        self.server = None

    def offer(self, script):
        with self.lock:
            self.last_id += 1
            job = Job(self.last_id, script)
            job.offered = time.monotonic()
            self.out[job.number] = job
            self.waiting.append(job)
            self.lock.notify_all()
        return job

    def hand_out(self, hold=0.0):
        """The next job that waits, or None after `hold` seconds."""
        deadline = time.monotonic() + hold
        with self.lock:
            self.asked += 1
            while not self.waiting:
                left = deadline - time.monotonic()
                if left <= 0 or self.server is None:
                    return None
                self.lock.wait(left)
            job = self.waiting.pop(0)
            job.picked = job.picked or time.monotonic()
            job.handed_out += 1
            return job

    def up(self):
        mock = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # A small answer in a small packet would wait for the other side's acknowledgement.
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def serve(self):
                length = int(self.headers.get("Content-Length") or 0)
                if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                    body = b""
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(length) if length else b""
                mock.requests += 1
                if mock.server is None:
                    self.close_connection = True
                    return
                status, answer, headers = mock.answer(self.command, self.path, self.headers, body)
                if mock.server is None:  # It went away meanwhile.
                    self.close_connection = True
                    return
                data = json.dumps(answer).encode() if answer is not None else b""
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

        self.server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def down(self):
        """Nobody listens any more, and what is open is not answered."""
        server, self.server = self.server, None
        with self.lock:
            self.lock.notify_all()
        if server:
            server.shutdown()
            server.server_close()

    def answer(self, method, path, headers, body):
        """(status, document or None, headers)"""
        raise NotImplementedError


class Mocked(System):
    """A peer whose backend is a mock. It is ready when it has asked for jobs as often as it does once it is up."""

    title = ""
    # What `--version` of its program says the version behind.
    version_is = r""
    asks_first = 1
    backend_kind = Mock

    def __init__(self, folder, programs):
        super().__init__(folder, programs)
        self.backend = self.backend_kind()

    def version(self):
        said = subprocess.run([self.program(), "--version"], capture_output=True, text=True).stdout
        found = re.search(self.version_is, said)
        return f"{self.title} {found.group(1) if found else said.strip()}"

    def start(self):
        if not self.backend.server:
            self.backend.up()
        self.before = self.backend.asked
        super().start()

    def ready(self):
        return self.backend.asked >= self.before + self.asks_first

    def offer(self, script, **_):
        return self.backend.offer(script)

    def stop(self):
        super().stop()
        self.backend.down()
