"""The Messages API: enough for the real Claude Code, which does what DIR/script.json says.

It keeps no state about conversations: which turn comes next is read from the request itself (how many answers of the
assistant it already holds), so a restarted client, or a restarted world, goes on where it was.
"""

import hashlib
import json
import os
import re
import threading
import time
import uuid

import netlog
import web

DEFAULT_SCRIPT = [{"text": "Nothing to do."}]
SECRET = {"authorization", "x-api-key"}


class Messages:
    def __init__(self, directory, log):
        self._path = os.path.join(directory, "script.json")
        self._log = log
        self._lock = threading.Lock()
        self._faults = {}
        if not os.path.exists(self._path):
            with open(self._path, "w", encoding="utf-8") as file:
                json.dump(DEFAULT_SCRIPT, file)

    def answer(self, request):
        if request.path == "/v1/messages/count_tokens":
            return self._logged(request, web.Response.json(200, {"input_tokens": 100}))
        if request.path == "/v1/messages" and request.method == "POST":
            return self._message(request)
        return self._logged(request, self._other(request))

    def _other(self, request):
        """What else Claude Code asks at its start; a quick plain answer keeps it from waiting."""
        if request.path == "/api/hello":
            return web.Response.json(200, {"message": "hello"})
        if request.path == "/api/oauth/profile":
            return web.Response.json(200, {
                "account": {"uuid": str(uuid.UUID(int=1)), "email": "world@ok.test", "display_name": "World",
                            "full_name": "World", "has_claude_max": True, "has_claude_pro": False},
                "organization": {"uuid": str(uuid.UUID(int=2)), "name": "World", "organization_type": "claude_max",
                                 "rate_limit_tier": "default_claude_max_20x"}})
        return error(404, "not_found_error", "Not Found")

    def _logged(self, request, response, **more):
        headers = [(k, credential(v) if k.lower() in SECRET else v) for k, v in request.headers]
        hello = request.connection.hello
        self._log.write("api", service="anthropic", **request.connection.ends, tls=hello is not None,
                        sni=hello and hello["sni"], host=request.raw_host, method=request.method,
                        target=request.target, headers=headers, body_size=len(request.body), status=response.status,
                        **more)
        return response

    def _message(self, request):
        try:
            body = json.loads(request.body)
        except ValueError:
            return self._logged(request, error(400, "invalid_request_error", "not JSON"))
        messages = body.get("messages", [])
        tools = [tool.get("name") for tool in body.get("tools") or []]
        main = "Bash" in tools
        at = sum(1 for message in messages if message.get("role") == "assistant")
        turns = self._turns(messages)
        turn = (turns[at] if at < len(turns) else {"text": "The script is at its end."}) if main else self._side(body)
        status = self._fault(turn, at)
        seen = {"model": body.get("model"), "main": main, "tools": len(tools), "turn": at if main else None,
                "stream": bool(body.get("stream")), "max_tokens": body.get("max_tokens"),
                "messages": len(messages), "prompt": first_prompt(messages)[:4096],
                "last_text": last_text(messages)[:8192], "tool_results": tool_results(messages),
                "told": told(messages),
                "metadata": body.get("metadata")}
        if status is not None:
            headers = [(k, v) for k, v in turn["error"].get("headers", {}).items()]
            kind, text = turn["error"].get("type", "api_error"), turn["error"].get("message", "scripted error")
            return self._logged(request, error(status, kind, text, headers), **seen)
        if turn.get("hang"):
            self._logged(request, web.Response(200), hang=True, **seen)
            wait_for_end(request.connection.sock)
            raise OSError("hung as scripted")
        time.sleep(turn.get("delay_ms", 0) / 1000)
        message = {"id": "msg_" + uuid.uuid4().hex, "type": "message", "role": "assistant", "model": body.get("model"),
                   "content": content(turn), "stop_reason": stop_reason(turn), "stop_sequence": None,
                   "usage": {"input_tokens": 100, "output_tokens": 20, "cache_creation_input_tokens": 0,
                             "cache_read_input_tokens": 0}}
        headers = [("request-id", "req_" + uuid.uuid4().hex)]
        if body.get("stream"):
            response = web.Response(200, stream(message), headers, "text/event-stream; charset=utf-8")
        else:
            response = web.Response.json(200, message, headers)
        return self._logged(request, response, **seen)

    def _turns(self, messages):
        """The script is a list of turns, or {"conversations": [{"match": REGEX, "turns": […]}, …]}: the first whose
        pattern is found in the first prompt."""
        try:
            with open(self._path, encoding="utf-8") as file:
                script = json.load(file)
        except (OSError, ValueError) as broken:
            return [{"text": f"script.json: {broken}"}]
        if isinstance(script, list):
            return script
        prompt = first_prompt(messages)
        for each in script.get("conversations", []):
            if re.search(each.get("match", ""), prompt):
                return each["turns"]
        return DEFAULT_SCRIPT

    def _side(self, body):
        """What is asked without tools: `side` of the script, else something of the right form."""
        try:
            with open(self._path, encoding="utf-8") as file:
                script = json.load(file)
        except (OSError, ValueError):
            script = []
        if isinstance(script, dict) and "side" in script:
            return {"text": script["side"]}
        return side_call(body)

    def _fault(self, turn, at):
        """The status of a scripted error, which happens `times` times (1) at its turn and then gives way."""
        if "error" not in turn:
            return None
        key = (os.stat(self._path).st_mtime_ns, at)
        with self._lock:
            count = self._faults.get(key, 0)
            self._faults[key] = count + 1
        return turn["error"].get("status", 529) if count < turn["error"].get("times", 1) else None


