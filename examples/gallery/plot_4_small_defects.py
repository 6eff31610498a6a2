"""
Small defects in large images
=============================

*The defect is a few pixels wide and the image some hundreds. Does the network see it at all?*

Every image is resized to ``image_size``. What is then only two or three pixels wide is easily lost,
whatever is trained. So the first question is how large the smallest defect is at that size.
"""

# %%
# Cloth with a hole of 13 pixels
# ------------------------------
import time
import warnings

import cv2
import numpy as np
from matplotlib import pyplot as plt

from defectcam import ChanceLevelWarning, DefectCAMClassifier, LocalizationDisplay
from defectcam.datasets import make_defects


def cloth(n_samples, random_state):
    """Images of 256 x 256 pixels; of every two, the second has a hole."""
    data = make_defects(n_samples, 256, kind="fabric", defect_rate=0, random_state=random_state)
    rng = np.random.default_rng(random_state)
    is_defect = np.arange(n_samples) % 2 == 1
    masks = np.zeros(data.images.shape[:3], np.uint8)
    for row in np.flatnonzero(is_defect):
        cv2.circle(masks[row], rng.integers(20, 236, size=2).tolist(), 6, 1, -1)
    data.images[masks > 0] //= 3
    return data.images, is_defect, masks


train, train_is_defect, _ = cloth(36, random_state=0)
test, test_is_defect, masks = cloth(30, random_state=1)

# %%
# The same images at three sizes
# ------------------------------
# The hole is two, five and ten pixels wide in the network's input. The time grows with the area.
# If the labels could not be learned, `fit` would warn and say what to look at.
sizes, reports, fitted = [48, 96, 192], [], []
for image_size in sizes:
    started = time.perf_counter()
    clf = DefectCAMClassifier(
        image_size=image_size,
        max_epochs=4,
        cv=2,
        codebook_size=200,
        augmentation="none",
        random_state=0,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ChanceLevelWarning)
        clf.fit(train, train_is_defect)
    fitted.append(clf)
    reports.append(clf.evaluate(test, test_is_defect, masks))
    print(
        f"image_size={image_size}: defect recall {reports[-1].defect_recall:.2f}, "
        f"overkill {reports[-1].overkill:.2f}, AUPRO {reports[-1].pixels['pro_auc']:.2f}, "
        f"{time.perf_counter() - started:.0f} s"
    )
    for warning in caught:
        print(f"  {warning.category.__name__}: {str(warning.message).split(' (')[0]}")

# %%
# What each of them sees
# ----------------------
# The dashed line is the outline of the hole.
_, axes = plt.subplots(1, 3, figsize=(10, 4), layout="constrained")
for clf, image_size, ax in zip(fitted, sizes, axes, strict=True):
    display = LocalizationDisplay.from_estimator(
        clf, test[1], mask=masks[1], ax=ax, colorbar=ax is axes[-1]
    )
    ax.set_title(f"image_size={image_size}\n{ax.get_title()}")

# %%
# What to do
# ----------
# Choose ``image_size`` so that the smallest defect is at least five pixels wide in it: of an image
# of 2000 pixels whose defects are 20 wide, 500. Memory and time grow with the area. Where that is
# too much, cut the image: `PartCropper` cuts to the part, and with ``tile="auto"`` the classifier
# sees large parts in tiles, see *Large images* in the guide.
