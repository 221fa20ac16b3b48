"""A small HTTP client on the standard library: sends exactly what a test says."""
import http.client
import json
import urllib.parse


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    @property
    def events(self):
        """The data of each event; comments are left out."""
        parts = self.body.decode().split("\n\n")
        assert parts[-1] == "", "the stream ends in the middle of an event"
        return [p[6:] for p in parts if p.startswith("data: ")]

    @property
    def chunks(self):
        events = self.events
        assert events[-1] == "[DONE]", events[-1]
        return [json.loads(e) for e in events[:-1]]


class Api:
    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.host, self.port, self.url = parts.hostname, parts.port, url

    def send(self, method, path, body=None, headers=None, timeout=60):
        c = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            c.request(method, path, body=body, headers=headers or {})
            r = c.getresponse()
            return Reply(r.status, r.headers, r.read())
        finally:
            c.close()

    def get(self, path, **headers):
        return self.send("GET", path, headers=headers)

    def post(self, path, body, **headers):
        raw = body if isinstance(body, (str, bytes)) else json.dumps(body)
        return self.send("POST", path, raw, {"Content-Type": "application/json", **headers})

    def chat(self, model, content, **fields):
        body = {"model": model, "messages": [{"role": "user", "content": content}], **fields}
        return self.post("/v1/chat/completions", body)

    def complete(self, model, prompt, **fields):
        return self.post("/v1/completions", {"model": model, "prompt": prompt, **fields})
