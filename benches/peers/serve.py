"""A peer of `kino bench --with-peers`: requests come as lines of JSON, answers go back the same way.

    {"request": "prepare", "engine": "torch", "dtype": "bf16", "threads": 2, "work": {...}}  ->  {"version": ...}
    {"request": "run"}                       ->  {"seconds": 0.41}
    {"request": "save", "path": FILE}        ->  {}      the last run's result, f32 tensor `out` of a safetensors file;
                                                         several results are `out.0000`, `out.0001`, ...
    {"request": "export", "path": FILE, "work": {...}}  ->  {}      the work as an ONNX graph

What goes wrong is answered as {"error": TEXT}. The process ends with its standard input.
"""

import json
import os
import sys
import time


class Server:
    def __init__(self):
        self.engine = None
        self.result = None

    def prepare(self, request):
        import engines

        kind = engines.ENGINES[request["engine"]]
        self.engine = kind(request["work"], request["dtype"], request["threads"])
        # The first run compiles, packs and allocates.
        self.result = self.engine.run()
        return {"version": kind.version()}

    def run(self, request):
        self.result = None
        start = time.perf_counter()
        self.result = self.engine.run()
        return {"seconds": time.perf_counter() - start}

    def save(self, request):
        from safetensors.numpy import save_file

        if isinstance(self.result, (list, tuple)):
            results = {f"out.{i:04}": result for i, result in enumerate(self.result)}
        else:
            results = {"out": self.result}
        save_file({name: self.engine.array(result) for name, result in results.items()}, request["path"])
        return {}

    def export(self, request):
        import engines

        engines.export(request["work"], request["path"])
        return {}


def main():
    if "--versions" in sys.argv[1:]:
        import engines

        for name in ("torch", "numpy", "onnxruntime", "openvino"):
            print(engines.ENGINES[name].version())
        return
    # Libraries print; what they print must not reach the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server()
    handlers = {"prepare": server.prepare, "run": server.run, "save": server.save, "export": server.export}
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = handlers[request["request"]](request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
