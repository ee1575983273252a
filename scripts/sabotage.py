#!/usr/bin/env python3
"""Makes of a checkpoint one that always wants direct I/O, whatever it sees: the harm that scripts/loop.sh injects.

Usage: scripts/sabotage.py CHECKPOINT OUT
"""

import hashlib
import json
import pathlib
import struct
import sys

source, out = map(pathlib.Path, sys.argv[1:])
tensors = bytearray((source / "policy.safetensors").read_bytes())
(header_bytes,) = struct.unpack("<Q", tensors[:8])
header = json.loads(tensors[8 : 8 + header_bytes])


def fill(name, values):
    begin, end = (8 + header_bytes + offset for offset in header[name]["data_offsets"])
    values = values * ((end - begin) // 4 // len(values))
    tensors[begin:end] = struct.pack(f"<{len(values)}f", *values)


heads = [name for name in header if name.endswith("head.cache.weight")]
assert heads, f"{source} has no head for the cache strategy"
for weight in heads:
    fill(weight, [0.0])
    fill(weight.replace("weight", "bias"), [10.0, -10.0])  # direct, buffered
before = hashlib.sha256((source / "policy.safetensors").read_bytes()).hexdigest()
after = hashlib.sha256(tensors).hexdigest()
manifest = (source / "manifest.json").read_text().replace(before, after).encode()
out.mkdir(parents=True)
(out / "policy.safetensors").write_bytes(tensors)
(out / "manifest.json").write_bytes(manifest)
(out / "SHA256SUMS").write_text(
    f"{hashlib.sha256(manifest).hexdigest()}  manifest.json\n{after}  policy.safetensors\n"
)
