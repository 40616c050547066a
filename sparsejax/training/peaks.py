"""What devices can do at best: dense matrix products in bfloat16 (float16 where a device lacks that), FLOP/s."""

# By the beginning of JAX's `device_kind`; the longest that fits counts. From the vendors' data sheets, without sparse
# speed-ups.
PEAKS: dict[str, float] = {
    "NVIDIA A100": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "Tesla T4": 65e12,
    "Tesla V100": 125e12,
}


def peak_of(device_kind: str) -> float | None:
    """FLOP/s of one device, or None where it is not known, as for every CPU.

    Example:
      >>> peak_of("NVIDIA H100 80GB HBM3"), peak_of("cpu")
      (989000000000000.0, None)
    """
    words = device_kind.replace("-", " ") + " "
    fitting = [name for name in PEAKS if words.startswith(f"{name} ")]
    return PEAKS[max(fitting, key=len)] if fitting else None
