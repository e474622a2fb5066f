"""The ways to run a piece of work: one class each, which is ready when made.

`run` returns the result as the engine holds it, `array` makes it an f32 array. Nothing is imported before it is
needed, so that the memory of a process is that of its engine.
"""

import contextlib

import numpy as np

import work as works


class Torch:
    """PyTorch as it runs without any preparation: forward, or forward and backward if the work names gradients."""

    def __init__(self, work, dtype, threads):
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        self.net, self.inputs = works.module(work, dtype)
        self.trains = "gradients" in work
        if self.trains:
            self.of = works.differentiated(work, self.net, self.inputs)
            self.cotangent = works.cotangent(work)

    def run(self):
        if self.trains:
            with self.precision():
                out = self.net(*self.inputs)
            return self.torch.autograd.grad(out, self.of, self.cotangent)
        with self.without_gradients():
            return self.net(*self.inputs)

    def precision(self):
        return contextlib.nullcontext()

    def without_gradients(self):
        return self.torch.inference_mode()

    def array(self, result):
        return result.float().contiguous().numpy()

    @staticmethod
    def version():
        import torch

        return f"torch {torch.__version__}"


class TorchCompile(Torch):
    """`torch.compile`; where no weight changes, with constant weights, which lets it pack them once."""

    def __init__(self, work, dtype, threads):
        super().__init__(work, dtype, threads)
        import torch._inductor.config

        torch._inductor.config.freezing = not self.trains
        self.net = self.torch.compile(self.net, dynamic=False)

    def without_gradients(self):
        # `inference_mode` tensors cannot be frozen.
        return self.torch.no_grad()


class Autocast:
    """f32 parameters, each product in bf16: what training in mixed precision does."""

    def __init__(self, work, dtype, threads):
        assert dtype == "bf16", "f32 needs no casts"
        super().__init__(work, "f32", threads)

    def precision(self):
        return self.torch.autocast("cpu", self.torch.bfloat16)


class TorchAutocast(Autocast, Torch):
    """PyTorch in mixed precision."""


class TorchCompileAutocast(Autocast, TorchCompile):
    """`torch.compile` in mixed precision."""


class TorchChannelsLast(Torch):
    """PyTorch with the memory order that suits convolutions."""

    def __init__(self, work, dtype, threads):
        super().__init__(work, dtype, threads)
        order = self.torch.channels_last
        self.net = self.net.to(memory_format=order)
        self.inputs = [x.contiguous(memory_format=order) for x in self.inputs]


class TorchNaive(Torch):
    """Attention as two products and a softmax."""

    def __init__(self, work, dtype, threads):
        super().__init__(work, dtype, threads)
        torch = self.torch

        def attend(q, k, v):
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            return (scores.float().softmax(-1).to(q.dtype) @ v).transpose(1, 2)

        self.net = torch.no_grad()(attend)


class TorchOneDnn(Torch):
    """A product by oneDNN with the weight packed once, which PyTorch itself does in compiled code only."""

    def __init__(self, work, dtype, threads):
        super().__init__(work, dtype, threads)
        torch, (x,) = self.torch, self.inputs
        packed = torch.ops.mkldnn._reorder_linear_weight(self.net.weight, x.shape[0])
        self.net = lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


class Numpy:
    """The f32 product of numpy's OpenBLAS."""

    def __init__(self, work, dtype, threads):
        assert dtype == "f32", "numpy has no bf16"
        (self.x,) = works.inputs(work)
        from safetensors.numpy import load_file

        self.weight = load_file(work["weights"] + "/model.safetensors")["weight"]
        self.out = np.empty((self.x.shape[0], self.weight.shape[0]), np.float32)

    def run(self):
        return np.dot(self.x, self.weight.T, out=self.out)

    def array(self, result):
        return result

    @staticmethod
    def version():
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"numpy {np.__version__}, {blas['name']} {blas['version']}"


class OnnxRuntime:
    """ONNX Runtime on the exported graph."""

    def __init__(self, work, dtype, threads):
        import onnxruntime

        assert dtype == "f32", "ONNX Runtime has no bf16 kernels for CPUs"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(work["onnx"], options, providers=providers)
        names = [port.name for port in self.session.get_inputs()]
        arrays = dict(zip(works.INPUTS[work["model"]], works.inputs(work)))
        self.inputs = {name: arrays[name] for name in names}

    def run(self):
        return self.session.run(None, self.inputs)[0]

    def array(self, result):
        return result

    @staticmethod
    def version():
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"


class OpenVino:
    """OpenVINO on the exported graph, asked for the storage type as its inference precision."""

    def __init__(self, work, dtype, threads):
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": dtype,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.compiled = openvino.Core().compile_model(work["onnx"], "CPU", settings)
        arrays = dict(zip(works.INPUTS[work["model"]], works.inputs(work)))
        request = self.compiled.create_infer_request()
        for port in self.compiled.inputs:
            name = next(name for name in port.names if name in arrays)
            request.set_tensor(port, openvino.Tensor(arrays[name]))
        self.request = request

    def run(self):
        self.request.infer()
        return self.request.get_output_tensor(0).data

    def array(self, result):
        return np.array(result, np.float32)

    @staticmethod
    def version():
        import openvino

        return f"openvino {openvino.__version__.split('-')[0]}"


def export(work, path):
    """Writes the f32 module as ONNX, with the weights beside it."""
    import torch

    net, inputs = works.module(work, "f32")
    names = works.INPUTS[work["model"]]
    with torch.no_grad():
        program = torch.onnx.export(
            net, tuple(inputs), input_names=names, output_names=["out"], dynamo=True, verbose=False
        )
    program.save(path, external_data=True)


ENGINES = {
    "torch": Torch,
    "torch-compile": TorchCompile,
    "torch-autocast": TorchAutocast,
    "torch-compile-autocast": TorchCompileAutocast,
    "torch-channels-last": TorchChannelsLast,
    "torch-naive": TorchNaive,
    "torch-onednn": TorchOneDnn,
    "numpy": Numpy,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}
