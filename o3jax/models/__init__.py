"""Qwen3-VL in Flax. The model reads top to bottom: config, vision, text, then qwen3_vl, the assembly.

Shape letters, used everywhere:

    B batch            S sequence          T frame pairs (or images)
    P patches          N query heads       K key/value heads     H head dim
    D model width      F mlp width         V vocabulary          L layers
    E experts          G group samples     M evidence mentions   C values of one patch
"""
