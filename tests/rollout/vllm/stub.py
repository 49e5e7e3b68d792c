"""A server on loopback that answers as vLLM 0.32 was recorded to answer; behind it is the built-in engine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nearstep.models.distribution import Sampling
from nearstep.models.roles import make_policy
from nearstep.rollout.engine import EngineSettings, GenerationSettings
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.types import Prompts

MODEL = {
    "logprobs_mode": "processed_logprobs", "generation_config": "vllm", "max_logprobs": -1, "dtype": "torch.float32",
}  # fmt: skip


class StubVLLM:
    """`faults[path]` is called with the handler in place of an answer, once for each entry of its list."""

    def __init__(self, port=0, longest_row=64, device="cuda", extension="", **model):
        self.model, self.longest_row = MODEL | model, longest_row
        self.config = {
            "model_config": self.model, "device_config": {"device": device},
            "parallel_config": {"worker_extension_cls": extension},
        }  # fmt: skip
        self.version, self.engine, self.rows, self.packed = "default", None, 0, 0
        self.asked, self.bodies, self.faults, self.lock = [], [], {}, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.reply(None)

            def do_POST(self):
                text = self.rfile.read(int(self.headers.get("content-length", 0)))
                self.reply(json.loads(text) if text else None)

            def reply(self, body):
                path = self.path.partition("?")[0]
                outer.asked.append(path)
                fault = outer.faults.get(path, [])
                if fault:
                    fault.pop(0)(self)
                    return
                status, found = outer.answer(path, body)
                self.say(status, found)

            def say(self, status, found):
                text = b"" if found is None else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.server.socket.listen(128)
        self.server.handle_error = lambda *arguments: None
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.stop()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path, body):
        match path:
            case "/health":
                return 200, None
            case "/is_sleeping":
                return 200, {"is_sleeping": False}
            case "/server_info":
                return 200, {"vllm_config": self.config}
            case "/v1/models":
                return 200, {"data": [{"id": "policy", "max_model_len": self.longest_row}]}
            case "/weight_info":
                return 200, {"weight_version": self.version}
            case "/update_weight_version":
                self.version = body["new_version"]
                return 200, {"success": True, "new_version": self.version}
            case "/reset_prefix_cache":
                return 200, {"success": True}
            case "/collective_rpc" if body.get("method") == "pack_heads":
                self.packed += 1
                return 200, {"results": [None]}
            case "/collective_rpc":
                return self.reload(Path(body["kwargs"]["weights_path"]))
            case "/v1/completions":
                self.bodies.append(body)
                return 200, self.completion(body)
        return 404, {"detail": "Not Found"}

    def reload(self, folder):
        if not folder.is_dir():
            return 500, {"error": {"message": "Worker failed with error 'Repo id must be in the form …'"}}
        if self.engine is None:
            model = AutoModelForCausalLM.from_pretrained(folder)
            self.rows = model.config.vocab_size
            self.engine = TransformersEngine(EngineSettings())
            self.engine.load(make_policy(model), 0)
        else:
            self.engine.policy.model.load_state_dict(load_file(folder / "model.safetensors"))
        return 200, {"results": [None]}

    def completion(self, body):
        greedy, top_k = body["temperature"] == 0, body["logprobs"]
        settings = GenerationSettings(
            Sampling(body["temperature"] or 1.0, body["top_p"], body["top_k"]),
            body["max_tokens"], tuple(body["stop_token_ids"]), seed=body["seed"], greedy=greedy, top_tokens=top_k,
            vocabulary=self.rows - len(body.get("logit_bias", {})),
        )  # fmt: skip
        with self.lock:  # torch's forward passes share buffers of the cache
            rollout = self.engine.generate(Prompts([body["prompt"]], [""], {}, [0]), settings)
        ids, logprobs = rollout.actions.tolist(), rollout.logprobs.tolist()
        lines = [{f"token_id:{token}": value} for token, value in zip(ids, logprobs, strict=True)]
        if top_k:
            for line, tokens, values in zip(lines, rollout.top.ids, rollout.top.logprobs, strict=True):
                line |= {f"token_id:{int(token)}": max(float(value), -9999.0)
                         for token, value in zip(tokens, values, strict=True)}  # fmt: skip
        stopped = ids[-1] in body["stop_token_ids"]
        return {"choices": [{
            "index": 0, "text": "", "finish_reason": "stop" if stopped else "length", "token_ids": ids,
            "logprobs": {"token_logprobs": logprobs, "top_logprobs": lines, "tokens": [f"token_id:{i}" for i in ids]},
        }]}  # fmt: skip


def settings_for(url, folder, *, timeout=5.0, retries=1, max_rows=3):
    """What the engine is built from that asks the server at `url`."""
    from nearstep.rollout.engine_settings import VLLMServerSettings

    server = VLLMServerSettings(url, str(folder), timeout_seconds=timeout, retries=retries)
    return EngineSettings(max_rows=max_rows, server=server)
