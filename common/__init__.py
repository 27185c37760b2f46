import os

# Before torch is imported: it then says which operations Apple's GPUs lack, and computes them on the CPU.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
