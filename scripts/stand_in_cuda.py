#!/usr/bin/env python3
"""Empty stand-ins for the CUDA libraries that PyTorch's Python side asks the loader for.

PyPI's wheels for Linux are linked against cuBLAS, cuDNN, NCCL and others, about 2 GB that nothing on a CPU
ever calls; with these a benchmark on the CPU needs the wheel alone. Each has the name and the symbols, with
their versions, that are wanted of it, and a call to any of them would end the process.

Usage: stand_in_cuda.py TORCH_LIB_DIR OUT_DIR; then LD_LIBRARY_PATH=OUT_DIR python ...
Needs gcc, and readelf of binutils.
"""

import pathlib
import re
import subprocess
import sys


def readelf(flag: str, library: pathlib.Path) -> str:
    return subprocess.run(["readelf", flag, "-W", library], capture_output=True, text=True, check=True).stdout


def missing(library: pathlib.Path) -> set[str]:
    """Names of the libraries that the loader does not find for this one."""
    out = subprocess.run(["ldd", library], capture_output=True, text=True).stdout
    return set(re.findall(r"(\S+) => not found", out))


def wanted_versions(library: pathlib.Path) -> dict[str, str]:
    """Version of symbols to the library that is to have them."""
    owners, owner = {}, ""
    for line in readelf("-V", library).splitlines():
        if file := re.search(r"File: (\S+)", line):
            owner = file[1]
        elif owner and (name := re.search(r"Name: (\S+)", line)):
            owners[name[1]] = owner
        elif "section" in line:
            owner = ""
    return owners


def build(name: str, symbols: dict[str, set[str]] | set[str], out: pathlib.Path) -> None:
    """A library with these symbols, per version where they have one."""
    versions = symbols if isinstance(symbols, dict) else {}
    every = sorted(set().union(*symbols.values()) if versions else symbols)
    code = "".join(f"void {symbol}(void) {{ __builtin_trap(); }}\n" for symbol in every)
    options = ["-shared", "-fno-builtin", f"-Wl,-soname,{name}"]
    if versions:
        script = out / f"{name}.map"
        lines = (f"{version} {{ global: {'; '.join(sorted(own))}; }};\n" for version, own in versions.items())
        script.write_text("".join(lines))
        options.append(f"-Wl,--version-script={script}")
    subprocess.run(["gcc", *options, "-o", out / name, "-x", "c", "-"], input=code, text=True, check=True)


def main() -> None:
    torch, out = map(pathlib.Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    libraries = sorted(torch.glob("*.so"))
    names = set().union(*map(missing, libraries))
    symbols: dict[str, dict[str, set[str]]] = {name: {} for name in names}
    # Of libraries that version nothing; which of them has a symbol does not matter.
    unversioned: set[str] = set()
    for library in libraries:
        owners = wanted_versions(library)
        undefined = readelf("--dyn-syms", library)
        for symbol, version in re.findall(r" UND (\w+)@+(\S+)", undefined):
            if (owner := owners.get(version)) in names:
                symbols[owner].setdefault(version, set()).add(symbol)
        unversioned.update(re.findall(r" UND ((?:cu|nccl)\w+)$", undefined, re.MULTILINE))
    for name, own in symbols.items():
        build(name, own or unversioned, out)


if __name__ == "__main__":
    main()
