"""What results say of labels: the name of all defects together, and labels as plain values.

A leaf that needs NumPy alone, so that results can be made where scikit-learn is not installed. What
the classes of training labels are is `labels`' matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ANOMALY", "plain_label"]

#: Label of all defect types together when ``target="anomaly"`` merges several.
ANOMALY = "anomaly"


def plain_label(label: Any) -> Any:
    """Turn NumPy's strings, booleans and integers into Python's, as JSON and messages want them."""
    return label.item() if isinstance(label, np.generic) else label
