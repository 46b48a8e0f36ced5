"""Triton's side of the `vllm` backend: tensors in, responses out. Everything else is in the package vllm_chat."""

import locale

# Before anything is imported: Python inside Triton's stub opens text files as ASCII otherwise.
locale.setlocale(locale.LC_ALL, "C.UTF-8")

import atexit
import gc
import json
import os
import sys
import traceback
from functools import partial
from pathlib import Path

import triton_python_backend_utils as pb_utils

from incidents import Incidents, conversation_of
from vllm_chat import contract, settings
from vllm_chat.control_mode import unloads_on_request
from vllm_chat.errors import BackendError, Cancelled, EngineFailed, InvalidRequest, Unavailable
from vllm_chat.farewell import Farewell

# Names, not values: while Triton completes the configuration, its module has no TritonError yet.
_CODES = {InvalidRequest: "INVALID_ARG", Unavailable: "UNAVAILABLE", Cancelled: "CANCELLED", EngineFailed: "INTERNAL"}
_INCIDENTS = {InvalidRequest: "invalid", Unavailable: "refused"}
#: How long a thread may keep the interpreter while another waits for it. When many requests come at once, the event
#: loop always has something to do; with Python's own 5 ms, a response would wait so long at every step on its way out.
SWITCH_INTERVAL_S = 0.0005


class TritonReply:
    """The way back to one client, see `vllm_chat.courier.Reply`."""

    def __init__(self, sender, note):
        self._sender = sender
        self._note = note

    def send(self, outputs, final):
        """Send one response, with the final flag on the last."""
        response = pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)

    def fail(self, error):
        """Send an error; it is always the last response."""
        self._note(error)
        name = _CODES.get(type(error), "INTERNAL")
        # An error on a gRPC stream has no status code, so the sentence begins with its name.
        text = f"{name.replace('INVALID_ARG', 'INVALID_ARGUMENT')}: {error}"
        response = pb_utils.InferenceResponse(error=pb_utils.TritonError(text, getattr(pb_utils.TritonError, name)))
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self):
        """Ask Triton (one trip to the server's process)."""
        return self._sender.is_cancelled()


class TritonPythonModel:
    """One vLLM engine behind Triton's decoupled protocol."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Complete config.pbtxt with the contract's inputs and outputs."""
        return contract.complete(auto_complete_model_config)

    def initialize(self, args):
        """Load the model; Triton reports it ready when this returns."""
        config = json.loads(args["model_config"])
        if not pb_utils.using_decoupled_model_transaction_policy(config):
            raise pb_utils.TritonModelException("the vllm backend needs model_transaction_policy { decoupled: true }")
        folder = Path(args["model_repository"]) / args["model_version"]
        # So that engine arguments can name Python files beside model.json, e.g. `logits_processors`; Triton makes only
        # the backend's folder importable. vLLM hands the path on to the engine's process.
        sys.path.append(str(folder))
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        try:
            wanted = settings.load(folder, args["model_name"], parameters, os.environ)
            from triton_metrics import Metrics  # not above: while Triton completes the configuration it has no metrics

            labels = {"model": args["model_name"], "version": args["model_version"]}
            self._name, self._unload_dead = args["model_name"], wanted.unload_dead
            self._incidents = Incidents(self._name, pb_utils.Logger.log_warn)
            self._metrics = Metrics(labels, self._engine_died)
            self._engine = self._start(wanted, args["model_name"], self._metrics)
            self._farewell = Farewell(self._server_stops)
            # What is loaded now stays: searching a million objects of torch and vLLM for garbage would hold up answers.
            gc.collect()
            gc.freeze()
            sys.setswitchinterval(SWITCH_INTERVAL_S)
        except BackendError as error:
            if error.__cause__ is not None:
                pb_utils.Logger.log_error("".join(traceback.format_exception(error.__cause__)))
            raise pb_utils.TritonModelException(str(error)) from None

    @staticmethod
    def _start(wanted, model_name, observer):
        # vLLM reads the environment when it is imported, so the defaults must be set before that; torch alone tells
        # whether there is a GPU.
        import torch

        on_cpu = not torch.cuda.is_available()
        for name, value in settings.environment_defaults(wanted, on_cpu=on_cpu).items():
            os.environ.setdefault(name, value)
        engine_args = settings.resolve(wanted, on_cpu=on_cpu, environment=os.environ)
        pb_utils.Logger.log_info(f"[{model_name}] vLLM engine arguments: {json.dumps(engine_args)}")
        from vllm import envs

        from vllm_chat.engine import LlmEngine

        def log(line):
            pb_utils.Logger.log_warn(f"[{model_name}] {line}")

        engine = LlmEngine(
            engine_args,
            model_name,
            wanted.chat_template_kwargs,
            log,
            parsers=wanted.parsers,
            loras=wanted.loras,
            observer=observer,
            with_statistics=wanted.report_metrics,
        )
        envs.enable_envs_cache()  # vLLM would read the environment anew at every look, several times a request
        return engine

    def _note(self, conversation, error):
        """Tell the log of a request that ended badly; a client that left is no incident."""
        if not isinstance(error, Cancelled):
            # What vLLM says of a bad request may repeat the conversation; its client was told.
            said = "" if isinstance(error, InvalidRequest) else str(error)
            self._incidents.note(_INCIDENTS.get(type(error), "failed"), conversation, said)

    def _engine_died(self):
        """Have Triton unload the model, so that it is no longer ready; requests are refused until that is done."""
        if not self._unload_dead:
            return
        if unloads_on_request(os.getppid()):
            pb_utils.unload_model(self._name)
        else:
            pb_utils.Logger.log_error(
                f"[{self._name}] Triton says that the model is still ready, because it runs without "
                "--model-control-mode=explicit; restart the server"
            )

    def _server_stops(self):
        """End running requests, because Triton calls `finalize` only after the last of them."""
        pb_utils.Logger.log_info(f"[{self._name}] the server is stopping")
        self._engine.stop_requests()

    def execute(self, requests):
        """Hand each request to the engine and return at once; answers come from the courier's thread."""
        for request in requests:
            parameters = json.loads(request.parameters() or "{}")
            reply = TritonReply(request.get_response_sender(), partial(self._note, conversation_of(parameters)))
            try:
                inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                self._engine.submit(contract.parse(inputs, parameters), reply)
            except BackendError as error:
                self._engine.reject(error, reply)
            except Exception as error:
                # An exception out of execute() would fail every request of the batch.
                self._engine.reject(EngineFailed(f"the request could not be read: {error}"), reply)

    def finalize(self):
        """End running requests, the engine's process and the threads."""
        if hasattr(self, "_farewell"):
            self._farewell.close()
            del self._farewell
        if hasattr(self, "_engine"):
            pb_utils.Logger.log_info(f"[{self._name}] stopping the engine")
            self._engine.shutdown()
            del self._engine
            pb_utils.Logger.log_info(f"[{self._name}] the engine has stopped")
        if hasattr(self, "_metrics"):
            self._metrics.close()
            del self._metrics
        # Triton's objects that hang in reference cycles must go before the shared memory behind them does.
        gc.collect()
        # Triton waits for this process, whose last act would be to take torch and vLLM apart, module by module: seconds
        # of work for nothing. Registered last, this is called first.
        atexit.register(os._exit, 0)
