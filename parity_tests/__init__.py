# Tests on a CPU compile for longer than they compute: XLA need not try hard. A step of a narrow network then takes a
# ninth of the time to compile.
QUICK_XLA = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
    )
)
