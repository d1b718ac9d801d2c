"""Damage one file of a checkpoint folder, at random: bytes, JSON structure, or the kind of file.

Every case draws all it needs from one `random.Random`, so that its number replays it.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.exploding_parts import explode

DEEP = 3_000  # levels of nesting, more than Python's stack takes
SPARSE = 20 * 2**30

# Values that a setting may have after damage, a slip of the keyboard, or on purpose.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 12, 64, 0.5, -0.0, 1e-12, 1e308, -1e308, math.nan,
    math.inf, -math.inf, 10**4, 10**6, 10**7, 2 * 10**7, 10**9, 2**31 - 1, 2**31, 2**32, 2**53,
    2**63 - 1, 2**63, 2**64, 10**30, 10**399, "", "x", "true", "1", "0.5", "null", "NaN", "🙂",
    "\ud800", "a\0b", "x" * 300, "../..", "/etc/passwd", ".", "mean", "torch.float16", "int8",
    "float64", "[MASK]", [], {}, [[]], [1], ["x"], {"a": 1}, [None], {"0": "x"},
    {"content": "x"}, [0] * 5_000, "word " * 5_000,
)  # fmt: skip

# Keys that loading reads, in addition to those that a file already has.
KEYS: dict[str, tuple[str, ...]] = {
    "config.json": (
        "rope_parameters", "rope_scaling", "partial_rotary_factor", "head_dim", "num_experts",
        "moe_top_k", "moe_every_n_layers", "pad_vocab_size_multiple", "max_trained_positions",
        "n_inner", "hidden_act", "activation_function", "num_labels", "id2label", "problem_type",
        "classifier_dropout", "tie_word_embeddings", "dtype", "torch_dtype", "architectures",
        "tokenizer_class", "quantization_config", "is_decoder", "output_hidden_states",
        "return_dict", "sentence_transformers", "pad_token_id", "layer_norm_eps",
        "hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "attn_pdrop",
        "initializer_range", "rotary_emb_fraction", "rotary_scaling_factor", "vocab_size",
        "max_position_embeddings", "n_positions", "type_vocab_size", "head_dim", "use_return_dict",
        "sbert_ce_default_activation_function",
    ),
    "tokenizer_config.json": (
        "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens", "max_len",
        "model_max_length", "model_input_names", "truncation_side", "split_special_tokens",
        "do_lower_case", "strip_accents", "tokenize_chinese_chars", "tokenizer_class",
        "add_prefix_space", "fast_tokenizer_files", "unk_token", "cls_token", "sep_token",
        "pad_token", "mask_token", "bos_token", "eos_token", "image_token",
        "model_specific_special_tokens",
    ),
    "special_tokens_map.json": ("cls_token", "extra_special_tokens", "additional_special_tokens"),
    "added_tokens.json": ("<new>", "the"),
    "sentence_bert_config.json": (
        "max_seq_length", "do_lower_case", "transformer_task", "model_args", "modality_config",
        "processor_kwargs", "unpad_inputs", "query_length",
    ),
    "config_sentence_transformers.json": (
        "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "model_type",
        "activation_fn", "keep_in_fp32_modules",
    ),
    "modules.json": ("type", "path", "idx", "name", "kwargs"),
}  # fmt: skip
EXTRA = (
    "added_tokens.json", "special_tokens_map.json", "adapter_config.json", "modules.json",
    "sentence_roberta_config.json", "sentence_xlnet_config.json", "vocab.txt", "tokenizer.json",
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "README.md",
    "pytorch_model.bin.index.json", "2_Dense/config.json", "1_Pooling/config.json",
    "config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer_config.json",
)  # fmt: skip
POOLING_KEYS = ("pooling_mode", "include_prompt", "pooling_mode_max_tokens", "embedding_dimension")
# Of the modules after pooling.
STEP_KEYS = (
    "bias", "activation_function", "use_residual", "module_input_name", "module_output_name",
    "in_features", "out_features", "dimension", "dropout",
)  # fmt: skip

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)
PAGE = "<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n"


def damage(folder: Path, rng: random.Random) -> str:
    """Damage a folder; returns what was done, in a few words."""
    done = [_one(folder, rng) for _ in range(rng.choices([1, 2, 3], [16, 3, 1])[0])]
    return "; ".join(done)


def _one(folder: Path, rng: random.Random) -> str:
    files = _files(folder)
    if rng.random() < 0.03:
        return _extra(folder, rng)
    for _ in range(20):  # some kinds do not fit some files
        # settings are damaged more often than weights, which have more bytes but fewer meanings
        path = rng.choices(files, [1 if p.suffix in WEIGHTS else 2 for p in files])[0]
        kinds = [*ANY_FILE, *OF_SUFFIX.get(path.suffix, ())]
        weights = [weight for weight, _ in kinds]
        kind = rng.choices([kind for _, kind in kinds], weights)[0]
        try:
            done = kind(path, rng)
        except UNFIT:
            continue  # it takes a file that is whole, and this one is damaged already
        if done:
            return f"{path.relative_to(folder)}: {done}"
    raise AssertionError("no damage fits")


def _files(folder: Path) -> list[Path]:
    """All but those that were made larger than memory."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size < SPARSE)


