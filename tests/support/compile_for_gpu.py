"""Compiles every kernel for an H100, without one: python -m tests.support.compile_for_gpu

Triton's interpreter accepts Python that its compiler does not. A process of its own, because in
the tests' process the kernels are interpreted.
"""

import torch

torch.version.cuda = torch.version.cuda or "12"  # as in a build that could use the kernels

from triton import compile as triton_compile  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from parcae_core.kernels import (  # noqa: E402
    lookup,
    loop_boundary,
    relu_squared,
    relu_squared_mlp,
    residual_norm,
    rope_qk_norm,
    value_gate,
)
from parcae_core.kernels.dispatch import LAUNCH  # noqa: E402

TARGET = GPUTarget("cuda", 90, 32)
# tensors as under bfloat16 autocast; every other argument is an integer, but for eps
NARROW = {
    "delta", "u", "du", "ddelta", "v", "gate", "y", "dy", "dgate", "kept", "q", "k", "yq", "yk",
    "dyq", "dyk", "kept_q", "kept_k", "dq", "dk", "a", "b", "out",
}  # fmt: skip
WIDE = {
    "x",
    "s",
    "r",
    "w",
    "ds",
    "dx",
    "h",
    "a_bar",
    "injected",
    "dh",
    "dinjected",
    "da_part",
    "dw_part",
    "e",
    "de",
    "rq",
    "rk",
    "turn",
    "drows",
    "dtable",
    "edges",
}
INT64 = {"order", "ids"}  # fmt: skip
ROWS = {"BM": 2, "BD": 1024}  # d_model 768
CASES = [
    (residual_norm._residual_norm_fwd_kernel, ROWS),
    (residual_norm._residual_norm_bwd_kernel, ROWS | {"SPLIT": True}),
    (residual_norm._residual_norm_bwd_kernel, ROWS | {"SPLIT": False}),
    (loop_boundary._loop_boundary_fwd_kernel, {"BM": 2, "BS": 1024}),
    (loop_boundary._loop_boundary_bwd_kernel, {"BM": 1, "BS": 1024}),
    (value_gate._value_gate_fwd_kernel, {"BM": 32, "BK": 64}),
    (value_gate._value_gate_bwd_kernel, {"BM": 32, "BK": 64}),
    (relu_squared._relu_squared_fwd_kernel, {"BN": 2048}),
    (relu_squared._relu_squared_bwd_kernel, {"BN": 2048, "KEPT_Y": True}),
    (relu_squared._relu_squared_bwd_kernel, {"BN": 2048, "KEPT_Y": False}),
    *(
        # strides of 1 are compiled as such, as when the kernel is launched
        (
            relu_squared_mlp._product_epilogue_kernel,
            relu_squared_mlp._TILES | {"BACK": back, "EVEN": even, "B_N" if back else "B_K": 1},
        )
        for back in (False, True)
        for even in (False, True)
    ),
    (lookup._lookup_bwd_kernel, {"CHUNK": 32, "BW": 256}),
    (lookup._lookup_join_kernel, {"CHUNK": 32, "BW": 256}),
    (rope_qk_norm._rope_qk_norm_fwd_kernel, {"NORM": True, "BM": 32, "BK": 64}),
    (rope_qk_norm._rope_qk_norm_fwd_kernel, {"NORM": False, "BM": 32, "BK": 64}),
    (rope_qk_norm._rope_qk_norm_bwd_kernel, {"NORM": True, "KEPT_Y": True, "BM": 32, "BK": 64}),
    (rope_qk_norm._rope_qk_norm_bwd_kernel, {"NORM": True, "KEPT_Y": False, "BM": 8, "BK": 2}),
    (rope_qk_norm._rope_qk_norm_bwd_kernel, {"NORM": False, "KEPT_Y": True, "BM": 32, "BK": 64}),
]


def type_of(name: str) -> str:
    if name in NARROW:
        return "*bf16"
    if name in INT64:
        return "*i64"
    return "*fp32" if name in WIDE else "fp32" if name == "eps" else "i32"


def main() -> None:
    for kernel, constants in CASES:
        names = kernel.arg_names
        types = {n: "constexpr" if n in constants else type_of(n) for n in names}
        # torch's tensors begin at multiples of 16 bytes, and so do whole tiles
        aligned = [
            n for n in names if types[n][0] == "*" or (constants.get("EVEN") and types[n] == "i32")
        ]
        source = ASTSource(
            fn=kernel,
            signature=types,
            constexprs={(names.index(n),): value for n, value in constants.items()},
            attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
        )
        options = dict(LAUNCH)
        if kernel is relu_squared_mlp._product_epilogue_kernel:
            options |= relu_squared_mlp._COMPILED
        made = triton_compile(source, target=TARGET, options=options)
        assert "cubin" in made.asm
        if constants.get("EVEN"):  # the product runs on tensor cores, and copies while it does
            assert "wgmma" in made.asm["ptx"]
            assert "cp.async" in made.asm["ptx"]
        print(kernel.__name__, constants)


if __name__ == "__main__":
    main()
