# Serves one model with the xllamacpp package until stdin closes; `bench engine` talks to it.
import json
import os
import socket
import sys

import xllamacpp

asked = json.loads(sys.argv[1])
parameters = xllamacpp.CommonParams()
parameters.model.path = asked["file"]
parameters.cpuparams.n_threads = asked["threads"]
parameters.cpuparams_batch.n_threads = asked["threads"]
parameters.n_ctx = asked["context"]
parameters.n_parallel = 1
parameters.n_gpu_layers = 0
parameters.warmup = False
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    parameters.port = probe.getsockname()[1]


def say(**line):
    print(json.dumps(line), flush=True)


say(version=xllamacpp.__version__, system=xllamacpp.get_system_info())
# The clock starts when the caller says so: Python's own start is not llama.cpp's.
sys.stdin.readline()
server = xllamacpp.Server(parameters)
say(address=server.listening_address)
sys.stdin.read()
os._exit(0)