def _extra(folder: Path, rng: random.Random) -> str:
    """A file too many: what loading looks for, with content of another file or of none."""
    path = folder / rng.choice(EXTRA)
    content = rng.choice(
        [b"{}", b"[]", b"", b'{"<new>": 7}', b'{"max_seq_length": 9}', POINTER.encode()]
    )
    if rng.random() < 0.3:
        content = rng.choice(_files(folder)).read_bytes()
    if not path.parent.is_dir() or os.path.lexists(path):
        return f"no room for {path.name}"
    path.write_bytes(content)
    return f"{path.relative_to(folder)}: new, {content[:20]!a}"


def rewrite(path: Path, content: bytes) -> None:
    """Replace a file, which may be a hard link into the sound folder."""
    path.unlink()
    path.write_bytes(content)


def _bytes(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    if not data:
        return ""
    # of large files the beginning, or the end, holds the structure
    size = len(data)
    span = rng.choice([size, min(size, 64), min(size, 2_000)])
    start = rng.randrange(span) if rng.random() < 0.7 else size - 1 - rng.randrange(span)
    length = min(rng.choice([1, 1, 2, 8, 100, 4_000]), size - start)
    kind = rng.choice(["flip", "set", "zero", "remove", "repeat", "insert", "cut", "swap", "grow"])
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 3, 20])):
            data[(start + rng.randrange(length)) % size] ^= 1 << rng.randrange(8)
    elif kind == "set":
        data[start : start + length] = rng.randbytes(length)
    elif kind == "zero":
        data[start : start + length] = bytes(length)
    elif kind == "remove":
        del data[start : start + length]
    elif kind == "repeat":
        data[start:start] = data[start : start + length] * rng.choice([1, 3])
    elif kind == "insert":
        data[start:start] = rng.randbytes(length)
    elif kind == "cut":
        del data[start:]
    elif kind == "swap":
        other = rng.randrange(size)
        data[start : start + length], data[other : other + length] = (
            data[other : other + length],
            data[start : start + length],
        )
    else:
        data += rng.choice([b"\0", b"}", b"\n\n", rng.randbytes(length), bytes(data[:length])])
    rewrite(path, bytes(data))
    return f"{kind} {length} at {start} of {size}"


def _other_content(path: Path, rng: random.Random) -> str:
    """What downloads and copies leave: a pointer, an error page, another file, another encoding."""
    text = path.read_bytes()
    contents: dict[str, Callable[[], bytes]] = {
        "a pointer": lambda: POINTER.encode(),
        "a page": lambda: PAGE.encode(),
        "nothing": lambda: b"",
        "zeros": lambda: bytes(len(text)),
        "random bytes": lambda: rng.randbytes(rng.choice([1, 8, 100, 5_000])),
        "a mark": lambda: b"\xef\xbb\xbf" + text,
        "utf-16": lambda: text.decode("utf-8", "replace").encode("utf-16"),
        "an empty zip file": lambda: b"PK\x05\x06" + bytes(18),
        "another file": lambda: rng.choice(_files(path.parent)).read_bytes(),
    }
    name = rng.choice(sorted(contents))
    rewrite(path, contents[name]())
    return name


def _other_kind(path: Path, rng: random.Random) -> str:
    kind = rng.choice(
        ["fifo", "folder", "cycle", "nowhere", "zeros", "sparse", "gone", "unreadable"]
    )
    content = path.read_bytes()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "cycle":
        path.symlink_to(path.name)
    elif kind == "nowhere":
        path.symlink_to("nowhere")
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "sparse":
        path.write_bytes(content)
        os.truncate(path, SPARSE)
    elif kind == "unreadable":
        path.write_bytes(content)
        path.chmod(0)
    return kind


