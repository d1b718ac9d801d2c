"""The process that `encode` starts: `Embedder.encode` on the texts of a workload, round by round.

It is the only module of this package that imports nomicbert. A round is a line of JSON on stdin,
its figures are a line on stdout.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--workload", required=True)
    parser.add_argument("--texts", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--cores", required=True)
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    # read when torch is imported; waiting threads must not take cores from the server
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

    import dataclasses

    import torch

    from bench.serve.texts import WORKLOADS, Texts
    from nomicbert import Embedder, NomicBertError, __version__

    torch.set_num_threads(options.threads)
    workload = dataclasses.replace(WORKLOADS[options.workload], texts=options.texts)
    texts = Texts(workload, options.seed)
    try:
        local = Path(options.model).is_dir()
        embedder = Embedder(
            options.model, local_files_only=local, backend=options.backend, dtype=options.dtype
        )
    except (NomicBertError, ValueError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(2)
    embedder.encode(texts.request(0)[0], prompt="")
    about = {"nomicbert": __version__, "torch": torch.__version__}
    print(json.dumps({"ready": True, **about}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        number, tokens, count, spent, cpu = asked["first"], 0, 0, 0.0, 0.0
        while spent < asked["seconds"]:
            drawn, _ = texts.request(number)
            began, used = time.perf_counter(), time.process_time()
            embedder.encode(drawn, prompt="")
            spent += time.perf_counter() - began
            cpu += time.process_time() - used
            tokens += sum(embedder.tokenizer.count(drawn))
            count, number = count + len(drawn), number + 1
        found = {"tokens": tokens, "texts": count, "seconds": spent, "cpu_seconds": cpu}
        print(json.dumps({**found, "next": number}), flush=True)


if __name__ == "__main__":
    main()
