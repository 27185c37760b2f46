import os

# Before torch is imported: it then computes on the CPU, and says so, what Apple's GPUs lack.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
