"""
Explain a decision to an auditor
================================

*Why was this part rejected, and how do I know that the reason given is the real one?*

Four questions that an auditor asks, and what answers them: the decision and its threshold, the
place, whether the place is what decided, and what the model was made from.
"""

# %%
import cv2
import numpy as np
from matplotlib import pyplot as plt

from defectcam import DefectCAMClassifier, LocalizationDisplay
from defectcam.datasets import make_defects

train = make_defects(60, defect_rate=0.4, severity=(0.5, 1), random_state=0)
test = make_defects(40, defect_rate=0.4, severity=(0.5, 1), random_state=1)
clf = DefectCAMClassifier(
    image_size=128,
    max_epochs=4,
    cv=2,
    codebook_size=200,
    augmentation="none",
    threshold="recall>=0.95",
    random_state=0,
)
clf.fit(train.images, train.is_defect)
defective = list(test.images[test.is_defect])
found = max(clf.localize(defective), key=lambda one: one.probability)

# %%
# What was decided, and by which rule?
# ------------------------------------
# The threshold is part of the model. It comes from training images, each judged by a network that
# had not seen it.
print(f"probability of a defect {found.probability:.3f}, rejected from {clf.threshold_:.3f}")
held_out_recall = (clf.held_out_probability_[train.is_defect] >= clf.threshold_).mean()
print(f"held-out defects found at this threshold: {held_out_recall:.0%} (asked for: 95 %)")

# %%
# Where?
# ------
# The heatmap comes from the forward pass that decided; no second method guesses at it. Its scale is
# fixed: 1 is the limit that good parts stay below. On the right, a good part on the same scale.
good = min(clf.localize(test.images[~test.is_defect]), key=lambda one: one.probability)
_, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
LocalizationDisplay.from_predictions(found, ax=axes[0], colorbar=False)
LocalizationDisplay.from_predictions(good, ax=axes[1])

# %%
# Is this place what decided?
# ---------------------------
# Take it away and ask again: put what a good part shows there into the marked place. With generated
# parts that is the same part without its defect; of real ones, take a good part that lies alike. As
# a control, the same is done elsewhere.
twins = make_defects(40, defect_rate=0, random_state=1).images[test.is_defect]
twin = twins[[found.source is image for image in defective].index(True)]
mask = cv2.dilate(found.mask().astype("uint8"), None, iterations=8)
elsewhere = cv2.flip(mask, -1) & (1 - mask)
for name, area in {"the marked place": mask, "another place": elsewhere}.items():
    after = clf.localize(np.where(area[..., np.newaxis], twin, found.image))
    print(f"without {name}: probability {found.probability:.3f} -> {after.probability:.3f}")

# %%
# A probability that falls when the place is repaired, and stays otherwise, speaks for the
# explanation. Where it does not fall, the decision rests on something else too: lighting, the
# border, a second defect. That is worth knowing before the auditor finds it.

# %%
# What was the model made from?
# -----------------------------
for name, value in clf.info().items():
    print(f"{name:<21} {value}")

# %%
# And how good is it?
# -------------------
# On images that took no part in training, the missed defects first.
print(clf.evaluate(test.images, test.is_defect, test.masks))