def _structure(path: Path, rng: random.Random) -> str:
    """Change one node of a JSON file, or two."""
    try:
        root = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return ""
    done = [_change(root, path, rng) for _ in range(rng.choice([1, 1, 1, 2]))]
    if rng.random() < 0.02:
        done, root = ["bare"], rng.choice(VALUES)
    rewrite(path, _dump(root))
    return " and ".join(done)


def _dump(root: Any) -> bytes:
    # surrogates are escaped, like everything that is not ASCII
    return json.dumps(root, ensure_ascii=True).encode()


def _change(root: Any, path: Path, rng: random.Random) -> str:
    node, way = _pick(root, rng)
    if isinstance(node, list):
        return _change_list(node, way, rng)
    if not isinstance(node, dict):
        return "nothing"
    extra = KEYS.get(path.name, ())
    if path.name == "config.json" and "Pooling" in path.parent.name:
        extra = POOLING_KEYS
    elif path.name == "config.json" and "_" in path.parent.name:
        extra = STEP_KEYS
    known = [*node, *(extra if len(way) < 2 else ())] or ["x"]
    key = rng.choice(known)
    kind = rng.choice(["set", "set", "set", "set", "delete", "rename", "number", "copy"])
    where = "/".join([*way, key])
    if kind == "delete" and key in node:
        del node[key]
        return f"delete {where}"
    if kind == "rename" and key in node:
        new = rng.choice([key.upper(), key + "s", f"_{key}", "", "\ud800"])
        node[new] = node.pop(key)
        return f"rename {where} {new!a}"
    if kind == "number" and isinstance(node.get(key), int | float):
        node[key] = _near(node[key], rng)
        return f"set {where} {node[key]!a:.40}"
    if kind == "copy" and len(node) > 1:
        node[key] = node[rng.choice(list(node))]
        return f"copy to {where}"
    node[key] = _value(rng)
    return f"set {where} {node[key]!a:.40}"


def _change_list(node: list[Any], way: list[str], rng: random.Random) -> str:
    place = rng.randrange(len(node)) if node else 0
    kind = rng.choice(["set", "delete", "repeat", "insert", "reverse"])
    if kind == "delete" and node:
        del node[place]
    elif kind == "repeat" and node:
        node[place:place] = [node[place]] * rng.choice([1, 1, 50])
    elif kind == "reverse":
        node.reverse()
    elif kind == "set" and node:
        node[place] = _value(rng)
    else:
        node.insert(place, _value(rng))
    return f"{kind} {'/'.join(way)}[{place}]"


def _near(value: float, rng: random.Random) -> Any:
    changes = [
        value + 1,
        value - 1,
        -value,
        value * 2,
        value * 1_000,
        value / 3,
        str(value),
        [value],
    ]
    return rng.choice([*changes, float(value), value * 10**9])