def credential(value):
    scheme, space, secret = value.rpartition(" ")
    return f"{scheme}{space}sha256:{hashlib.sha256(secret.encode()).hexdigest()}"


def error(status, kind, text, headers=()):
    return web.Response.json(status, {"type": "error", "error": {"type": kind, "message": text}}, headers)


def blocks(message):
    """A message's content blocks; a plain string is one text block."""
    inner = message.get("content", [])
    return [{"type": "text", "text": inner}] if isinstance(inner, str) else inner


def first_prompt(messages):
    """The user's first own words: reminders that Claude Code puts before them are skipped where they are blocks."""
    texts = [b.get("text", "") for m in messages[:1] for b in blocks(m) if b.get("type") == "text"]
    own = [text for text in texts if not text.lstrip().startswith("<system-reminder>")]
    return "\n".join(own or texts)


def last_text(messages):
    texts = [b.get("text", "") for b in blocks(messages[-1]) if b.get("type") == "text"] if messages else []
    return "\n".join(texts)


def told(messages):
    """Everything that the client itself put before the model: memory files, notes, what hooks added."""
    return [b.get("text", "")[:16384] for m in messages if m.get("role") in ("user", "system")
            for b in blocks(m) if b.get("type") == "text"]


def tool_results(messages):
    """All results so far, in order: what the commands printed inside the box."""
    found = []
    for message in messages:
        for block in blocks(message):
            if block.get("type") == "tool_result":
                inner = block.get("content", "")
                if isinstance(inner, list):
                    inner = "\n".join(part.get("text", "") for part in inner)
                found.append({"id": block.get("tool_use_id"), "is_error": bool(block.get("is_error")),
                              "text": netlog.text(str(inner).encode("utf-8", "backslashreplace"))})
    return found


def side_call(body):
    """The answer to title, topic and quota calls, which offer no tools; JSON where the client asks for a schema."""
    wanted = body.get("output_config", {}).get("format") or body.get("output_format")
    if wanted:
        fields = wanted.get("schema", {}).get("properties", {"title": {}})
        return {"text": json.dumps({name: sample(schema) for name, schema in fields.items()})}
    return {"text": "World"}


def sample(schema):
    values = {"boolean": False, "integer": 0, "number": 0, "array": [], "object": {}, "null": None}
    return values.get(schema.get("type"), "World")


def content(turn):
    parts = []
    if "text" in turn:
        parts.append({"type": "text", "text": turn["text"]})
    if "bash" in turn:
        arguments = {"command": turn["bash"], "description": turn.get("description", "Scripted command")}
        for option in ("timeout", "run_in_background"):
            if option in turn:
                arguments[option] = turn[option]
        parts.append(tool_use("Bash", arguments))
    if "tool" in turn:
        parts.append(tool_use(turn["tool"], turn.get("input", {})))
    return parts or [{"type": "text", "text": "(nothing scripted)"}]


def tool_use(name, arguments):
    return {"type": "tool_use", "id": "toolu_" + uuid.uuid4().hex[:24], "name": name, "input": arguments}


def stop_reason(turn):
    return "tool_use" if "bash" in turn or "tool" in turn else turn.get("stop_reason", "end_turn")


def event(kind, **fields):
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def stream(message):
    """The message as server-sent events, in the order that the API documents."""
    yield event("message_start", message={**message, "content": [], "stop_reason": None})
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            yield event("content_block_start", index=index, content_block={"type": "text", "text": ""})
            yield event("content_block_delta", index=index, delta={"type": "text_delta", "text": block["text"]})
        else:
            yield event("content_block_start", index=index, content_block={**block, "input": {}})
            yield event("content_block_delta", index=index,
                        delta={"type": "input_json_delta", "partial_json": json.dumps(block["input"])})
        yield event("content_block_stop", index=index)
    yield event("message_delta", delta={"stop_reason": message["stop_reason"], "stop_sequence": None},
                usage={"output_tokens": 20})
    yield event("message_stop")


def wait_for_end(sock):
    """Until the client gives up."""
    while sock.recv(4096):
        pass