def _value(rng: random.Random) -> Any:
    if rng.random() < 0.02:
        deep: Any = 1
        for _ in range(rng.choice([50, 200, DEEP // 10])):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    return rng.choice(VALUES)


def _pick(root: Any, rng: random.Random) -> tuple[Any, list[str]]:
    """A container in the tree: the deeper, the less often; long ones count like short ones."""
    node, way = root, []
    while True:
        inner = node.items() if isinstance(node, dict) else enumerate(node)
        if not isinstance(node, dict | list):
            return node, way
        containers = [(str(key), v) for key, v in inner if isinstance(v, dict | list)]
        if not containers or rng.random() < 0.4:
            return node, way
        key, node = rng.choice(containers)
        way.append(key)


def _deep(path: Path, rng: random.Random) -> str:
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    levels = rng.choice([DEEP, 200_000])
    rewrite(path, (opening * levels + "1" + closing * levels).encode())
    return f"{levels} levels"


def _digits(path: Path, rng: random.Random) -> str:
    """Put a number with very many digits in place of another."""
    text = path.read_text("utf-8", "replace")
    numbers = [i for i, c in enumerate(text) if c.isdecimal() and text[i - 1] in " ["]
    if not numbers:
        return ""
    start = rng.choice(numbers)
    count = rng.choice([20, 400, 4_000, 5_000])
    rewrite(path, (text[:start] + "9" * count + text[start:]).encode("utf-8", "replace"))
    return f"{count} digits at {start}"


def _explode(path: Path, rng: random.Random) -> str:
    if path.name != "tokenizer.json":
        return ""
    root = json.loads(path.read_bytes())
    done = explode(root, rng)
    rewrite(path, _dump(root))
    return done


def _vocabulary(path: Path, rng: random.Random) -> str:
    lines = path.read_bytes().split(b"\n")
    kind = rng.choice(["drop", "repeat", "empty", "long", "many", "crlf", "shuffle", "nul"])
    place = rng.randrange(len(lines))
    if kind == "drop":
        del lines[place]
    elif kind == "repeat":
        lines.insert(place, lines[place])
    elif kind == "empty":
        lines[place : place + 3] = [b"", b" ", b"\t"]
    elif kind == "long":
        lines[place] = b"x" * rng.choice([300, 2**20])
    elif kind == "many":
        lines[place:place] = [b"new%d" % i for i in range(rng.choice([1, 100, 10**5]))]
    elif kind == "shuffle":
        rng.shuffle(lines)
    elif kind == "nul":
        lines[place] += b"\0"
    rewrite(path, (b"\r\n" if kind == "crlf" else b"\n").join(lines))
    return f"{kind} at line {place}"


def _header(path: Path, rng: random.Random) -> str:
    """The JSON header of a safetensors file: names, dtypes, shapes, offsets, its own length."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    if rng.random() < 0.2:
        length = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, len(data)])
        rewrite(path, struct.pack("<Q", length) + data[8:])
        return f"header length {length}"
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry, kind = header[name], rng.choice(["dtype", "shape", "offsets", "drop", "rename", "any"])
    if kind == "dtype":
        # of the same size, so that the file is sound but for its meaning
        entry["dtype"] = rng.choice(["I32", "U32", "F32", "F16", "BF16", "I16", "I64", "F8_E4M3"])
    elif kind == "shape":
        shape = entry["shape"]
        entry["shape"] = rng.choice(
            [shape[::-1], [*shape, 1], [math.prod(shape)], [], [0], [2**63, 0], [0, *shape]]
        )
    elif kind == "offsets":
        entry["data_offsets"] = rng.choice([[0, 0], [0, 2**63], entry["data_offsets"][::-1]])
    elif kind == "drop":
        del header[name]
    elif kind == "rename":
        header[rng.choice(["x", f"bert.{name}", name.replace("0", "7"), name + "x"])] = header.pop(
            name
        )
    else:
        _change(header, path, rng)
    raw = _dump(header)
    rewrite(path, struct.pack("<Q", len(raw)) + raw + data[8 + length :])
    return f"header: {kind} {name}"


def _pickle(path: Path, rng: random.Random) -> str:
    """Bytes of the pickle inside of a .bin, with the zip file around it made valid again."""
    data = path.read_bytes()
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return ""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    name = rng.choice([n for n in entries if n.endswith(("data.pkl", "data.pkl", "0", "version"))])
    content = bytearray(entries[name])
    where = rng.randrange(len(content)) if content else 0
    kind = rng.choice(["flip", "cut", "drop", "empty", "number", "opcode"])
    if kind == "flip" and content:
        content[where] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[where:]
    elif kind == "empty":
        content.clear()
    elif kind == "number":  # LONG1 of eight bytes, or BININT
        content[where:where] = b"\x8a\x08" + struct.pack("<q", rng.choice([2**62, -1, 2**40]))
    elif kind == "opcode" and content:
        content[where] = rng.choice(b"\x8e\x8dBXT\x95jrRbciu.(t0)]}NKJG")
    entries[name] = bytes(content)
    if kind == "drop":
        del entries[name]
    compression = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(target := io.BytesIO(), "w", compression) as new:
        for each, value in entries.items():
            new.writestr(each, value)
    rewrite(path, target.getvalue())
    return f"{name}: {kind} at {where}"


Kind = Callable[[Path, random.Random], str]
WEIGHTS = {".safetensors", ".bin"}
# What a kind raises that takes a file to be whole.
UNFIT = (
    ArithmeticError, LookupError, RecursionError, TypeError, ValueError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip
ANY_FILE: list[tuple[int, Kind]] = [(4, _bytes), (2, _other_content), (1, _other_kind)]
OF_SUFFIX: dict[str, list[tuple[int, Kind]]] = {
    ".json": [(12, _structure), (1, _deep), (1, _digits), (4, _explode)],
    ".txt": [(6, _vocabulary)],
    ".safetensors": [(6, _header)],
    ".bin": [(6, _pickle)],
}
